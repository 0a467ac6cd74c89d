"""What is on the metrics port while a run of simulated generators goes on."""

from types import SimpleNamespace

import pytest

from rlhf_ray.actors.control import Standing
from rlhf_ray.config import PPO, Config
from rlhf_ray.data.ids import Version
from rlhf_ray.observe import gauges
from rlhf_ray.simulation.run import Scenario, SimulatedRun, SimulatedStage
from rlhf_ray.training.live import Live


class Port:
    """What the gauges were set to since `clear`: (name, actor, state) → value."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: dict[tuple[str, str, str], float] = {}
        monkeypatch.setattr(gauges, "Gauge", self._gauge)

    def _gauge(self, name: str, **about: object) -> SimpleNamespace:
        def put(value: float, tags: dict[str, str]) -> None:
            self.shown[name, tags["actor"], tags.get("state", "")] = value

        return SimpleNamespace(set=put)

    def of(self, name: str) -> dict[str, float]:
        """Actor → value of one gauge without states."""
        return {actor: x for (n, actor, _), x in self.shown.items() if n == f"rlhf_{name}"}

    def states(self) -> dict[str, str]:
        """Actor → the state that it is in."""
        return {a: s for (n, a, s), x in self.shown.items() if n == "rlhf_actor_state" and x}


class Watched:
    """A run of two generators, with a learner and a scorer in words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.port = Port(monkeypatch)
        self.stage = SimulatedStage(Scenario(generators=2))
        self.run = SimulatedRun(self.stage.scenario, self.stage)
        self.learner = [Standing("learner-0", "learner", "update")]
        self.cluster = SimpleNamespace(
            over=False,
            pool=self.run.pool,
            ledger=self.run.ledger,
            scorers=SimpleNamespace(standing=lambda: [Standing("reward-0", "reward", "idle")]),
            learners=SimpleNamespace(standing=lambda: self.learner),
            config=Config(ppo=PPO(iterations=9)),
            step=4,
            version=Version(0, 4),
        )
        self.live = Live(self.cluster, gauges.Gauges("r"))  # type: ignore[arg-type]

    def look(self) -> Port:
        """The port after one update."""
        self.port.shown.clear()
        self.live.update(self.stage.world.now)
        return self.port

    def until(self, done) -> None:
        """Let simulated time pass, an hour at most."""
        self.run.reactor.pump_until(lambda: done() or self.stage.world.now > 3600)
        assert done()

    def start(self) -> None:
        self.run.pool.scale(2)
        self.run._go_back_to(4, incarnation=0)
        self.until(lambda: self.run.pool.serving() == 2)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_step_and_restarts_are_there_before_anything_is_done(watched: Watched):
    port = watched.look()
    assert port.of("progress_step") == {"driver": 4} and port.of("progress_of") == {"driver": 9}
    assert port.of("generators_restarts") == {"driver": 0}
    assert port.states() == {"reward-0": "idle", "learner-0": "update"}


def test_one_that_starts_is_not_silent(watched: Watched):
    watched.run.pool.scale(2)
    port = watched.look()
    assert port.states().keys() >= {"generator-0", "generator-1"}
    assert not port.of("generator_silent_s")
    watched.start()
    assert watched.look().of("generator_silent_s").keys() == {"generator-0", "generator-1"}


def test_one_that_died_is_counted_as_a_restart_and_forgotten_with_all_of_its_own(
    watched: Watched,
):
    watched.start()
    watched.look()
    watched.stage.generators[0]._stop()
    watched.until(lambda: watched.run.pool.restarts == 1)
    port = watched.look()
    assert "generator-0" not in {actor for _, actor, _ in port.shown}
    assert "(to be made)" not in port.states()
    assert port.of("generators_restarts") == {"driver": 1}
    watched.until(lambda: watched.run.pool.serving() == 2)
    assert watched.look().states() == {
        "generator-1": "serving",
        "generator-2": "serving",
        "reward-0": "idle",
        "learner-0": "update",
    }


def test_learners_that_are_made_anew_come_back(watched: Watched):
    watched.look()
    watched.learner.clear()
    assert "learner-0" not in watched.look().states()
    watched.learner.append(Standing("learner-0", "learner", "load", restarts=1))
    port = watched.look()
    assert port.states()["learner-0"] == "load"
    assert port.of("actor_restarts")["learner-0"] == 1
