"""What each role reserves, whether the cluster has it, and a placement group for each part."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf_ray.config import Cluster
from rlhf_ray.orchestration.reactor import Reactor

SCORER_ROLES = 2  # reference and reward


@dataclass(frozen=True, slots=True)
class Share:
    """What one actor of a role reserves in Ray. Threads are set apart from it."""

    cpus: float
    gpus: float

    def bundle(self) -> dict[str, float]:
        """As a placement group's bundle; Ray refuses one that is empty."""
        shares = {"CPU": self.cpus, "GPU": self.gpus}
        return {name: x for name, x in shares.items() if x} or {"CPU": 0.001}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run reserves, role by role."""

    generator: Share
    learner: Share
    scorer: Share
    generators: int
    learners: int
    scorers: int
    threads: int

    def total(self) -> dict[str, float]:
        """CPUs and GPUs of the whole run."""
        parts = [
            (self.generators, self.generator),
            (self.learners, self.learner),
            (self.scorers * SCORER_ROLES, self.scorer),
        ]
        return {
            "CPU": sum(n * share.cpus for n, share in parts),
            "GPU": sum(n * share.gpus for n, share in parts),
        }

    def lines(self) -> list[str]:
        """The plan in words, a line a role."""
        roles = [
            ("generators", self.generators, self.generator),
            ("learner ranks", self.learners, self.learner),
            ("scorers", self.scorers * SCORER_ROLES, self.scorer),
        ]
        return [
            f"{n} {role}, each {share.cpus:g} CPU and {share.gpus:g} GPU reserved, "
            f"{self.threads} threads"
            for role, n, share in roles
        ]


def plan(cluster: Cluster, resources: Mapping[str, float], node_cpus: int) -> Plan:
    """Shares for `cluster` on a Ray cluster that has `resources`.

    Raises ValueError, saying what is asked, what there is and what would fit.
    """
    whole, small = cluster.generators + cluster.learners, cluster.scorers * SCORER_ROLES
    default, scorer_default = gpu_shares(whole, small, int(resources.get("GPU", 0)))

    def gpu_share(asked: float | None, fallback: float) -> float:
        return fallback if asked is None else asked

    made = Plan(
        generator=Share(cluster.generator_cpus, gpu_share(cluster.generator_gpus, default)),
        learner=Share(cluster.learner_cpus, gpu_share(cluster.learner_gpus, default)),
        scorer=Share(cluster.scorer_cpus, gpu_share(cluster.scorer_gpus, scorer_default)),
        generators=cluster.generators,
        learners=cluster.learners,
        scorers=cluster.scorers,
        threads=cluster.threads or node_cpus,
    )
    for name, asked in made.total().items():
        have = float(resources.get(name, 0))
        if asked > have + 1e-9:
            raise ValueError(
                f"the run asks for {asked:g} {name} and the cluster has {have:g}: "
                f"{'; '.join(made.lines())}. Lower --cluster.generators, --cluster.learners or the "
                f"roles' --cluster.*-{name.lower()}s, or add nodes"
            )
    return made


def gpu_shares(whole: int, small: int, gpus: int) -> tuple[float, float]:
    """GPUs for each of `whole` generators and learner ranks, and for each of `small` scorers.

    Every actor finds room whatever the order in which Ray places them, each on the fullest GPU that
    has room. With GPUs to spare the scorers share those; with just one for each of the others they
    all fit beside any of them, and no two of the others share one; else all are equal.
    """
    if gpus == 0:
        return 0.0, 0.0
    if whole < gpus:
        shares = 1.0, min(0.5, 1 / math.ceil(small / (gpus - whole)))
    elif whole == gpus:
        shares = 0.6, 0.4 / small
    else:
        shares = (1 / math.ceil((whole + small) / gpus),) * 2
    return _floor(shares[0]), _floor(shares[1])


def _floor(share: float) -> float:
    """Down to Ray's grain of 1/10,000, so that parts of a GPU never add up to more than one."""
    return math.floor(share * 10_000) / 10_000


def node_cpus() -> int:
    """Cores of the smallest node that is alive, as Ray counts them."""
    counts = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return max(1, int(min((count for count in counts if count), default=1)))


def reserve(
    reactor: Reactor, bundles: list[dict[str, float]], *, strategy: str, who: str, timeout: float
) -> PlacementGroup:
    """A placement group that is there. ValueError, with what is free, where it is not in time."""
    group = placement_group(bundles, strategy=strategy)
    try:
        reactor.result(group.ready(), who=who, what="placement", timeout=timeout)
    except TimeoutError:
        ray.util.remove_placement_group(group)
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        raise ValueError(
            f"{who} needs {bundles} and was not placed in {timeout:.0f} s; free now: {free}. "
            f"Stop what else uses the cluster, or lower what the run asks for"
        ) from None
    return group


def within(group: PlacementGroup, bundle: int = 0) -> PlacementGroupSchedulingStrategy:
    """Schedule an actor into one bundle of `group`."""
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
