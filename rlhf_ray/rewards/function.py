"""A Python function `module:function` as a reward: lists of prompts and responses in, scores out.

    def politeness(prompts: list[str], responses: list[str]) -> list[float]: ...

It runs in processes of its own, each call under a deadline. What a faulty sample means is the
source's `on_error`: the run fails, the sample is dropped, or it gets a default.
"""

import logging
import math

import numpy as np

from rlhf_ray.config import OnError
from rlhf_ray.rewards.function_pool import Call, FunctionPool, Outcome
from rlhf_ray.rewards.protocol import Responses, Scores

HANGS = 3  # samples, called alone one after another, after which a function is taken to hang

_log = logging.getLogger(__name__)


class FunctionReward:
    """`target` is `module:function`, found from the working directory or the Python path.

    A batch is cut into one call a process, in the order given. When a call fails as a whole (it
    raises, hangs, ends its process, or returns the wrong number) its samples are called one by one,
    so that the fault finds its sample; but not all of those that hang, for a shard has a deadline
    too. ValueError names the function, the prompt and the fault.
    """

    def __init__(
        self,
        target: str,
        *,
        processes: int = 1,
        timeout_s: float = 60.0,
        on_error: OnError = "fail",
        default: float = 0.0,
    ) -> None:
        module, _, function = target.partition(":")
        if not (module and function):
            raise ValueError(
                f"reward function {target!r} is not of the form module:function, for example "
                f"my_rewards:politeness for the function politeness of my_rewards.py"
            )
        if processes < 1 or timeout_s <= 0:
            raise ValueError(
                f"function {target!r} has processes {processes} and timeout_s {timeout_s:g}; "
                f"both must be above 0"
            )
        self.target, self._processes = target, processes
        self._on_error, self._default = on_error, default
        self._pool = FunctionPool(target, processes=processes, timeout_s=timeout_s)

    def __call__(self, batch: Responses) -> Scores:
        """float32 scores; `valid` is False only for faulty samples under `on_error: drop`."""
        scores = np.zeros(len(batch), dtype=np.float32)
        valid = np.ones(len(batch), dtype=bool)
        for row, item in enumerate(self._items(batch)):
            fault = item if isinstance(item, str) else _not_finite(item)
            if fault is None:
                scores[row] = item
            elif self._on_error == "fail":
                raise ValueError(self._message(batch, row, fault))
            else:
                _log.warning("%s (%s)", self._message(batch, row, fault), self._on_error)
                valid[row] = self._on_error == "default"
                scores[row] = self._default if valid[row] else 0.0
        return Scores(scores=scores, valid=valid)

    def close(self) -> None:
        """End its processes."""
        self._pool.close()

    def _items(self, batch: Responses) -> list[float | str]:
        """For each sample its score, or the text of its fault."""
        size = max(1, math.ceil(len(batch) / self._processes))
        starts = range(0, len(batch), size)
        calls = [_call(batch, start, start + size) for start in starts]
        items: list[float | str] = []
        for start, call, outcome in zip(starts, calls, self._pool.run(calls), strict=True):
            assert outcome is not None
            if outcome.items is not None:
                items += outcome.items
            else:
                items += self._one_by_one(batch, start, len(call.prompts), outcome)
        return items

    def _one_by_one(
        self, batch: Responses, start: int, count: int, whole: Outcome
    ) -> list[float | str]:
        """The same for a call that failed as a whole, each of its samples called alone."""
        assert whole.fault is not None
        if count == 1:
            return [whole.fault]
        calls = [_call(batch, row, row + 1) for row in range(start, start + count)]
        fail = self._on_error == "fail"
        outcomes = self._pool.run(calls, stop_at_fault=True) if fail else self._alone(calls)
        items = [_single(outcome) for outcome in outcomes]
        if not any(isinstance(item, str) for item in items):
            if fail and whole.fault.startswith("returned"):
                raise ValueError(
                    f"{self._message(batch, start, whole.fault)} "
                    f"(each sample alone gets its score: the function must take any number of them)"
                )
            _log.warning(
                "reward function %r %s when called with %d samples, and for none of them alone",
                self.target,
                whole.fault,
                count,
            )
        return items

    def _alone(self, calls: list[Call]) -> list[Outcome | None]:
        """Outcomes of calls of one sample; once HANGS in a row have hung, the rest do, uncalled."""
        outcomes: list[Outcome | None] = []
        together = max(HANGS, self._processes)
        for start in range(0, len(calls), together):
            some = self._pool.run(calls[start : start + together])
            outcomes += some
            if len(some) >= HANGS and all(outcome and outcome.hung for outcome in some):
                return outcomes + some[-1:] * (len(calls) - len(outcomes))
        return outcomes

    def _message(self, batch: Responses, row: int, fault: str) -> str:
        return (
            f"reward function {self.target!r} {fault}, for prompt "
            f"{_short(batch.prompt_texts(slice(row, row + 1))[0])} and "
            f"response {_short(batch.responses[row])}: correct the function, or set on_error of "
            f"this source to drop or default"
        )


def _call(batch: Responses, start: int, stop: int) -> Call:
    return Call(
        prompts=batch.prompt_texts(slice(start, stop)),
        responses=list(batch.responses[start:stop]),
    )


def _single(outcome: Outcome | None) -> float | str:
    if outcome is None:  # not called: an earlier sample had a fault, which ends the run
        return 0.0
    return outcome.items[0] if outcome.items is not None else str(outcome.fault)


def _not_finite(score: float) -> str | None:
    finite = math.isfinite(score) and abs(score) <= float(np.finfo(np.float32).max)
    return None if finite else f"returned {score}, which is not a finite float32"


def _short(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "…")
