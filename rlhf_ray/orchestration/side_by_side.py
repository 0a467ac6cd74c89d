"""Several calls of one training phase at the same time, each a Ray task that streams its rows."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rlhf_ray.generators.environment import torch_environment
from rlhf_ray.orchestration.phases import ROW_TIMEOUT, Row, died
from rlhf_ray.orchestration.plan import Plan
from rlhf_ray.orchestration.watchdog import STALL_AFTER

Call = tuple[Sequence[Any], Mapping[str, Any]]  # arguments, keyword arguments


def side_by_side(
    phase: Callable[..., Iterator[Row]],
    calls: Sequence[Call],
    *,
    plan: Plan,
    name: str,
    log: Callable[[str], None],
    environment: Callable[[int], dict[str, str]] = torch_environment,
) -> Iterator[tuple[int, Row]]:
    """(place of the call, row) as rows come; as many calls at a time as Ray has room for.

    The threads of a node are divided among the calls, and each reserves as many CPUs, so none waits
    for another's; environment: of a process with so many. Raises what a phase raised, and ends the
    others; ChildProcessError where its process died; TimeoutError where all stall.
    """
    if not calls:
        return
    threads = max(1, plan.threads // len(calls))
    options = plan.learner.options() | {"num_cpus": max(threads, plan.learner.cpus)}
    streams = {}
    for place, (args, kwargs) in enumerate(calls):
        task = ray.remote(max_calls=1)(phase).options(
            name=f"{name} {place}",
            num_returns="streaming",
            max_retries=0,
            runtime_env={"env_vars": environment(threads)},
            **options,
        )
        streams[task.remote(*args, **kwargs)] = place
    try:
        while streams:
            for rows in _ready(list(streams), name, log):
                try:
                    ref = next(rows)
                except StopIteration:
                    del streams[rows]
                    continue
                yield streams[rows], ray.get(ref, timeout=ROW_TIMEOUT)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise died(name, error) from error
    finally:
        for rows in streams:
            ray.cancel(rows, force=True)


def _ready(streams: list[Any], name: str, log: Callable[[str], None]) -> list[Any]:
    """Those that have a row or have ended, at least one; says so where that takes long."""
    began = time.monotonic()
    while True:
        ready, _ = ray.wait(streams, timeout=STALL_AFTER, fetch_local=False)
        if ready:
            return ready
        waited = time.monotonic() - began
        if waited > ROW_TIMEOUT:
            raise TimeoutError(f"{name} gave no row in {waited:.0f} s: it is taken for stalled")
        log(f"waiting for {name}: the next row of {len(streams)} for {waited:.0f} s")
