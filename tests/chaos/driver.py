"""A run of jobs/ppo.py that is struck at chosen points, and that writes down what it consumed.

python tests/chaos/driver.py STRIKES.json JOURNAL.jsonl [arguments of jobs/ppo.py]

The driver's own calls are watched, not replaced: each goes through to the real actor, and at the
chosen occurrence of a point a signal goes to a real process.
"""

import contextlib
import functools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ray

from jobs import ppo
from rlhf_ray import cli
from rlhf_ray.data.ids import TRAIN
from rlhf_ray.orchestration.cluster import Cluster
from rlhf_ray.orchestration.handles import RayGenerator
from rlhf_ray.orchestration.learners import LearnerGroup
from rlhf_ray.orchestration.scorers import ScorerPools
from rlhf_ray.training.record import Record
from tests.chaos.strikes import BEFORE_THE_LOOP, DRIVER, Strike
from tests.running.jobs import actor_processes

FOUND_WITHIN = 30.0  # seconds for a process that is just being made to show up


def find(strike: Strike) -> int | None:
    """The process that a strike is for; None where none of its role is alive yet."""
    if strike.role == DRIVER:
        return os.getpid()
    found = sorted(actor_processes(strike.role), key=lambda p: (p.create_time(), p.pid))
    return found[strike.which % len(found)].pid if found else None


class Watched:
    """Counts what happens and strikes when it is time."""

    def __init__(self, strikes: list[Strike], journal: Path) -> None:
        self._left, self._journal = dict(enumerate(strikes)), journal
        self._seen: Counter = Counter()
        self._counting = False
        self._update_seconds = 0.0

    def note(self, **facts: Any) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def watch(self, owner: type, method: str, point: str, *, after: bool = False) -> None:
        """`point` is reached when `method` is called, or when it has returned.

        Processes are looked for before it, for that takes longer than some states last.
        """
        aimed: list[tuple[int, Strike, int | None]] = []

        def aim(*args: Any) -> None:
            if not self._counting and point != BEFORE_THE_LOOP:
                return
            self._seen[point] += 1
            now = point, self._seen[point]
            due = [
                (i, strike) for i, strike in self._left.items() if (strike.at, strike.time) == now
            ]
            aimed[:] = [(i, strike, find(strike)) for i, strike in due]
            for i, _ in due:
                del self._left[i]
            if not after:
                fire()

        def fire(*args: Any) -> None:
            for i, strike, pid in aimed:
                delay = strike.delay + strike.part_of_update * self._update_seconds
                threading.Timer(delay, self._hit, [i, strike, pid]).start()
            aimed.clear()

        self._wrap(owner, method, aim, fire if after else None)

    def count_from(self, owner: type, method: str) -> None:
        """Points are counted once `method` has returned, and anew each time that it has."""

        def begin(*args: Any) -> None:
            self._counting = True
            self._seen.clear()

        self._wrap(owner, method, None, begin)

    def _hit(self, place: int, strike: Strike, pid: int | None) -> None:
        deadline = time.monotonic() + FOUND_WITHIN
        while pid is None and time.monotonic() < deadline:
            time.sleep(0.05)
            pid = find(strike)
        self.note(struck=asdict(strike), place=place, pid=pid)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, strike.signal)

    def _wrap(
        self,
        owner: type,
        method: str,
        before: Callable[..., None] | None,
        after: Callable[..., None] | None,
    ) -> None:
        original = getattr(owner, method)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before:
                before(*args)
            result = original(*args, **kwargs)
            if after:
                after(result, *args)
            return result

        setattr(owner, method, wrapped)

    # What was consumed

    def record_consumption(self) -> None:
        """Note ids and versions of every rollout that an update has learned from."""
        fetched: list[Any] = []
        incarnation = [0]
        began = [0.0]

        def fetch(gone: list[int], group: LearnerGroup, shards: Any) -> None:
            fetched[:] = ray.get([shard[0] for shard in shards]) if not gone else []

        def start(group: LearnerGroup, step: int) -> None:
            began[0] = time.monotonic()

        def update(stats: Any, group: LearnerGroup, step: int) -> None:
            self._update_seconds = time.monotonic() - began[0]
            rows = [row for table in fetched for row in table.to_pylist()]
            self.note(
                consumed=step,
                incarnation=incarnation[0],
                ids=[row["rollout_id"] for row in rows],
                spans=[row["version_spans"] for row in rows],
            )

        def publish(group: LearnerGroup, version: Any) -> None:
            incarnation[0] = version.incarnation

        def begin(result: Any, cluster: Cluster, *args: Any) -> None:
            self.note(prompts=len(cluster.rollouts._prompts[TRAIN]))

        self._wrap(LearnerGroup, "fetch", None, fetch)
        self._wrap(LearnerGroup, "update", start, update)
        self._wrap(LearnerGroup, "publish", publish, None)
        self._wrap(Cluster, "start", None, begin)


def main() -> int:
    strikes = [Strike(**row) for row in json.loads(Path(sys.argv[1]).read_text())]
    watched = Watched(strikes, Path(sys.argv[2]))
    watched.record_consumption()
    watched.watch(Record, "prepare", BEFORE_THE_LOOP)
    watched.count_from(Record, "prepare")  # it asks generators and scorers for as much as a step
    watched.watch(RayGenerator, "__init__", "generator made", after=True)
    watched.watch(RayGenerator, "load", "generator loads", after=True)
    watched.watch(RayGenerator, "generate", "generator generates", after=True)
    watched.watch(ScorerPools, "_ask", "scorer scores", after=True)
    watched.watch(LearnerGroup, "update", "learner updates")
    watched.watch(LearnerGroup, "publish", "learner publishes")
    watched.watch(LearnerGroup, "save", "learner saves")
    watched.watch(LearnerGroup, "load", "learner loads")
    sys.argv[1:] = sys.argv[3:]
    return ppo.main()


if __name__ == "__main__":
    cli.run(main)
