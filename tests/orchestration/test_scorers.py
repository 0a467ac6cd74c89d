"""Scorers that hang, on a real Ray; and what the driver says where there is no room."""

import time
from pathlib import Path
from typing import Any

import pytest
import ray

from rlhf_ray.actors.presence import LIVENESS, Presence, present
from rlhf_ray.actors.scorers import ScorerSpec
from rlhf_ray.config import Reward
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.orchestration import scorers as module
from rlhf_ray.orchestration.placement import reserve
from rlhf_ray.orchestration.reactor import Late, Reactor
from rlhf_ray.orchestration.scorers import ROLES, ScorerPools
from rlhf_ray.orchestration.shares import Share

pytestmark = pytest.mark.usefixtures("joined")


class OnceStuck:
    """Scores one shard after the other; its first process hangs in each. A file counts them."""

    def __init__(self, spec: ScorerSpec, *_: Any) -> None:
        self._begun = Path(spec.policy_path)
        self._stuck = not self._begun.exists()
        self._begun.touch()

    @ray.method(concurrency_group=LIVENESS)
    def beat(self) -> Presence:
        return present()

    def ready(self) -> Presence:
        return present()

    def score(self, *shard: Any) -> tuple[Any, Presence]:
        if self._stuck:
            time.sleep(600)
        return shard[0], present()


class TwoSecondsEach(OnceStuck):
    """Slow, and well."""

    def score(self, *shard: Any) -> tuple[Any, Presence]:
        time.sleep(2)
        return shard[0], present()


class Stuck(OnceStuck):
    """Each of its processes hangs."""

    def score(self, *shard: Any) -> tuple[Any, Presence]:
        time.sleep(600)
        return shard[0], present()


class LoadsForEver(OnceStuck):
    """A model that takes longer to load than a test."""

    def ready(self) -> Presence:
        time.sleep(600)
        return present()


class DescribesForEver(OnceStuck):
    """A gold function that hangs; a line for each process that it does so in."""

    def describe(self, *args: Any) -> tuple[list[Any], Presence]:
        with self._begun.open("a") as file:
            file.write("described\n")
        time.sleep(600)
        return [], present()


class SilentAtFirst(OnceStuck):
    """Its first process answers no heartbeat."""

    @ray.method(concurrency_group=LIVENESS)
    def beat(self) -> Presence:
        if self._stuck:
            time.sleep(600)
        return present()


class ScoresForEver(OnceStuck):
    """Scores nothing, and describes at once."""

    def score(self, *shard: Any) -> tuple[Any, Presence]:
        time.sleep(600)
        return shard[0], present()

    def describe(self, shards: list[Any], limit: int, asked: Any) -> tuple[list[Any], Presence]:
        return shards, present()


def pools_of(
    reactor: Reactor,
    path: Path,
    run: str,
    log: list[str],
    *,
    count: int = 1,
    start_timeout: float = 60.0,
    silent_after: float = 60.0,
) -> ScorerPools:
    return ScorerPools(
        reactor,
        ScorerSpec(str(path), Reward(), "float32", 1.0),
        Share(0.0, 0.0),
        Prompts([], [], 0, 0),
        count=count,
        threads=2,
        run=run,
        start_timeout=start_timeout,
        silent_after=silent_after,
        log=log.append,
    )


def test_one_that_loads_for_long_names_the_setting(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "ROLES", dict.fromkeys(ROLES, LoadsForEver))
    pools = pools_of(Reactor(), tmp_path / "begun", "slow", [], start_timeout=1.0)
    try:
        with pytest.raises(TimeoutError, match=r"longer to load .* --cluster.start-timeout-s 1$"):
            pools.wait_ready()
    finally:
        pools.shutdown()


@pytest.mark.slow
def test_samples_that_are_never_described_are_asked_for_twice(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "ROLES", dict.fromkeys(ROLES, DescribesForEver))
    pools = pools_of(Reactor(), tmp_path / "begun", "described", [])
    try:
        pools.wait_ready()
        with pytest.raises(Late, match=r"did not finish `describe samples` in 20 s"):
            pools.describe([], None, 20.0)
        assert (tmp_path / "begun").read_text().count("described") == 2
    finally:
        pools.shutdown()


@pytest.mark.slow
def test_samples_are_described_by_who_has_nothing_to_score(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "ROLES", dict.fromkeys(ROLES, ScoresForEver))
    pools = pools_of(Reactor(), tmp_path / "begun", "free", [], count=2)
    try:
        pools.wait_ready()
        pools.score("table", what="shard 0", timeout=600.0, then=lambda columns, error: None)
        assert pools.describe([("a",), ("b",), ("c",)], 2, 20.0) == [("a",), ("b",)]
    finally:
        pools.shutdown()


@pytest.mark.slow
def test_one_that_was_started_anew_while_idle_is_listened_to_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "ROLES", dict.fromkeys(ROLES, SilentAtFirst))
    log: list[str] = []
    pools = pools_of(reactor := Reactor(), tmp_path / "begun", "idle", log, silent_after=10.0)
    try:
        pools.wait_ready()
        reactor.pump_until(lambda: any(row.restarts for row in pools.standing()))
        again = next(row for row in pools.standing() if row.restarts)
    finally:
        pools.shutdown()
    assert again.state == "idle" and "did not finish `heartbeat`" in again.last_error
    assert "it is started anew" in log[0]


@pytest.mark.slow
def test_one_process_that_hangs_in_all_of_its_shards_is_ended_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "ROLES", dict.fromkeys(ROLES, OnceStuck))
    log: list[str] = []
    pools = pools_of(reactor := Reactor(), tmp_path / "begun", "stuck", log)
    try:
        pools.wait_ready()
        done: list[Exception | None] = []
        for shard in range(3):
            pools.score(
                f"table {shard}",
                what=f"shard {shard}",
                timeout=20.0,
                then=lambda columns, error: done.append(error),
            )
        reactor.pump_until(lambda: len(done) == 3)
    finally:
        pools.shutdown()
    assert done == [None] * 3
    stuck = [row for row in pools.standing() if row.restarts]
    assert [row.restarts for row in stuck] == [1] * len(stuck) and stuck
    assert all("did not finish `shard" in row.last_error for row in stuck)
    assert len(log) == len(stuck)


@pytest.mark.slow
def test_a_deadline_is_of_a_shard_not_of_all_that_wait_before_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "ROLES", dict.fromkeys(ROLES, TwoSecondsEach))
    pools = pools_of(reactor := Reactor(), tmp_path / "begun", "busy", log := [])
    try:
        pools.wait_ready()
        done: list[Exception | None] = []
        for shard in range(6):
            pools.score(
                f"table {shard}",
                what=f"shard {shard}",
                timeout=5.0,
                then=lambda columns, error: done.append(error),
            )
        reactor.pump_until(lambda: len(done) == 6)
    finally:
        pools.shutdown()
    assert done == [None] * 6 and log == []
    assert [row.restarts for row in pools.standing()] == [0, 0]


@pytest.mark.slow
def test_a_shard_that_no_process_scores_in_time_names_the_setting(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "ROLES", dict.fromkeys(ROLES, Stuck))
    pools = pools_of(reactor := Reactor(), tmp_path / "begun", "slow shards", [])
    try:
        pools.wait_ready()
        done: list[Exception | None] = []
        pools.score(
            "table", what="shard 0", timeout=15.0, then=lambda columns, error: done.append(error)
        )
        reactor.pump_until(lambda: bool(done))
    finally:
        pools.shutdown()
    assert isinstance(done[0], TimeoutError)
    assert "give a shard longer than --cluster.shard-timeout-s 15" in str(done[0])


def test_what_waits_for_room_says_what_it_needs_and_what_is_free() -> None:
    with pytest.raises(ValueError) as caught:
        reserve(Reactor(), [{"CPU": 64.0}], strategy="PACK", who="learner group", timeout=2.0)
    assert str(caught.value).startswith("learner group was not placed in 2 s: it needs [{'CPU': 64")
    assert "free now are {'CPU': " in str(caught.value)


def test_what_waits_for_room_and_is_ended_otherwise_reserves_nothing() -> None:
    def interrupted(now: float) -> None:
        raise KeyboardInterrupt

    reactor = Reactor()
    reactor.every(0.0, interrupted)
    with pytest.raises(KeyboardInterrupt):
        reserve(reactor, [{"CPU": 1.0}], strategy="PACK", who="learner group", timeout=30.0)
    states = {group["state"] for group in ray.util.placement_group_table().values()}
    assert states <= {"REMOVED"}
