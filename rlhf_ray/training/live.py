"""What is on the metrics port between two rows: every actor's state, versions, queue."""

from rlhf_ray.observe.gauges import Gauges
from rlhf_ray.orchestration.cluster import Cluster
from rlhf_ray.orchestration.lifecycle import State
from rlhf_ray.orchestration.members import Member

EVERY = 2.0  # seconds


class Live:
    """Sets the gauges of all actors of a run; call `update` every so often."""

    def __init__(self, cluster: Cluster, gauges: Gauges) -> None:
        self._cluster, self._gauges = cluster, gauges
        self._known: set[tuple[str, str]] = set()

    def update(self, now: float) -> None:
        """Set everything as it stands; who has ended since the last call is forgotten."""
        cluster, gauges = self._cluster, self._gauges
        members = cluster.pool.members()
        here = set()
        for one in [
            *(member.standing() for member in members),
            *cluster.scorers.standing(),
            *cluster.learners.standing(),
        ]:
            here.add((one.role, one.name))
            gauges.state(one.role, one.name, one.state)
            gauges.set("ppo", {"actor/restarts": one.restarts}, role=one.role, actor=one.name)
        for role, name in self._known - here:
            gauges.forget(role, name)
        self._known = here
        for member in members:
            metrics = self._of(member, now)
            gauges.set("ppo", metrics, role="generator", actor=member.life.name)
        run = {
            "progress/step": cluster.step,
            "progress/of": cluster.step if cluster.over else cluster.config.ppo.iterations,
            "generators/restarts": cluster.pool.restarts,
            "queue/pending": cluster.ledger.pending(),
            "weights/bytes": cluster.pool.published_bytes(),
        }
        gauges.set("ppo", run)
        gauges.refresh()

    def _of(self, member: Member, now: float) -> dict[str, float]:
        life, vitals = member.life, member.vitals
        metrics = {
            "generator/shards": float(len(member.leases)),
            "generator/idle": float(not member.leases),
        }
        if life.state is not State.STARTING:  # nothing is heard of one before it is up
            metrics["generator/silent_s"] = max(0.0, now - life.last_heard)
        if life.version is not None:
            metrics["generator/version"] = life.version.step
            metrics["generator/lag"] = max(0, self._cluster.version.step - life.version.step)
        if vitals is not None:
            metrics["generator/in_flight"] = vitals.in_flight
            metrics["generator/tokens"] = vitals.tokens
            metrics["generator/load_s"] = vitals.load_s
        return metrics
