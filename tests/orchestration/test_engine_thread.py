"""The thread that owns an engine, over a small engine that records the order of events."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_ray.data.ids import Version
from rlhf_ray.generators.engine_thread import EngineThread
from rlhf_ray.generators.protocol import Completion, EngineDead, Request

PATIENCE = 20.0  # seconds until a test that hangs says so


class StepEngine:
    """Writes a response of as many tokens as its prompt has, one a step. `gate` holds the steps."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.stepping = threading.Event()
        self.shut_after: int | None = None  # the gate closes after so many steps
        self.fail_with: Exception | None = None
        self.version = Version(0, 0)
        self._left: dict[int, int] = {}
        self._lengths: dict[int, int] = {}

    def submit(self, requests: Sequence[Request]) -> None:
        if any(not request.prompt_token_ids for request in requests):
            raise ValueError("the prompt has no tokens")
        self.events.append(f"submit {[request.rollout_id for request in requests]}")
        self._left |= {r.rollout_id: len(r.prompt_token_ids) for r in requests}
        self._lengths |= {r.rollout_id: len(r.prompt_token_ids) for r in requests}

    def step(self) -> list[Completion]:
        self.stepping.set()
        assert self.gate.wait(PATIENCE), "nobody opened the gate"
        if self.fail_with is not None:
            raise self.fail_with
        self.events.append("step")
        if self.events.count("step") == self.shut_after:
            self.gate.clear()
        self._left = {rollout: left - 1 for rollout, left in self._left.items()}
        done = [rollout for rollout, left in self._left.items() if left == 0]
        for rollout in done:
            del self._left[rollout]
        return [self._completion(rollout) for rollout in done]

    def _completion(self, rollout: int) -> Completion:
        n = self._lengths[rollout]
        tokens = np.full(n, rollout, np.int32)
        spans = (0, self.version.incarnation, self.version.step)
        return Completion(rollout, tokens, np.zeros(n, np.float32), "eos", spans)

    def has_work(self) -> bool:
        return bool(self._left)

    def abort(self, rollout_ids: Sequence[int]) -> None:
        self.events.append(f"abort {list(rollout_ids)}")
        for rollout in rollout_ids:
            self._left.pop(rollout, None)

    def load(self, version: Version, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.events.append(f"load {version}")
        self.version = version

    def token_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [np.zeros(len(sequence) - 1, np.float32) for sequence in sequences]

    def close(self) -> None:
        self.events.append("close")


class Harness:
    """An engine, its thread, callers in threads of their own, and what was told of failures."""

    def __init__(self) -> None:
        self.engine, self.failures = StepEngine(), []
        self.thread = EngineThread(lambda: self.engine, on_failure=self.failures.append)
        self.callers = ThreadPoolExecutor(8)

    def generate(self, epoch: int = 0, **lengths: int) -> Any:
        requests = [Request(int(name[1:]), (1,) * n, seed=0) for name, n in lengths.items()]
        return self.callers.submit(self.thread.generate, requests, epoch=epoch)

    def hold(self, **lengths: int) -> Any:
        """Generate, with the engine held inside its first step."""
        self.engine.gate.clear()
        self.engine.stepping.clear()
        answer = self.generate(**lengths)
        assert self.engine.stepping.wait(PATIENCE)
        return answer

    def release(self, *, after: int) -> None:
        """Let the engine go on, once so many calls of other threads wait for it."""
        while self.thread._commands.qsize() < after:
            threading.Event().wait(0.001)
        self.engine.gate.set()


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    made.engine.gate.set()
    made.thread.close()
    made.callers.shutdown()


def test_a_shard_is_answered_whole_and_in_the_order_asked(harness: Harness) -> None:
    done = harness.generate(r3=4, r1=1, r2=2).result(PATIENCE)
    assert [completion.rollout_id for completion in done] == [3, 1, 2]
    assert [len(completion.response_token_ids) for completion in done] == [4, 1, 2]
    assert harness.engine.events == ["submit [3, 1, 2]", "step", "step", "step", "step"]
    assert (harness.thread.tokens, harness.thread.in_flight()) == (7, 0)


def test_a_call_runs_between_steps_and_does_not_wait_for_the_batch(harness: Harness) -> None:
    answer = harness.hold(r1=50)
    call = harness.callers.submit(harness.thread.call, lambda e: e.load(Version(0, 1), []))
    harness.release(after=1)
    call.result(PATIENCE)
    answer.result(PATIENCE)
    events = harness.engine.events
    assert "step" in events[: events.index("load 0.1")]
    assert events.count("step") == 50
    assert "step" in events[events.index("load 0.1") :]


def test_a_second_shard_joins_the_first_between_steps(harness: Harness) -> None:
    long = harness.hold(r1=50)
    short = harness.generate(r2=1)
    harness.engine.shut_after = 10
    harness.release(after=1)
    short.result(PATIENCE)
    assert not long.done(), "a shard is answered as soon as it is done"
    harness.engine.gate.set()
    long.result(PATIENCE)
    events = harness.engine.events
    assert events.index("submit [2]") < len(events) - 1 - events[::-1].index("step")
    assert events.count("step") == 50, "they were batched, not run one after the other"


def test_a_refused_request_leaves_the_engine_whole(harness: Harness) -> None:
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        harness.generate(r1=0).result(PATIENCE)
    assert harness.generate(r2=1).result(PATIENCE)[0].rollout_id == 2
    assert harness.failures == []


def test_a_failure_reaches_every_caller_and_ends_the_engine_once(harness: Harness) -> None:
    first, second = harness.hold(r1=5, r2=5), harness.generate(r3=5)
    waiting = harness.callers.submit(harness.thread.call, lambda e: e.has_work())
    harness.engine.fail_with = OSError("CUDA error: an illegal memory access")
    harness.engine.gate.set()
    for caller in (first, second, waiting):
        with pytest.raises((OSError, RuntimeError), match="illegal memory access"):
            caller.result(PATIENCE)
    with pytest.raises(RuntimeError, match="the engine has ended: CUDA error"):
        harness.thread.call(lambda engine: None)
    harness.thread.close()
    assert [str(error) for error in harness.failures] == ["CUDA error: an illegal memory access"]


def test_an_engine_that_fails_with_a_value_error_has_refused_nothing(harness: Harness) -> None:
    caller = harness.hold(r1=5)
    waiting = harness.generate(r2=1)
    harness.engine.fail_with = ValueError("a step of the wrong shape")
    harness.release(after=1)
    for one in (caller, waiting):
        with pytest.raises(EngineDead, match="wrong shape"):
            one.result(PATIENCE)
    harness.thread.close()
    assert [str(error) for error in harness.failures] == ["a step of the wrong shape"]


def test_a_call_that_fails_ends_the_engine(harness: Harness) -> None:
    def load(engine: StepEngine) -> None:
        raise RuntimeError("a load broke off half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        harness.thread.call(load)
    harness.thread.close()
    assert [str(error) for error in harness.failures] == ["a load broke off half-way"]


def test_an_engine_that_cannot_be_made() -> None:
    failures: list[BaseException] = []

    def make() -> StepEngine:
        raise MemoryError("no room for the key-value cache")

    thread = EngineThread(make, on_failure=failures.append)
    with pytest.raises(MemoryError, match="no room"):
        thread.started.result(PATIENCE)
    thread.close()
    assert len(failures) == 1
    with pytest.raises(RuntimeError, match="no room"):
        thread.call(lambda engine: None)


def test_what_is_of_a_void_epoch_is_cancelled_and_the_rest_goes_on(harness: Harness) -> None:
    gone, stays = harness.hold(r1=50, r2=50), harness.generate(epoch=1, r3=3)
    void = harness.callers.submit(harness.thread.void, 1)
    harness.release(after=2)
    void.result(PATIENCE)
    with pytest.raises(CancelledError):
        gone.result(PATIENCE)
    assert stays.result(PATIENCE)[0].rollout_id == 3
    assert "abort [1, 2]" in harness.engine.events
    again = harness.generate(epoch=1, r1=1, r2=1).result(PATIENCE)
    assert [completion.rollout_id for completion in again] == [1, 2], "the same ids, asked anew"


def test_what_comes_after_its_epoch_was_voided_is_never_begun(harness: Harness) -> None:
    harness.thread.void(1)
    with pytest.raises(CancelledError):
        harness.generate(r1=2).result(PATIENCE)
    assert harness.generate(epoch=1, r1=2).result(PATIENCE)[0].rollout_id == 1
    assert harness.engine.events.count("submit [1]") == 1


def test_the_heartbeat_stops_while_the_engine_wedges(harness: Harness) -> None:
    answer = harness.hold(r1=2)
    before, beat = harness.thread.silent_for(), harness.thread._beat
    threading.Event().wait(0.3)
    assert harness.thread.silent_for() >= before + 0.3
    assert harness.thread._beat == beat
    assert harness.thread.in_flight() == 1
    harness.engine.gate.set()
    answer.result(PATIENCE)
    harness.thread.call(lambda engine: None)
    assert harness.thread._beat > beat, "it came round again"


def test_closing_answers_who_still_waits(harness: Harness) -> None:
    answer = harness.hold(r1=50)
    closing = harness.callers.submit(harness.thread.close)
    while harness.thread._commands.empty():
        threading.Event().wait(0.001)
    harness.engine.gate.set()
    closing.result(PATIENCE)
    with pytest.raises(RuntimeError, match="it was closed"):
        answer.result(PATIENCE)
    with pytest.raises(RuntimeError, match="the engine has ended: it was closed"):
        harness.thread.call(lambda engine: None)
    assert harness.engine.events[-1] == "close" and harness.failures == []
