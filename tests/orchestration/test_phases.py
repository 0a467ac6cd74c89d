"""Phases on Ray: their rows, who has room, what is said of one that fails, stalls or dies."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from rlhf_ray.orchestration import phases
from rlhf_ray.orchestration.phases import Call, Row, run_phases
from rlhf_ray.orchestration.shares import Share
from tests.running.jobs import ROOT, wait_for

KILLED = """
import os, sys
sys.path.insert(0, ".")
from rlhf_ray import cli
from rlhf_ray.orchestration.phases import run_phases
from rlhf_ray.orchestration.session import ray_session
from rlhf_ray.orchestration.shares import Share

def phase():
    yield {"step": 1}
    os.kill(os.getpid(), 9)

def main():
    options = {"threads": 1, "name": "sft mine", "start_timeout": 60, "log": print}
    with ray_session():
        list(run_phases(phase, [((), {})], share=Share(0.5, 0), **options))

cli.run(main)
"""
ONE: list[Call] = [((), {})]


def running(
    phase: Callable[..., Iterator[Row]], calls: list[Call], share: Share, **options: Any
) -> Iterator[tuple[int, Row]]:
    given = {"threads": 2, "name": "sft mine", "start_timeout": 60.0, "log": print} | options
    return run_phases(phase, calls, share=share, **given)


def nothing() -> Iterator[Row]:
    """A phase that has no rows."""
    yield from ()


def nothing_is_reserved() -> None:
    """No placement group is there, or asked for; Ray removes them a moment later."""

    def reserved() -> list[Any]:
        table = ray.util.placement_group_table().values()
        return [group for group in table if group["state"] != "REMOVED"]

    wait_for(lambda: not reserved(), seconds=20, why="a group outlives its phase")


def test_a_killed_phase_is_named_with_what_to_do(ray_address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=ROOT,
        timeout=120,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 2, done.stdout[-2000:]
    assert "Traceback" not in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("error: the process of sft mine died")
    assert "start the same command again" in last


def test_no_call_has_no_rows() -> None:
    """An ensemble whose members were all trained before it was killed."""
    assert not list(running(nothing, [], Share(0.5, 0)))


def test_more_calls_than_room_all_end(joined: None) -> None:
    def phase(name: str, *, last: int) -> Iterator[Row]:
        for step in range(1, last + 1):
            yield {"step": step, "name": name, "threads": os.environ["OMP_NUM_THREADS"]}

    calls: list[Call] = [((name,), {"last": last}) for name, last in (("a", 2), ("b", 1), ("c", 3))]
    rows = list(running(phase, calls, Share(0.25, 0)))
    assert {place: row["name"] for place, row in rows} == {0: "a", 1: "b", 2: "c"}
    steps = [[row["step"] for at, row in rows if at == place] for place in range(3)]
    assert steps == [[1, 2], [1], [1, 2, 3]]
    assert {row["threads"] for _, row in rows} == {"1"}, "two are divided among three"
    nothing_is_reserved()


def test_a_phase_takes_over_the_process_of_the_one_before_where_it_is_asked_to(
    joined: None,
) -> None:
    def phase() -> Iterator[Row]:
        yield {"pid": os.getpid()}

    def process(**options: Any) -> int:
        ((_, row),) = running(phase, ONE, Share(0.5, 0), **options)
        return row["pid"]

    first = process(another_follows=True)
    assert process() == first, "its imports are made once"
    ended = f"/proc/{first}"
    wait_for(lambda: not os.path.exists(ended), seconds=20, why="the last one keeps its memory")


def test_what_a_phase_raises_comes_after_where_it_did(joined: None) -> None:
    def phase() -> Iterator[Row]:
        yield {"step": 1}
        the_place_that_failed()

    def the_place_that_failed() -> None:
        raise ValueError("a broken row")

    with pytest.raises(ValueError, match=r"^a broken row$") as caught:
        list(running(phase, ONE, Share(0.5, 0)))
    assert "the_place_that_failed" in str(caught.value.__cause__)
    nothing_is_reserved()


def test_what_there_is_no_room_for_is_said_and_ended(
    joined: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "ROOM_AFTER", 1.0)
    said: list[str] = []
    with pytest.raises(ValueError, match=r"sft mine was not placed in \d s: ") as caught:
        list(running(nothing, ONE, Share(50, 0), start_timeout=3.0, log=said.append))
    assert "it needs [{'CPU': 50.0}], and free now are {'CPU': 2.0}" in str(caught.value)
    assert said and said[0].startswith("waiting for sft mine: room for 1 s; it needs [{'CPU': 50")
    nothing_is_reserved()


def test_a_phase_that_stalls_is_ended(joined: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "ROOM_AFTER", 0.5)

    def phase() -> Iterator[Row]:
        import time

        yield {"step": 1}
        time.sleep(600)

    rows = running(phase, ONE, Share(0.5, 0))
    assert next(rows) == (0, {"step": 1})
    monkeypatch.setattr(phases, "ROW_TIMEOUT", 2.0)
    with pytest.raises(TimeoutError, match=r"sft mine gave no row in \d s"):
        next(rows)
    nothing_is_reserved()


def test_whoever_stops_listening_ends_what_runs(joined: None) -> None:
    def phase() -> Iterator[Row]:
        yield from ({"step": step} for step in range(10**9))

    rows = running(phase, ONE * 2, Share(0.5, 0))
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    nothing_is_reserved()
