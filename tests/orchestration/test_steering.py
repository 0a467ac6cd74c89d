"""Wishes from the control actor reach the pool of a run on simulated generators."""

from typing import Any

import pytest

from rlhf_ray.actors.control import ControlActor, Report, Wish
from rlhf_ray.orchestration.steering import Steering
from rlhf_ray.simulation.run import Scenario, SimulatedRun, SimulatedStage
from rlhf_ray.simulation.world import SimRef


class Remote:
    """A control actor that answers after 10 ms of simulated time."""

    def __init__(self, stage: SimulatedStage, generators: int) -> None:
        self.actor, self._stage = ControlActor(generators), stage
        self.exchange = self
        self.hangs, self.renewed = False, 0

    def renew(self) -> None:
        self.actor = ControlActor(1)
        self.hangs, self.renewed = False, self.renewed + 1

    def remote(self, report: Report) -> SimRef:
        if self.hangs:
            return SimRef()
        return self._stage.world.later(0.01, self.actor.exchange(report))


class Steered:
    def __init__(self, generators: int = 1) -> None:
        self.stage = SimulatedStage(Scenario(generators=generators))
        self.run = SimulatedRun(self.stage.scenario, self.stage)
        self.remote, self.log = Remote(self.stage, generators), []
        self.control = self.remote.actor
        self.steering = Steering(
            self.run.reactor,
            self.remote,
            self.run.pool,
            renew=self.remote.renew,
            generators=generators,
            standing=list,
            log=self.log.append,
        )
        self.run.pool.scale(generators)
        self.run._go_back_to(0, incarnation=0)
        self.until(generators)

    def until(self, serving: int) -> None:
        began = self.stage.world.now
        self.run.reactor.pump_until(
            lambda: self.run.pool.serving() == serving or self.stage.world.now > began + 600
        )
        assert self.run.pool.serving() == serving

    def for_seconds(self, seconds: float) -> None:
        until = self.stage.world.now + seconds
        self.run.reactor.pump_until(lambda: self.stage.world.now >= until)

    def iterations(self, count: int, **measured: Any) -> None:
        for step in range(count):
            row = {"step": step, "of": 99, "time/step": 10.0, "time/wait_rollouts": 0.0}
            self.for_seconds(1.0)
            self.steering.measured(row | measured)


def test_a_wish_is_followed_up_and_down() -> None:
    steered = Steered()
    assert steered.control.scale(2, relative=True) == 3
    steered.until(3)
    assert steered.control.scale(-2, relative=True) == 1
    steered.until(1)
    assert [line.split(",")[0] for line in steered.log] == ["1 → 3 generators", "3 → 1 generators"]


def test_a_number_is_followed_once_each_time_that_it_is_wished_for() -> None:
    steered = Steered()
    scaled: list[int] = []
    scale = steered.run.pool.scale
    steered.run.pool.scale = lambda wanted: scaled.append(wanted) or scale(wanted)
    for _ in range(2):
        steered.control.scale(1)
        steered.for_seconds(5)
    assert scaled == [1, 1], "a place that was given up is tried again"


def test_more_than_what_is_not_known_yet_is_refused() -> None:
    steered = Steered()
    steered.control.scale(3)
    steered.until(3)
    steered.remote.actor = control = ControlActor(1)
    with pytest.raises(ValueError, match="has yet to say how many generators it has: ask again"):
        control.scale(1, relative=True)
    steered.for_seconds(1)
    assert control.scale(1, relative=True) == 4


def test_a_control_actor_that_hangs_is_made_anew_and_learns_what_was_wished() -> None:
    steered = Steered()
    steered.control.scale(3, relative=False)
    steered.until(3)
    steered.remote.hangs = True
    steered.for_seconds(29)
    assert not steered.remote.renewed
    steered.for_seconds(3)
    assert steered.remote.renewed == 1 and steered.remote.actor._wish.generators == 3
    assert "control did not finish `exchange` in 30 s; it is started anew" in steered.log
    assert steered.run.pool.wanted == 3


def test_learners_that_wait_bring_generators_by_themselves_and_idleness_takes_them() -> None:
    steered = Steered()
    steered.control.scale_by_itself(1, 4)
    steered.for_seconds(2)
    steered.iterations(3, **{"time/wait_rollouts": 8.0})
    assert steered.run.pool.wanted == 2
    steered.until(2)
    steered.iterations(8, **{"time/wait_rollouts": 0.0})  # nobody holds a shard here: all idle
    assert steered.run.pool.wanted == 1
    steered.for_seconds(2)
    report = steered.control._report
    assert steered.control._wish.auto == (1, 4) and report.wanted == 1
    assert report.decision == "2 → 1 generators: learners waited 0% of the time, " + (
        "generators were idle 100%"
    )
    assert any(line.startswith("autoscaling: 1 → 2") for line in steered.log)


def test_limits_hold_at_once_and_a_number_ends_autoscaling() -> None:
    steered = Steered(generators=4)
    steered.control.scale_by_itself(1, 2)
    steered.until(2)
    steered.for_seconds(2)
    assert steered.control.scale(1, relative=True) == 3, "one more than there are"
    steered.until(3)
    steered.iterations(6, **{"time/wait_rollouts": 9.0})
    assert steered.run.pool.wanted == 3


def test_a_control_actor_that_was_restarted_hears_what_was_wished() -> None:
    steered = Steered()
    steered.control.scale(2)
    steered.until(2)
    steered.remote.actor = ControlActor(1)
    steered.for_seconds(3)
    assert steered.remote.actor._wish.generators == 2
    assert steered.run.pool.wanted == 2


def test_what_is_wished_before_it_hears_that_is_kept_and_takes_nothing_back() -> None:
    steered = Steered()
    steered.control.scale(2)
    steered.until(2)
    steered.remote.actor = ControlActor(1)
    steered.remote.actor.pause(paused=True)
    steered.for_seconds(3)
    wish = steered.steering.wish
    assert wish == Wish(generators=2, asked=wish.asked, paused=True)
    assert steered.run.pool.wanted == 2


def test_the_report_names_every_generator_and_what_is_waited_for() -> None:
    steered = Steered(generators=2)
    steered.run.reactor.when(
        SimRef(), lambda outcome: None, who="learner-0", what="update", timeout=99
    )
    steered.for_seconds(3)
    report = steered.control._report
    generators = [actor for actor in report.actors if actor.role == "generator"]
    assert [(g.name, g.state, g.version) for g in generators] == [
        ("generator-0", "serving", "0.0"),
        ("generator-1", "serving", "0.0"),
    ]
    assert report.waits[0][:2] == ("learner-0", "update") and report.waits[0][2] >= 2


def test_a_dead_one_s_error_is_shown_with_its_successor() -> None:
    steered = Steered()
    steered.stage.generators[0]._die()
    steered.for_seconds(2)
    steered.until(1)
    steered.for_seconds(1)
    (found,) = [a for a in steered.control._report.actors if a.role == "generator"]
    assert found.name == "generator-1" and found.restarts == 1
    assert found.last_error.startswith("The actor")
