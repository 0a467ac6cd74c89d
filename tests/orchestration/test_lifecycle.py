"""A generator's life under a fake clock: legal transitions, silence, restart budget, places."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.orchestration.lifecycle import Event, Life, RestartBudget, State, after
from rlhf_ray.orchestration.members import Places

# Written out anew from the drawing in the module's docstring, not taken from its table.
LEGAL = {
    (State.STARTING, Event.READY): State.STALE,
    (State.STALE, Event.LOADED): State.SERVING,
    (State.STALE, Event.OUTDATED): State.STALE,
    (State.SERVING, Event.OUTDATED): State.STALE,
    (State.STARTING, Event.DRAIN): State.DRAINING,
    (State.STALE, Event.DRAIN): State.DRAINING,
    (State.SERVING, Event.DRAIN): State.DRAINING,
    (State.DRAINING, Event.DRAINED): State.DEAD,
    (State.STARTING, Event.SILENT): State.SUSPECT,
    (State.STALE, Event.SILENT): State.SUSPECT,
    (State.SERVING, Event.SILENT): State.SUSPECT,
    (State.DRAINING, Event.SILENT): State.SUSPECT,
    (State.STARTING, Event.DIED): State.DEAD,
    (State.STALE, Event.DIED): State.DEAD,
    (State.SERVING, Event.DIED): State.DEAD,
    (State.DRAINING, Event.DIED): State.DEAD,
    (State.SUSPECT, Event.DIED): State.DEAD,
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_transition(state: State, event: Event) -> None:
    if (state, event) in LEGAL:
        assert after(state, event) is LEGAL[state, event]
    else:
        with pytest.raises(AssertionError, match=f"{event} cannot happen to a generator .*{state}"):
            after(state, event)


@given(st.lists(st.sampled_from(list(Event)), max_size=30))
def test_nobody_serves_without_loading_and_nobody_returns_from_the_dead(events: list) -> None:
    life, seen = Life("g", 0.0), []
    for event in events:
        if (life.state, event) in LEGAL:
            life.happen(event)
            seen.append((event, life.state))
    for (_, before), (event, now) in itertools.pairwise(seen):
        assert before is not State.DEAD
        assert now is not State.SERVING or event is Event.LOADED


@pytest.mark.parametrize(
    ("state", "seconds", "silent"),
    [
        (State.STARTING, 1000, False),
        (State.STALE, 20, False),
        (State.STALE, 21, True),
        (State.SERVING, 21, True),
        (State.DRAINING, 21, True),
        (State.SUSPECT, 1000, False),
        (State.DEAD, 1000, False),
    ],
)
def test_silence_depends_on_the_state(state: State, seconds: float, silent: bool) -> None:
    life = Life("g", born=100.0, state=state)
    assert life.is_silent(100 + seconds, after=20) == silent


def test_late_news_does_not_make_it_older() -> None:
    life = Life("g", born=0.0, state=State.SERVING)
    life.heard(50.0)
    life.heard(30.0)
    assert life.last_heard == 50.0


def test_the_budget_doubles_and_ends() -> None:
    budget = RestartBudget(first_delay=1.0, quiet=100.0, limit=4)
    again = [budget.died(now, served=5.0) for now in (10, 10, 20, 30, 40)]
    assert again == [10, 11, 22, 34, None]


def test_who_served_long_has_the_whole_budget_again() -> None:
    budget = RestartBudget(first_delay=1.0, quiet=100.0, limit=2)
    deaths = ((0, 0), (1, 0), (102, 101), (103, 0), (104, 100))
    assert [budget.died(now, served=served) for now, served in deaths] == [0, 2, 102, 104, None]


def test_slow_starts_that_fail_use_the_budget_up() -> None:
    budget = RestartBudget(quiet=120.0, limit=3)
    assert budget.died(3000, served=0.0) and budget.died(6000, served=0.0)
    assert budget.died(9000, served=0.0) and budget.died(12_000, served=0.0) is None


def test_it_serves_since_it_first_held_a_version() -> None:
    life = Life("g", born=0.0, state=State.STALE)
    assert life.served(50.0) == 0.0
    life.loaded(60.0)
    life.happen(Event.OUTDATED)
    life.loaded(70.0)
    assert life.served(100.0) == 40.0


def test_a_new_pool_fills_all_its_places_at_once() -> None:
    assert len(Places().take(5, now=0.0)) == 5


def test_a_place_waits_for_its_own_delay_and_others_do_not() -> None:
    places = Places()
    (budget,) = places.take(1, now=0.0)
    assert places.vacate(budget, 10.0, served=0.0)
    assert places.take(1, 10.0) == [budget]
    assert places.vacate(budget, 11.0, served=0.0)  # its second death in a row: one second
    fresh = places.take(3, 11.0)
    assert len(fresh) == 2 and budget not in fresh
    assert places.take(1, 11.5) == []
    assert places.take(1, 12.0) == [budget]


def test_a_place_that_keeps_dying_is_given_up_and_a_new_wish_tries_it_again() -> None:
    places, budget, now = Places(), RestartBudget(limit=3), 0.0
    while places.vacate(budget, now, served=0.0):
        (again,) = places.take(1, now + 1000)
        assert again is budget
        now += 1
    assert (places.given_up, budget.deaths) == (1, 4)
    places.reset()
    assert places.given_up == 0


def test_rare_deaths_among_hundreds_never_shrink_the_pool() -> None:
    places, members, now = Places(), Places().take(256, 0.0), 0.0
    for death in range(2000):
        now += 10.0  # each place dies every 2,560 s
        budget = members.pop(0)
        assert places.vacate(budget, now, served=2560.0), f"death {death}"
        members += places.take(1, now)
    assert len(members) == 256


def test_places_that_are_no_longer_wished_for_are_forgotten() -> None:
    places = Places()
    for budget in places.take(3, 0.0):
        places.vacate(budget, 0.0, served=0.0)
        places.vacate(budget, 0.0, served=0.0)
    assert places.take(0, 0.0) == []
    assert [budget.deaths for budget in places.take(3, 0.0)] == [0, 0, 0]
