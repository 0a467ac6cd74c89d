"""What is on the metrics port between two rows: every actor's state, versions, queue."""

from rlhf_ray.observe.gauges import Gauges
from rlhf_ray.orchestration.cluster import Cluster
from rlhf_ray.orchestration.members import Member

EVERY = 2.0  # seconds


class Live:
    """Sets the gauges of all actors of a run; call `update` every so often."""

    def __init__(self, cluster: Cluster, gauges: Gauges) -> None:
        self._cluster, self._gauges = cluster, gauges
        self._known: set[tuple[str, str]] = set()

    def update(self, now: float) -> None:
        """Set everything as it stands. An actor that is gone is in state `gone`."""
        cluster, gauges = self._cluster, self._gauges
        here = set()
        for one in [
            *cluster.pool.standing(),
            *cluster.scorers.standing(),
            *cluster.learners.standing(),
        ]:
            here.add((one.role, one.name))
            gauges.state(one.role, one.name, one.state)
            gauges.set("ppo", {"actor/restarts": one.restarts}, role=one.role, actor=one.name)
        for role, name in self._known - here:
            gauges.state(role, name, "gone")
            if role == "generator":
                gauges.set("ppo", NOTHING_IN_HAND, role=role, actor=name)
        self._known |= here
        for member in cluster.pool.members():
            metrics = self._of(member, now)
            gauges.set("ppo", metrics, role="generator", actor=member.life.name)
        run = {
            "progress/of": cluster.config.ppo.iterations,
            "queue/pending": cluster.ledger.pending(),
            "weights/bytes": cluster.pool.published_bytes(),
        }
        gauges.set("ppo", run)
        gauges.refresh()

    def _of(self, member: Member, now: float) -> dict[str, float]:
        vitals, version = member.vitals, member.life.version
        metrics = {
            "generator/shards": float(len(member.leases)),
            "generator/idle": float(not member.leases),
            "generator/silent_s": max(0.0, now - member.life.last_heard),
        }
        if version is not None:
            metrics["generator/version"] = version.step
            metrics["generator/lag"] = max(0, self._cluster.version.step - version.step)
        if vitals is not None:
            metrics["generator/in_flight"] = vitals.in_flight
            metrics["generator/tokens"] = vitals.tokens
            metrics["generator/load_s"] = vitals.load_s
        return metrics


NOTHING_IN_HAND = {"generator/shards": 0.0, "generator/in_flight": 0.0, "generator/idle": 0.0}
NOTHING_IN_HAND |= {"generator/lag": 0.0, "generator/silent_s": 0.0}
