"""Generators as Ray actors, each in a placement group of its own."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from rlhf_ray.actors.generator import GeneratorActor, GeneratorSpec, Order
from rlhf_ray.generators.registry import BACKENDS
from rlhf_ray.orchestration.placement import lacking, place_for, within
from rlhf_ray.orchestration.pool import MOST_DEPTH
from rlhf_ray.orchestration.shares import Share
from rlhf_ray.weights.buckets import Published

CALLS_AT_ONCE = MOST_DEPTH + 16  # threads of an actor: shards, and heartbeats, loads, voids


class RayGenerator:
    """A generator actor. One death is final: the pool decides what follows, not Ray.

    born: how many were made before it; the plan's nodes are for the first ones.
    """

    def __init__(
        self, name: str, born: int, spec: GeneratorSpec, share: Share, threads: int, run: str
    ) -> None:
        self._group = place_for(share, born)
        # Beside a GPU an engine wants one thread: more would only spin between its steps.
        here = BACKENDS[spec.backend].environment(1 if share.gpus else threads)
        environment = here | share.environment()
        if not Path(spec.model_path).is_dir():
            environment.pop("HF_HUB_OFFLINE", None)  # a name: its node may have yet to fetch it
        self._actor = (
            ray.remote(GeneratorActor)
            .options(
                name=f"{run}-{name}",
                **share.options(),
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=CALLS_AT_ONCE,
                scheduling_strategy=within(self._group),
                runtime_env={"env_vars": environment},
            )
            .remote(name, spec)
        )

    def ready(self) -> Any:
        """Resolves to Vitals once the engine is up."""
        return self._actor.ready.remote()

    def beat(self) -> Any:
        """Resolves to Vitals."""
        return self._actor.beat.remote()

    def load(self, published: Published) -> Any:
        """Resolves to the version once it is loaded and verified."""
        return self._actor.load.remote(published.manifest, list(published.buckets))

    def generate(self, order: Order) -> tuple[Any, Any]:
        """(table, meta): the table stays where it was made, the meta comes to the driver."""
        table, meta = self._actor.generate.options(num_returns=2).remote(order)
        return table, meta

    def void(self, incarnation: int) -> Any:
        """Resolves when what was ordered before `incarnation` is forgotten."""
        return self._actor.void.remote(incarnation)

    def lacking(self) -> str:
        """What there is no room for; "" where it has its place."""
        return lacking(self._group)

    def rest(self) -> Any:
        """Resolves once it has given its GPU's memory up."""
        return self._actor.rest.remote()

    def kill(self) -> None:
        """End the process and give back what it reserved."""
        ray.kill(self._actor, no_restart=True)
        ray.util.remove_placement_group(self._group)


def spawner(
    spec: GeneratorSpec, share: Share, *, threads: int, run: str
) -> Callable[[str], RayGenerator]:
    """A function that makes the generator of a given name."""
    born = itertools.count()
    return lambda name: RayGenerator(name, next(born), spec, share, threads, run)
