"""The real pool, ledger, reactor and rollout service over simulated generators that fail.

SimulatedRun checks as it goes that each step consumes the rollouts that were asked for, each once,
within the bound on staleness, of the incarnation that survives, and that nobody serves an old
version.
"""

import random
from functools import partial

import pytest
from ray.exceptions import RayActorError, RayTaskError

from rlhf_ray.data.ids import HELDOUT, TRAIN, Version
from rlhf_ray.orchestration.ledger import BatchKey
from rlhf_ray.orchestration.lifecycle import State
from rlhf_ray.simulation.run import Scenario, SimulatedRun, SimulatedStage, simulate
from rlhf_ray.simulation.world import NEVER, Faults, Pace, SimGenerator, SimRef, World
from rlhf_ray.weights.buckets import Published
from rlhf_ray.weights.object_store import VersionGone

ROUGH = Faults(mean_life=200.0, slow_beat=0.05, slow_beat_s=8.0, bad_start=0.15, lost_scores=0.02)
STEPS, PROMPTS, SAMPLES = 8, 48, 2


def rough_scenario(seed: int) -> Scenario:
    """Any number of generators and any bound; scaled, and learners lost, at any steps."""
    draw = random.Random(seed)
    return Scenario(
        generators=draw.randint(1, 12),
        max_staleness=draw.randint(0, 4),
        iterations=STEPS,
        prompts=PROMPTS,
        samples=SAMPLES,
        depth=draw.randint(1, 4),
        seed=seed,
        faults=ROUGH,
        rescale={draw.randrange(1, STEPS): draw.randint(1, 16) for _ in range(draw.randint(0, 3))},
        lost_learners=frozenset(draw.sample(range(STEPS), draw.randint(0, 3))),
        evaluate_every=draw.choice([0, 2, 3]),
    )


def check_rough(seed: int) -> None:
    scenario = rough_scenario(seed)
    measured = simulate(scenario)
    assert measured.counts["consumed"] == STEPS * PROMPTS * SAMPLES
    assert max(measured.staleness) <= scenario.max_staleness


@pytest.mark.parametrize("seed", range(30))
def test_whatever_fails_nothing_is_lost_and_nothing_done_twice(seed: int) -> None:
    check_rough(seed)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(1, 6))
def test_hundreds_of_schedules_of_faults(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        check_rough(seed)


def test_the_same_seed_is_the_same_run_to_the_last_digit() -> None:
    scenario = Scenario(generators=6, max_staleness=1, seed=3, faults=ROUGH)
    first, second = simulate(scenario), simulate(scenario)
    assert first.seconds == second.seconds and first.log == second.log and first.log


def test_an_undisturbed_run_requeues_and_restarts_nothing() -> None:
    measured = simulate(Scenario(generators=4, max_staleness=1))
    assert measured.restarts == 0 and faults(measured.log) == []
    assert not measured.counts["requeued"] and not measured.counts["refused"]


def test_running_ahead_keeps_generators_busier() -> None:
    busy = [
        simulate(Scenario(generators=16, prompts=512, max_staleness=k, iterations=12)).busy
        for k in (0, 1)
    ]
    assert busy[1] > busy[0] + 0.1


def faults(log: list[str]) -> list[str]:
    """What is no fault (a generator that serves) left out."""
    return [line for line in log if " serves, " not in line]


class Started:
    """A pool that serves version 0, to do one thing to."""

    def __init__(self, scenario: Scenario) -> None:
        self.stage = SimulatedStage(scenario)
        self.run = SimulatedRun(scenario, self.stage)
        self.pool, self.world, self.ledger = self.run.pool, self.stage.world, self.run.ledger
        self.pool.scale(scenario.generators)
        self.run._go_back_to(0, incarnation=0)
        self.until(lambda: self.pool.serving() == scenario.generators)

    def until(self, done) -> float:
        """Seconds until `done()`; fails after an hour of simulated time."""
        began = self.world.now
        self.run.reactor.pump_until(lambda: done() or self.world.now > began + 3600)
        assert done()
        return self.world.now - began

    def states(self) -> list[State]:
        return [member.life.state for member in self.pool.members()]

    def live(self) -> list[SimGenerator]:
        return [made for made in self.stage.generators if made.ended_at == NEVER]


def held(started: Started) -> int:
    return sum(len(member.leases) for member in started.pool.members())


def test_a_stopped_process_is_found_by_its_silence_and_replaced() -> None:
    started = Started(Scenario(generators=2))
    started.run.rollouts.request(0)
    started.until(lambda: held(started) > 0)
    victim = started.live()[0]
    victim._stop()
    timeout = started.run.scenario.heartbeat_timeout
    assert abs(started.until(lambda: victim.ended_at < NEVER) - timeout) <= 2
    assert "silent for 20 s" in faults(started.run.measured.log)[0]
    batch = started.run.rollouts.take(0)
    started.run._check(0, batch)
    started.until(lambda: started.pool.serving() == 2)


def test_a_wedged_engine_is_found_though_its_process_answers() -> None:
    started = Started(Scenario(generators=2))
    started.run.rollouts.request(0)
    started.until(lambda: held(started) > 0)
    victim = started.live()[1]
    victim._wedge()
    timeout = started.run.scenario.heartbeat_timeout
    assert abs(started.until(lambda: victim.ended_at < NEVER) - timeout) <= 2
    started.run._check(0, started.run.rollouts.take(0))


def test_a_shard_that_is_never_finished_goes_to_another_by_its_deadline() -> None:
    started = Started(Scenario(generators=2))
    victim = started.live()[0]
    started.run.rollouts.request(0)
    started.until(lambda: held(started) == 4)
    victim._forget()
    limit = started.run.scenario.shard_timeout
    assert limit <= started.until(lambda: victim.ended_at < NEVER) <= limit + 2
    assert "shard not finished in 200 s" in faults(started.run.measured.log)[0]
    started.run._check(0, started.run.rollouts.take(0))


def test_a_shard_that_is_too_much_for_every_generator_ends_the_run() -> None:
    started = Started(Scenario(generators=2, pace=Pace(token=10.0), shard_timeout=600.0))
    started.run.rollouts.request(0)
    with pytest.raises(TimeoutError, match=r"of step 0 .* 600 s, 4 times: .*shard-timeout"):
        started.until(lambda: False)
    assert started.pool.restarts <= 8


def test_a_load_longer_than_a_silence_is_no_silence() -> None:
    started = Started(Scenario(generators=2, pace=Pace(load=45.0)))
    started.run._publish(Version(0, 1))
    started.until(lambda: started.pool.serving() == 2)
    assert started.pool.restarts == 0


def test_a_stopped_process_is_found_while_it_loads() -> None:
    started = Started(Scenario(generators=1, pace=Pace(load=50.0)))
    (victim,) = started.live()
    started.run._publish(Version(0, 1))
    victim._stop()
    assert started.until(lambda: victim.ended_at < NEVER) <= 22


def test_nobody_is_silent_for_a_driver_that_did_not_listen() -> None:
    started = Started(Scenario(generators=3))
    started.run.rollouts.request(0)
    started.until(lambda: held(started) > 0)
    started.world.away(60.0)  # it writes a file, say
    started.run._check(0, started.run.rollouts.take(0))
    assert started.pool.restarts == 0


@pytest.mark.parametrize("stopped", ["while it waits", "in a callback"])
def test_nobody_is_silent_for_a_driver_that_was_stopped(stopped: str) -> None:
    started = Started(Scenario(generators=3))
    world, reactor = started.world, started.run.reactor
    started.run.rollouts.request(0)
    started.until(lambda: held(started) > 0)
    if stopped == "while it waits":
        wait = reactor._wait

        def stopped_once(refs: list, timeout: float) -> list:
            reactor._wait = wait
            world.away(60.0)
            return []  # Ray's own deadline passed meanwhile

        reactor._wait = stopped_once
    else:
        ref = world.later(0.1, None)
        reactor.when(ref, lambda _: world.away(60.0), who="a disk", what="a line", timeout=9)
    started.run._check(0, started.run.rollouts.take(0))
    assert started.pool.restarts == 0


def test_where_there_is_no_room_for_the_first_the_run_ends_and_says_so(monkeypatch) -> None:
    monkeypatch.setattr(SimGenerator, "ready", lambda made: made._world.later(NEVER))
    monkeypatch.setattr(SimGenerator, "lacking", lambda made: "it needs 2 CPUs, and none is free")
    with pytest.raises(ValueError, match="could be started: it needs 2 CPUs, and none is free"):
        Started(Scenario(generators=1))


def test_a_node_that_dies_while_the_first_start_is_no_want_of_room(monkeypatch) -> None:
    """Its generator has no place from then on; another is made, on another node."""
    ready = SimGenerator.ready

    def ready_or_dead(made: SimGenerator):
        if made.name == "generator-0":
            made._world.after(1.0, made._die)
        return ready(made)

    monkeypatch.setattr(SimGenerator, "ready", ready_or_dead)
    monkeypatch.setattr(SimGenerator, "lacking", lambda made: "it needs 2 CPUs, and none is free")
    started = Started(Scenario(generators=2))
    assert started.pool.restarts == 1
    (line,) = faults(started.run.measured.log)
    assert line.startswith("generator-0 died (The actor ") and "CPUs" not in line


def test_starts_that_hang_are_given_up_in_the_end(monkeypatch) -> None:
    monkeypatch.setattr(SimGenerator, "ready", lambda made: made._world.later(NEVER))
    with pytest.raises(RuntimeError, match=r"every generator has died.*`start` in 300 s"):
        Started(Scenario(generators=1, start_timeout=300.0))


def test_anothers_error_is_not_taken_for_that_of_what_is_waited_for() -> None:
    started = Started(Scenario(generators=1))
    reactor, world = started.run.reactor, started.world

    def raise_it(outcome) -> None:
        raise outcome.error

    reactor.when(world.later(1.0, error=RayActorError()), raise_it, who="r", what="x", timeout=9)
    with pytest.raises(RayActorError):
        reactor.outcomes([world.later(5.0)], who=["learner-0"], what="update", timeout=9)
    (own,) = reactor.outcomes(
        [world.later(1.0, error=RayActorError())], who=["learner-0"], what="update", timeout=9
    )
    assert isinstance(own.error, RayActorError)


def test_a_killed_generator_serves_again_after_one_start() -> None:
    started = Started(Scenario(generators=2))
    started.live()[0]._die()
    started.until(lambda: started.pool.serving() == 1)
    pace = started.run.scenario.pace
    assert (
        started.until(lambda: started.pool.serving() == 2) <= 1.5 * pace.start + 2 * pace.load + 1
    )


def test_the_shards_of_the_dead_are_with_others_at_once() -> None:
    """The iteration is later by no more than the shard's own time when another lives."""
    scenario = Scenario(generators=2, prompts=16, pace=Pace(sigma=0.1))
    calm = Started(scenario)
    calm.run.rollouts.request(0)
    undisturbed = calm.until(lambda: calm.ledger.is_ready(BatchKey(TRAIN, 0)))
    struck = Started(scenario)
    struck.run.rollouts.request(0)
    struck.until(lambda: held(struck) > 0)
    struck.live()[0]._die()
    late = struck.until(lambda: struck.ledger.is_ready(BatchKey(TRAIN, 0))) - undisturbed
    shard = scenario.pace.median_length * scenario.pace.token * 1.5
    assert late <= shard


def test_scaling_up_and_down_between_two_batches() -> None:
    started = Started(Scenario(generators=1))
    started.pool.scale(3)
    started.until(lambda: started.pool.serving() == 3)
    started.run.rollouts.request(0)
    started.until(lambda: held(started) > 2)
    started.pool.scale(1)
    assert sorted(started.states()) == [State.DRAINING, State.DRAINING, State.SERVING]
    started.until(lambda: len(started.live()) == 1)
    assert started.ledger.counts["requeued"] == 0, "the drained finished what they held"
    assert faults(started.run.measured.log) == []
    started.run._check(0, started.run.rollouts.take(0))


def test_one_that_is_still_starting_is_drained_without_blame() -> None:
    started = Started(Scenario(generators=1, pace=Pace(start=50.0), start_timeout=100.0))
    started.pool.scale(2)
    began = started.world.now
    started.until(lambda: started.world.now > began + 30)
    started.pool.scale(1)
    started.until(lambda: len(started.live()) == 1)
    assert (faults(started.run.measured.log), started.pool.restarts) == ([], 0)


def test_a_generator_that_keeps_dying_is_given_up_and_the_run_goes_on_with_fewer() -> None:
    started = Started(Scenario(generators=2))

    def kill_the_youngest() -> bool:
        if len(started.live()) == 2:
            started.live()[-1]._die()
        return any("going on with 1" in line for line in started.run.measured.log)

    started.until(kill_the_youngest)
    assert "9 deaths in a row: going on with 1 generators" in faults(started.run.measured.log)[-1]
    began = started.world.now
    started.until(lambda: started.world.now > began + 60)
    assert len(started.live()) == 1
    started.pool.scale(2)  # the number that it had is a wish too
    started.until(lambda: started.pool.serving() == 2)


def test_when_every_generator_has_died_the_run_ends_with_the_cause() -> None:
    started = Started(Scenario(generators=1))

    def kill() -> bool:
        for made in started.live():
            made._die()
        return False

    with pytest.raises(RuntimeError, match="every generator has died, the last of: The actor"):
        started.until(kill)


def test_when_no_engine_can_start_the_run_ends_with_the_cause(monkeypatch) -> None:
    """An error of its own, not a death: another generator would have it too."""
    cause = RuntimeError("no room for one cache block")
    broken = RayTaskError("ready", "its traceback", cause)
    monkeypatch.setattr(SimGenerator, "ready", lambda made: made._world.later(1.0, error=broken))
    with pytest.raises(ValueError, match="no generator could be started: no room for one cache"):
        Started(Scenario(generators=1))


def test_a_return_to_a_checkpoint_recalls_what_is_on_its_way() -> None:
    started = Started(Scenario(generators=2))
    started.run.rollouts.request(0)
    started.until(lambda: held(started) > 0)
    started.run._go_back_to(0, incarnation=1)
    assert held(started) == 0
    started.run.rollouts.request(0)
    started.run._check(0, started.run.rollouts.take(0))
    assert started.ledger.counts["refused"] == 0, "what was void did not cost the time to finish it"


def test_a_request_that_an_engine_refuses_ends_the_run_and_costs_no_generator() -> None:
    started = Started(Scenario(generators=2))
    refused = ValueError("rollout 7: the prompt has no tokens")
    for made in started.live():
        later = partial(started.world.later, 0.1, error=refused)
        made.generate = lambda order, later=later: (later(), later())
    started.run.rollouts.request(0)
    with pytest.raises(ValueError, match="rollout 7"):
        started.run.rollouts.take(0)
    assert started.pool.restarts == 0


def test_late_scores_of_a_void_lineage_are_not_taken_for_those_of_the_next() -> None:
    started = Started(Scenario(generators=2, pace=Pace(score=30.0)))
    started.run.rollouts.request(0)
    started.until(lambda: started.run.measured.shards > 0)
    started.run._go_back_to(0, incarnation=1)
    started.run.rollouts.request(0)
    started.run._check(0, started.run.rollouts.take(0))


def test_a_recalled_generator_loads_nothing_before_it_has_forgotten() -> None:
    started = Started(Scenario(generators=1, pace=Pace(beat=5.0)))
    started.run.rollouts.request(0)
    started.until(lambda: held(started) > 0)
    began = started.world.now + started.run.scenario.publish
    started.run._go_back_to(0, incarnation=1)
    started.until(lambda: started.pool.serving() == 1)
    assert started.world.now >= began + 5.0 + 0.8 * started.run.scenario.pace.load


def test_a_generator_that_starts_late_takes_the_current_version() -> None:
    started = Started(Scenario(generators=1))
    started.pool.scale(2)
    for step in (1, 2, 3):
        started.run._publish(Version(0, step))
    started.until(lambda: started.pool.serving() == 2)
    assert [made.version for made in started.live()] == [Version(0, 3)] * 2


@pytest.mark.parametrize("fault", ["_die", "_stop", None])
def test_all_rest_who_are_still_there(fault: str | None) -> None:
    """One that dies, or hangs until it is condemned, is not waited for."""
    started = Started(Scenario(generators=2, pace=Pace(beat=0.5)))
    first = started.live()[0]
    if fault:
        started.world.after(0.1, getattr(first, fault))
    asked: list[str] = []
    for made in started.live():
        made.rest = lambda made=made, own=made.rest: asked.append(made.name) or own()
    began = started.world.now
    started.pool.rest()
    assert asked == ["generator-0", "generator-1"]
    limit = started.run.scenario.heartbeat_timeout * 3 if fault == "_stop" else 1.0
    assert 0.5 <= started.world.now - began <= limit


def test_one_that_starts_is_waited_for_before_the_rest_and_none_is_made_until_it_ends() -> None:
    started = Started(Scenario(generators=2, pace=Pace(beat=0.5)))
    started.pool.scale(3)
    late = started.live()[2]
    asked: list[str] = []
    for made in started.live():
        made.rest = lambda made=made, own=made.rest: asked.append(made.name) or own()
    started.pool.rest()
    assert late.version == started.run.version and late.name in asked and len(asked) == 3
    late._die()
    began = started.world.now
    started.until(lambda: started.world.now > began + 60.0)
    assert len(started.live()) == 2, "a GPU that the learners use is left alone"
    started.run._publish(Version(0, 1))
    started.until(lambda: started.pool.serving() == 3)


def test_one_that_is_a_version_behind_rests_after_it_has_caught_up() -> None:
    """Its load of the one before ends while it would rest, and the next one would wake it."""
    started = Started(Scenario(generators=2, pace=Pace(beat=0.5)))
    slow, load = started.live()[0], started.live()[0].load

    def late(published: Published) -> SimRef:
        if published.version == Version(0, 1):
            return started.world.later(20.0, published.version)
        return load(published)

    slow.load = late
    started.run._publish(Version(0, 1))
    started.run._publish(Version(0, 2))
    asked: list[Version | None] = []
    slow.rest = lambda own=slow.rest: asked.append(slow.version) or own()
    started.pool.rest()
    assert asked == [Version(0, 2)]


def test_a_place_that_died_before_a_rest_still_has_its_budget_after_it() -> None:
    started = Started(Scenario(generators=1, pace=Pace(beat=0.5)))
    started.pool.rest()
    started.live()[0]._die()
    began = started.world.now
    started.until(lambda: started.world.now > began + 60.0)
    assert not started.live()
    started.run._publish(Version(0, 1))
    started.until(lambda: started.pool.serving() == 1)
    (member,) = started.pool.members()
    assert (member.budget.total, member.budget.deaths) == (1, 1)


def test_a_generator_whose_version_is_gone_says_so_and_waits_for_the_next() -> None:
    started = Started(Scenario(generators=1))
    (made,) = started.live()
    gone = VersionGone("version 0.1 is gone")
    told: list[Version] = []
    started.pool._on_gone = told.append
    load, made.load = made.load, lambda published: started.world.later(0.1, error=gone)
    started.run._publish(Version(0, 1))
    began = started.world.now
    started.until(lambda: started.world.now > began + 5)
    assert started.states() == [State.STALE] and started.pool.restarts == 0
    assert told == [Version(0, 1)]
    made.load = load
    started.run._publish(Version(1, 1))
    started.until(lambda: started.pool.serving() == 1)
    assert made.version == Version(1, 1)


@pytest.mark.parametrize("working", [False, True])
def test_a_generator_that_hears_late_that_its_version_is_gone_takes_the_next(working: bool) -> None:
    """The next is out by then, and nobody tells it a second time."""
    started = Started(Scenario(generators=1))
    (made,) = started.live()
    if working:
        started.run.rollouts.request(0)
        started.until(lambda: held(started) > 0)
    gone = VersionGone("version 0.1 is gone")
    load, made.load = made.load, lambda published: started.world.later(5.0, error=gone)
    started.run._publish(Version(0, 1))
    made.load = load
    started.run._go_back_to(0, incarnation=1)
    assert started.states() == [State.STALE]
    started.until(lambda: started.pool.serving() == 1)
    assert made.version == Version(1, 0) and started.live() == [made]
    assert (faults(started.run.measured.log), started.pool.restarts) == ([], 0)


def test_shards_that_are_gone_when_learners_fetch_them_are_generated_again() -> None:
    started = Started(Scenario(generators=2, prompts=16))
    asked: list[int] = []

    def deliver(shards: list) -> list[int]:
        asked.append(len(shards))
        return [1, 3] if len(asked) == 1 else []

    started.run.rollouts._deliver = deliver
    started.run.rollouts.request(0)
    started.run._check(0, started.run.rollouts.take(0))
    assert asked == [4, 4]
    assert started.ledger.counts["requeued"] == 8
    assert started.ledger.counts["committed"] == started.ledger.counts["consumed"] == 16
    assert "shards 1, 3 of step 0 were lost" in faults(started.run.measured.log)[0]


def test_versions_published_while_one_loads_are_all_caught_up_with() -> None:
    started = Started(Scenario(generators=1, pace=Pace(load=5.0)))
    for step in (1, 2, 3):
        started.pool.publish(Published(Version(0, step), None, (), 0))
    assert started.pool.serving() == 0
    assert started.until(lambda: started.pool.serving() == 1) <= 2 * 1.5 * 5.0 + 1
    assert started.live()[0].version == Version(0, 3)


def test_an_evaluation_goes_ahead_of_training() -> None:
    started = Started(Scenario(generators=2, prompts=256, max_staleness=1))
    started.run.rollouts.request(1)
    began = started.world.now
    started.run.rollouts.sample_once(HELDOUT, 0, 8)
    assert started.world.now - began < 60
    assert started.ledger.unfinished(BatchKey(TRAIN, 0))["pending"] > 20


def test_the_world_forgets_what_nobody_waits_for() -> None:
    world = World()
    for _ in range(1000):
        world.fulfil(world.later(NEVER))
    world.wait([], 1.0)
    assert world._fulfilled == [] and world._events == []
