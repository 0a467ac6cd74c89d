"""Training phases (generators of progress rows) as Ray tasks that stream their rows."""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from rlhf_ray.generators.environment import torch_environment
from rlhf_ray.learners.group import set_up_torch
from rlhf_ray.models.device import device_here
from rlhf_ray.orchestration.placement import lacking, place_for, within
from rlhf_ray.orchestration.reactor import cause_of, first_line
from rlhf_ray.orchestration.shares import Share
from rlhf_ray.orchestration.watchdog import STALL_AFTER

Row = dict[str, Any]
Call = tuple[Sequence[Any], Mapping[str, Any]]  # arguments, keyword arguments
ROW_TIMEOUT = 3600.0  # seconds between two rows: some steps, or one pass over what is set apart
ROOM_AFTER = 5.0  # seconds without room after which that is said


@dataclass(frozen=True, slots=True)
class Running:
    """One call: its place among the calls, and what it reserves."""

    place: int
    group: PlacementGroup


def run_phases(
    phase: Callable[..., Iterator[Row]],
    calls: Sequence[Call],
    *,
    share: Share,
    threads: int,
    name: str,
    start_timeout: float,
    log: Callable[[str], None],
    environment: Callable[[int], dict[str, str]] = torch_environment,
    another_follows: bool = False,
) -> Iterator[tuple[int, Row]]:
    """(place of the call, row) as `phase` yields rows; as many calls at a time as have room.

    Each has a `share` to itself. Several divide the `threads` of a node, and reserve a CPU for
    each, so that none waits for another's, and a whole GPU where they use one; environment: of a
    process with so many threads.
    another_follows: a phase with the same share comes at once, and takes over the process with its
    imports, seconds of them; not where it holds a GPU, which Ray gives back with the process.
    Raises what the phase raised, after Ray's error with its traceback; ChildProcessError, naming
    it, where its process died; ValueError where none finds room in `start_timeout` seconds;
    TimeoutError where all stall. The others end with it.
    """
    if not calls:
        return
    threads = max(1, threads // len(calls))
    if len(calls) > 1:
        whole = float(math.ceil(share.gpus))  # a part is of one learner's memory, for one call
        share = replace(share, cpus=max(threads, share.cpus), gpus=whole)
    running: dict[Any, Running] = {}
    try:
        for place, (args, kwargs) in enumerate(calls):
            group = place_for(share, place)
            # One call a worker: its memory goes back before PPO starts.
            calls_each = 0 if another_follows and not share.gpus else 1
            task = ray.remote(max_calls=calls_each)(phase).options(
                name=name if len(calls) == 1 else f"{name} {place}",
                num_returns="streaming",
                max_retries=0,
                scheduling_strategy=within(group),
                runtime_env={"env_vars": environment(threads) | share.environment()},
                **share.options(),
            )
            running[task.remote(*args, **kwargs)] = Running(place, group)
        while running:
            for rows in _ready(running, name, start_timeout, log):
                try:
                    ref = next(rows)
                except StopIteration:
                    ray.util.remove_placement_group(running.pop(rows).group)
                    continue
                yield running[rows].place, ray.get(ref, timeout=ROW_TIMEOUT)
    except RayTaskError as error:
        raise cause_of(error)  # noqa: B904 (it has the cause that it should)
    except RayError as error:
        raise died(name, error) from error
    finally:
        _end(running)


def set_up(phase: Callable[..., Iterator[Row]]) -> Callable[..., Iterator[Row]]:
    """`phase` in a process whose torch is set up first."""

    @functools.wraps(phase)
    def run(*args: Any, **options: Any) -> Iterator[Row]:
        set_up_torch(deterministic=device_here() == "cpu")  # on a GPU that costs speed
        yield from phase(*args, **options)

    return run


def died(name: str, error: RayError) -> ChildProcessError:
    """What to tell of a phase whose process did not live to say what was wrong."""
    return ChildProcessError(
        f"the process of {name} died ({first_line(error)}): it was killed, or memory ran out; "
        f"start the same command again, the phase begins anew"
    )


def _ready(
    running: Mapping[Any, Running], name: str, start_timeout: float, log: Callable[[str], None]
) -> list[Any]:
    """Those that have a row or have ended, at least one; says so where that takes long."""
    began, named = time.monotonic(), 0.0
    look = min(ROOM_AFTER, start_timeout)
    while True:
        ready, _ = ray.wait(list(running), timeout=look, fetch_local=False)
        if ready:
            return ready
        waited, lack = time.monotonic() - began, _lack(running)
        if lack and waited >= start_timeout:
            raise ValueError(f"{name} was not placed in {waited:.0f} s: {lack}")
        if waited >= ROW_TIMEOUT:
            raise TimeoutError(f"{name} gave no row in {waited:.0f} s: it is taken for stalled")
        if waited >= max(2 * named, look if lack else STALL_AFTER):
            named = waited
            what = f"room for {waited:.0f} s; {lack}" if lack else f"a row for {waited:.0f} s"
            log(f"waiting for {name}: {what}")


def _lack(running: Mapping[Any, Running]) -> str:
    """What all of them have no room for; "" where one has its place."""
    lacks = [lacking(one.group) for one in running.values()]
    return lacks[0] if all(lacks) else ""


def _end(running: Mapping[Any, Running]) -> None:
    """End those that still run, and give back what they reserve."""
    if not ray.is_initialized():  # asking now would start a Ray anew
        return
    for rows, one in running.items():
        ray.cancel(rows, force=True)
        ray.util.remove_placement_group(one.group)
