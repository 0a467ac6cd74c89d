"""The reactor over a simulated clock: deadlines, names, callbacks, errors."""

import time
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from rlhf_ray.orchestration import reactor as reactor_module
from rlhf_ray.orchestration.reactor import Outcome, Reactor
from rlhf_ray.simulation.world import SimRef, World


class Bench:
    """A reactor over a world, and what its callbacks were told."""

    def __init__(self) -> None:
        self.world = World()
        self.reactor = Reactor(clock=self.world.clock, wait=self.world.wait, get=self.world.get)
        self.told: list[tuple[float, str, Any]] = []

    def note(self, name: str) -> Any:
        def then(outcome: Outcome) -> None:
            self.told.append((round(self.world.now, 3), name, outcome.error or outcome.value))

        return then

    def run(self, seconds: float) -> None:
        until = self.world.now + seconds
        self.reactor.pump_until(lambda: self.world.now >= until)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_callbacks_run_in_the_order_in_which_calls_end(bench: Bench) -> None:
    for name, seconds in (("slow", 3.0), ("fast", 1.0), ("middle", 2.0)):
        bench.reactor.when(
            bench.world.later(seconds, name), bench.note(name), who=name, what="x", timeout=9
        )
    bench.run(5)
    assert bench.told == [(1.0, "fast", "fast"), (2.0, "middle", "middle"), (3.0, "slow", "slow")]


def test_a_late_call_is_named_and_its_answer_is_not_heard_afterwards(bench: Bench) -> None:
    ref = bench.world.later(5.0, "too late")
    bench.reactor.when(ref, bench.note("g"), who="generator-3", what="shard 2 of step 7", timeout=2)
    bench.run(10)
    ((when, _, error),) = bench.told
    assert 2.0 < when <= 2.0 + reactor_module.EXPIRE_EVERY + reactor_module.TICK
    assert isinstance(error, TimeoutError)
    assert str(error) == "generator-3 did not finish `shard 2 of step 7` in 2 s"


def test_a_callback_may_register_the_next_call(bench: Bench) -> None:
    def again(outcome: Outcome) -> None:
        bench.note("chain")(outcome)
        if outcome.value < 3:
            ref = bench.world.later(1.0, outcome.value + 1)
            bench.reactor.when(ref, again, who="a", what="x", timeout=9)

    bench.reactor.when(bench.world.later(1.0, 1), again, who="a", what="x", timeout=9)
    bench.run(5)
    assert bench.told == [(1.0, "chain", 1), (2.0, "chain", 2), (3.0, "chain", 3)]


def test_forgetting_one_of_two_that_are_ready_at_once(bench: Bench) -> None:
    refs = {name: bench.world.later(1.0) for name in ("a", "b")}

    def forget_other(other: str) -> Any:
        def then(outcome: Outcome) -> None:
            bench.told.append((bench.world.now, other, None))
            bench.reactor.forget(other)

        return then

    bench.reactor.when(refs["a"], forget_other("b"), who="a", what="x", timeout=9)
    bench.reactor.when(refs["b"], forget_other("a"), who="b", what="x", timeout=9)
    for ref in refs.values():
        bench.world.fulfil(ref)
    bench.run(3)
    assert len(bench.told) == 1


def test_waiting_for_one_thing_serves_all_others(bench: Bench) -> None:
    beats: list[float] = []
    bench.reactor.every(1.0, beats.append)
    bench.reactor.when(bench.world.later(2.5), bench.note("shard"), who="g", what="x", timeout=9)
    assert bench.reactor.result(bench.world.later(5.0, 42), who="l", what="update", timeout=9) == 42
    assert [name for _, name, _ in bench.told] == ["shard"]
    assert [round(beat) for beat in beats] == [0, 1, 2, 3, 4]


def test_time_passes_with_nothing_to_wait_for(bench: Bench) -> None:
    bench.run(1.0)
    assert bench.world.now == pytest.approx(1.0, abs=reactor_module.TICK)


def test_results_keep_their_order(bench: Bench) -> None:
    refs = [bench.world.later(3.0 - i, i) for i in range(3)]
    assert bench.reactor.results(refs, who="abc", what="save", timeout=9) == [0, 1, 2]


def test_the_first_error_ends_the_wait_for_all(bench: Bench) -> None:
    refs = [
        bench.world.later(900.0),
        bench.world.later(1.0, error=RayActorError()),
        bench.world.later(0.5, "well"),
    ]
    with pytest.raises(RayActorError):
        bench.reactor.results(refs, who="abc", what="update", timeout=1000)
    assert bench.world.now == pytest.approx(1.0, abs=0.1)
    assert bench.reactor.oldest() == [], "nobody waits for the ranks that hang"


def test_a_deadline_among_results_names_the_rank(bench: Bench) -> None:
    refs = [bench.world.later(1.0), SimRef()]
    with pytest.raises(TimeoutError, match=r"^learner-1 did not finish `update` in 5 s"):
        bench.reactor.results(refs, who=["learner-0", "learner-1"], what="update", timeout=5)


def test_what_is_waited_for_longest_comes_first(bench: Bench) -> None:
    for name in ("first", "second", "third"):
        bench.reactor.when(SimRef(), bench.note(name), who=name, what="x", timeout=99)
        bench.run(1)
    assert [wait.who for wait in bench.reactor.oldest()] == ["first", "second", "third"]


def test_a_callback_that_raises_is_not_hidden_and_others_are_heard_later(bench: Bench) -> None:
    def refuse(outcome: Outcome) -> None:
        raise ValueError("the prompt of rollout 7 has no tokens")

    bench.reactor.when(bench.world.later(1.0), refuse, who="a", what="x", timeout=9)
    bench.reactor.when(bench.world.later(1.0), bench.note("b"), who="b", what="x", timeout=9)
    with pytest.raises(ValueError, match="rollout 7"):
        bench.run(2)
    bench.run(2)
    assert [name for _, name, _ in bench.told] == ["b"]


def test_a_call_is_waited_for_once(bench: Bench) -> None:
    ref = SimRef()
    bench.reactor.when(ref, bench.note("a"), who="a", what="beat", timeout=9)
    with pytest.raises(AssertionError, match="a: beat is waited for already"):
        bench.reactor.when(ref, bench.note("a"), who="a", what="beat", timeout=9)


def test_a_remote_error_arrives_as_what_was_raised(bench: Bench) -> None:
    raised = ValueError("the prompt of rollout 7 has no tokens")
    error = RayTaskError("generate", "Traceback (most recent call last):\n", raised, "p", 1, "ip")
    ref = bench.world.later(1.0, error=error.as_instanceof_cause())
    with pytest.raises(ValueError, match=r"^the prompt of rollout 7 has no tokens$") as caught:
        bench.reactor.result(ref, who="g", what="shard", timeout=9)
    assert not isinstance(caught.value, RayTaskError)
    assert isinstance(caught.value.__cause__, RayTaskError), "with the remote traceback"


def test_ray_wait_with_nothing_to_wait_for_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert reactor_module.ray_wait([], 0.25) == []
    assert slept == [0.25]
