"""Running a training phase (a generator of progress rows) as one Ray task that streams its rows."""

from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from rlhf_ray.generators.environment import torch_environment
from rlhf_ray.orchestration.shares import Share

Row = dict[str, Any]


def stream(
    phase: Callable[..., Iterator[Row]], *args: Any, share: Share, threads: int, name: str
) -> Iterator[Row]:
    """The rows that `phase(*args)` yields, computed where Ray has room for `share`.

    Raises what the phase raised.
    """
    # One call a worker: its memory goes back before the next phase starts.
    task = ray.remote(max_calls=1)(phase).options(
        name=name,
        num_returns="streaming",
        **share.options(),
        max_retries=0,
        runtime_env={"env_vars": torch_environment(threads)},
    )
    try:
        for ref in task.remote(*args):
            yield ray.get(ref)
    except RayTaskError as error:
        raise error.cause from None
