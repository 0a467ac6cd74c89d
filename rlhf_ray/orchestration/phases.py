"""Running a training phase (a generator of progress rows) as one Ray task that streams its rows."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rlhf_ray.generators.environment import torch_environment
from rlhf_ray.learners.group import set_up_torch
from rlhf_ray.orchestration.reactor import first_line
from rlhf_ray.orchestration.shares import Share
from rlhf_ray.orchestration.watchdog import STALL_AFTER

Row = dict[str, Any]
ROW_TIMEOUT = 3600.0  # seconds between two rows: some steps, or one pass over what is set apart


def stream(
    phase: Callable[..., Iterator[Row]],
    *args: Any,
    share: Share,
    threads: int,
    name: str,
    log: Callable[[str], None],
) -> Iterator[Row]:
    """The rows that `phase(*args)` yields, computed where Ray has room for `share`.

    Raises what the phase raised; ChildProcessError, naming it, where its process died; TimeoutError
    where it stalls.
    """
    # One call a worker: its memory goes back before the next phase starts.
    task = ray.remote(max_calls=1)(set_up(phase)).options(
        name=name,
        num_returns="streaming",
        **share.options(),
        max_retries=0,
        runtime_env={"env_vars": torch_environment(threads)},
    )
    rows = task.remote(*args)
    try:
        while True:
            _wait(rows, name, log)
            try:
                ref = next(rows)
            except StopIteration:
                return
            yield ray.get(ref, timeout=ROW_TIMEOUT)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise died(name, error) from error


def set_up(phase: Callable[..., Iterator[Row]]) -> Callable[..., Iterator[Row]]:
    """`phase` in a process whose torch is set up first."""

    @functools.wraps(phase)
    def run(*args: Any, **options: Any) -> Iterator[Row]:
        set_up_torch()
        yield from phase(*args, **options)

    return run


def died(name: str, error: RayError) -> ChildProcessError:
    """What to tell of a phase whose process did not live to say what was wrong."""
    return ChildProcessError(
        f"the process of {name} died ({first_line(error)}): it was killed, or memory ran out; "
        f"start the same command again, the phase begins anew"
    )


def _wait(rows: Any, name: str, log: Callable[[str], None]) -> None:
    """Return when there is a row, or the end; says so where that takes long."""
    began = time.monotonic()
    named = STALL_AFTER
    while not ray.wait([rows], timeout=min(named, STALL_AFTER), fetch_local=False)[0]:
        waited = time.monotonic() - began
        if waited > ROW_TIMEOUT:
            ray.cancel(rows, force=True)
            raise TimeoutError(f"{name} gave no row in {waited:.0f} s: it is taken for stalled")
        if waited >= named:
            log(f"waiting for {name}: its next row for {waited:.0f} s")
            named = 2 * waited
