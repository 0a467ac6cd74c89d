"""The line that jobs/soak.py fits to a role's memory."""

import pytest

from jobs.soak import growth


def test_memory_that_does_not_grow_and_memory_that_does() -> None:
    flat = [(float(t), 100_000_000 + (t % 2) * 1000) for t in range(200)]
    assert growth(flat, since=50.0)["growth"] == pytest.approx(0.0, abs=1e-4)
    rising = [(float(t), 100_000_000 + t * 100_000) for t in range(201)]
    found = growth(rising, since=100.0)
    assert found["mb_first"] == pytest.approx(110.0)
    assert found["growth"] == pytest.approx(10 / 110)


def test_what_came_before_the_window_does_not_count() -> None:
    warming = [(float(t), t * 1_000_000) for t in range(50)]
    steady = [(50.0 + t, 80_000_000) for t in range(100)]
    assert growth(warming + steady, since=50.0)["growth"] == pytest.approx(0.0, abs=1e-9)
