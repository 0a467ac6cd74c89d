"""The autoscaling policy: a pure function, with hysteresis."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.orchestration.autoscale import AFTER_VAIN, Autoscaler, Limits, Load, wanted

LIMITS = Limits(least=1, most=16)


def loads(n: int, *, waited: float, idle: float, serving: int = 99) -> list[Load]:
    return [Load(100.0, 100.0 * waited, idle, serving)] * n


@pytest.mark.parametrize(
    ("current", "waited", "idle", "then"),
    [
        (4, 0.50, 0.00, 6),  # starved by a half: half as many again
        (4, 0.11, 0.00, 5),
        (4, 0.10, 0.00, 4),  # within the gap
        (4, 0.05, 0.20, 4),
        (4, 0.00, 0.50, 3),  # a half is idle: half-way to two
        (4, 0.05, 0.90, 3),
        (4, 0.08, 0.90, 4),  # idle in part, and yet waited for: neither
        (12, 0.90, 0.00, 16),  # never above the most
        (1, 0.00, 0.99, 1),  # nor below the least
        (2, 0.00, 0.60, 1),  # one would have done
        (2, 0.00, 0.40, 2),  # it would not
        (2, 0.99, 0.00, 4),
    ],
)
def test_what_is_wanted(current: int, waited: float, idle: float, then: int) -> None:
    assert wanted(current, loads(3, waited=waited, idle=idle), LIMITS) == then


def test_one_slow_batch_moves_nothing() -> None:
    calm, slow = loads(1, waited=0.0, idle=0.1), loads(1, waited=0.8, idle=0.0)
    for history in (slow, slow * 2, calm + slow * 2, slow * 2 + calm, slow + calm + slow):
        assert wanted(4, history, LIMITS) == 4
    assert wanted(4, calm + slow * 3, LIMITS) > 4


def test_iterations_in_which_some_were_still_starting_say_nothing() -> None:
    starting = loads(5, waited=0.8, idle=0.0, serving=3)
    assert wanted(4, starting, LIMITS) == 4
    assert wanted(4, starting + loads(3, waited=0.8, idle=0.0, serving=4), LIMITS) > 4


def test_generators_that_find_no_room_are_not_waited_for_for_ever() -> None:
    auto = Autoscaler(LIMITS)
    (short,) = loads(1, waited=0.8, idle=0.0, serving=3)  # 100 s
    assert [auto.decide(4, short) for _ in range(10)] == [4] * 9 + [3]
    assert auto.decision == "4 → 3 generators: only 3 served for 1000 s"
    (all_serve,) = loads(1, waited=0.8, idle=0.0, serving=3)
    assert {auto.decide(3, all_serve) for _ in range(AFTER_VAIN - 1)} == {3}
    assert max(auto.decide(3, all_serve) for _ in range(2)) > 3


def test_the_fewest_that_are_asked_for_are_waited_for() -> None:
    auto = Autoscaler(Limits(least=2, most=4))
    (short,) = loads(1, waited=0.8, idle=0.0, serving=1)
    assert {auto.decide(2, short) for _ in range(30)} == {2}


@pytest.mark.parametrize(("current", "then"), [(40, 16), (0, 1)])
def test_the_limits_hold_at_once(current: int, then: int) -> None:
    assert wanted(current, [], LIMITS) == then


@given(
    current=st.integers(1, 300),
    history=st.lists(
        st.builds(
            Load,
            seconds=st.floats(0, 1000),
            waited=st.floats(0, 1000),
            idle=st.floats(0, 1),
            serving=st.integers(0, 300),
        ),
        max_size=12,
    ),
    least=st.integers(1, 8),
    more=st.integers(0, 300),
)
def test_it_stays_within_limits_and_never_more_than_doubles(
    current: int, history: list[Load], least: int, more: int
) -> None:
    limits = Limits(least=least, most=least + more)
    found = wanted(current, history, limits)
    assert limits.least <= found <= limits.most
    if limits.least <= current <= limits.most:
        assert current / 2 <= found <= 2 * current


@given(work=st.floats(0.5, 60), learn=st.floats(0.2, 5), start=st.integers(1, 64))
def test_it_settles_instead_of_swinging(work: float, learn: float, start: int) -> None:
    """A run whose generation takes work/n and whose learning takes `learn`, side by side."""
    limits, current, seen = Limits(least=1, most=64), start, []
    for _ in range(30):
        generate = work / current
        seconds = max(generate, learn)
        load = Load(seconds, seconds - learn, 1 - generate / seconds, current)
        current = wanted(current, [load] * limits.patience, limits)
        seen.append(current)
    assert len(set(seen[-10:])) == 1, seen


@pytest.mark.parametrize("bounds", [(0, 4), (5, 4)])
def test_bounds_that_make_no_sense(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"--min 1 or more and --max no less than --min"):
        Limits(*bounds)


def test_eagerness_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="shares are between 0 and 1"):
        Limits(1, 2, idle=1.5)


class Run:
    """Iterations that wait max(0, work/min(n, useful) − learn) seconds, and what is decided."""

    def __init__(self, *, work: float, learn: float, useful: float = 64, most: int = 16) -> None:
        self.work, self.learn, self.useful = work, learn, useful
        self.scaler, self.current = Autoscaler(Limits(1, most)), 1
        self.seen: list[int] = []

    def go(self, iterations: int) -> list[int]:
        for _ in range(iterations):
            generate = self.work / min(self.current, self.useful)
            seconds = max(generate, self.learn)
            idle = 1 - generate / seconds
            load = Load(seconds, seconds - self.learn, idle, self.current)
            self.current = self.scaler.decide(self.current, load)
            self.seen.append(self.current)
        return self.seen


def test_it_grows_while_growing_helps() -> None:
    run = Run(work=30.0, learn=4.0)
    assert sorted(set(run.go(40))) == run.seen[:1] + sorted(set(run.seen) - {1})
    assert 6 <= run.current <= 8 and run.scaler.ceiling is None
    assert "generators: learners waited" in run.scaler.decision


def test_a_growth_in_vain_is_taken_back_and_not_tried_again_for_a_while() -> None:
    run = Run(work=30.0, learn=4.0, useful=2)  # two fill the cores: a third brings nothing
    run.go(30)
    assert run.current == 2
    assert max(run.seen) > 2, "it was tried"
    assert "did not shorten the wait" in run.scaler.decision
    tried = len(run.seen)
    run.go(AFTER_VAIN - 30)
    assert set(run.seen[tried:]) == {2}
    assert max(run.go(40)[tried:]) > 2, "then it is tried again: the cluster may have grown"


def test_the_first_decision_of_a_run_outside_its_limits() -> None:
    scaler = Autoscaler(Limits(2, 4))
    assert scaler.decide(1, Load(1.0, 0.0, 0.0, 1)) == 2
    assert scaler.decision == "1 → 2 generators: it is asked for"


def test_shrinking_is_no_growth_to_be_judged() -> None:
    run = Run(work=4.0, learn=20.0)
    run.current = 8
    assert run.go(40)[-1] == 1
    assert run.scaler.ceiling is None
