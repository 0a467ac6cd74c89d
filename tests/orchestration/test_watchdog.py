"""The watchdog names whom a stalled run waits for, and does not repeat itself."""

from rlhf_ray.orchestration.reactor import Reactor
from rlhf_ray.orchestration.watchdog import MOST_LINES, Watchdog
from rlhf_ray.simulation.world import SimRef, World


class Bench:
    def __init__(self) -> None:
        self.world, self.log = World(), []
        self.reactor = Reactor(clock=self.world.clock, wait=self.world.wait, get=self.world.get)
        Watchdog(self.reactor, log=self.log.append, after=60.0)

    def wait_for(self, who: str, what: str, ref: SimRef | None = None) -> None:
        self.reactor.when(ref or SimRef(), lambda outcome: None, who=who, what=what, timeout=3600)

    def run(self, seconds: float) -> None:
        until = self.world.now + seconds
        self.reactor.pump_until(lambda: self.world.now >= until)


def test_a_stalled_call_is_named_with_its_actor_and_seconds() -> None:
    bench = Bench()
    bench.wait_for("learner-1", "update")
    bench.run(59)
    assert bench.log == []
    bench.run(3)
    (line,) = bench.log
    assert line.startswith("waiting for learner-1: `update` for 6")
    assert line.endswith("given up after 3600 s")


def test_it_is_named_again_when_the_wait_has_doubled() -> None:
    bench = Bench()
    bench.wait_for("learner-1", "update")
    bench.run(1000)
    assert len(bench.log) == 5, "at 60, 120, 240, 480 and 960 s"


def test_the_longest_waits_are_named_and_not_all() -> None:
    bench = Bench()
    for i in range(8):
        bench.wait_for(f"generator-{i}", "start")
        bench.run(1)
    bench.run(70)
    assert [line.split(":")[0][-1] for line in bench.log[:2]] == ["0", "1"]
    bench = Bench()
    for i in range(8):
        bench.wait_for(f"generator-{i}", "start")
    bench.run(70)
    assert len(bench.log) == MOST_LINES


def test_what_ends_in_time_is_not_named() -> None:
    bench = Bench()
    bench.wait_for("reward-0", "shard 3 of step 2", bench.world.later(59.0))
    bench.run(200)
    assert bench.log == []
