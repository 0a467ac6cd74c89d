"""Where a run is steered from and asked about, from any machine of the cluster.

A named actor `rlhf-<run>` in the namespace `rlhf`. It decides nothing: it keeps what people wish
and what the driver last reported, and the driver reconciles towards the wish as it goes.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import ray

NAMESPACE = "rlhf"


def control_name(run: str) -> str:
    """The name of a run's control actor."""
    return f"rlhf-{run}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What people want of a run. generators None: as configured."""

    generators: int | None = None
    paused: bool = False
    stop: bool = False


@dataclass
class Report:
    """What the driver says of a run: plain values, ready to print."""

    summary: dict[str, Any] = field(default_factory=dict)
    actors: list[dict[str, Any]] = field(default_factory=list)


class ControlActor:
    """Keeps the wish and the report."""

    def __init__(self, run: str, generators: int) -> None:
        self._run = run
        self._wish = Wish(generators=generators)
        self._report = Report()

    def exchange(self, report: Report) -> Wish:
        """The driver's call: here is how it is, tell me what is wished."""
        self._report = report
        return self._wish

    def scale(self, generators: int, *, relative: bool = False) -> int:
        """Ask for this many generators, or for this many more; returns how many are now wished."""
        wanted = (self._wish.generators or 0) + generators if relative else generators
        if wanted < 1:
            raise ValueError(f"{wanted} generators are asked for; a run needs at least 1")
        self._wish = replace(self._wish, generators=wanted)
        return wanted

    def pause(self, paused: bool) -> None:
        """Hold the loop before its next iteration, or let it go on."""
        self._wish = replace(self._wish, paused=paused)

    def stop(self) -> None:
        """End the run at the next consistent point, resumable."""
        self._wish = replace(self._wish, stop=True)

    def status(self) -> Report:
        """The driver's last report."""
        return self._report


def create_control(run: str, generators: int) -> ray.actor.ActorHandle:
    """The driver's end. ValueError where a run of this name is alive."""
    actor = ray.remote(ControlActor).options(
        name=control_name(run), namespace=NAMESPACE, num_cpus=0, max_concurrency=4
    )
    try:
        return actor.remote(run, generators)
    except ValueError:
        raise ValueError(
            f"a run named {run!r} is alive on this cluster: stop it (jobs/stop.py --run {run}), "
            f"or choose another name with --run.name"
        ) from None


def find_control(run: str) -> ray.actor.ActorHandle:
    """Everybody else's end. ValueError, naming the runs that are alive, where there is none."""
    try:
        return ray.get_actor(control_name(run), namespace=NAMESPACE)
    except ValueError:
        named = ray.util.list_named_actors(all_namespaces=True)
        alive = [a["name"][5:] for a in named if a["namespace"] == NAMESPACE]
        raise ValueError(
            f"no run named {run!r} is alive on this cluster; alive: {', '.join(alive) or 'none'}"
        ) from None
