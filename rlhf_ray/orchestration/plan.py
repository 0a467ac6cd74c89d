"""What a run reserves and which node each part goes to: a pure function of settings and nodes.

Learners go together on one node where one has room for all; generators are spread, each whole on
one node; scorers share what is left. Ray takes it as a hint: a part whose node dies goes elsewhere.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhf_ray.config import Cluster
from rlhf_ray.orchestration.shares import GENERATOR, LEARNER, SCORER, Node, Room, Share, gpu_shares

SCORER_ROLES = 2  # reference and reward
MOST_NODES = 64  # more nodes that are tried when saying what would fit


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run reserves, role by role, and where."""

    generator: Share
    learner: Share
    scorer: Share
    generators: int
    learners: int
    scorers: int
    threads: int
    nodes: tuple[Node, ...] = ()

    def total(self) -> dict[str, float]:
        """CPUs and GPUs of the whole run."""
        return {
            "CPU": sum(n * share.cpus for _, n, share in self.roles()),
            "GPU": sum(n * share.gpus for _, n, share in self.roles()),
        }

    def asked(self) -> list[str]:
        """What each role asks for, in words."""
        return [
            f"{n} {role if n > 1 else role[:-1]}, each {share.cpus:g} CPU and {share.gpus:g} GPU"
            for role, n, share in self.roles()
        ]

    def lines(self) -> list[str]:
        """The plan in words: what there is, then a line a role with its nodes."""
        gpus, cpus = (sum(getattr(node, kind) for node in self.nodes) for kind in ("gpus", "cpus"))
        have = (f"{gpus:g} GPUs, " if gpus else "") + f"{cpus:g} CPUs on {_nodes(len(self.nodes))}"
        rows = [f"{have}; {self.threads} threads a process"]
        for asked, (_, n, share) in zip(self.asked(), self.roles(), strict=True):
            rows.append(f"{asked}: {self._where(n, share.nodes)}")
        return rows

    def roles(self) -> list[tuple[str, int, Share]]:
        """Each role's name, how many actors it has, and the share of one."""
        return [
            ("learner ranks", self.learners, self.learner),
            ("generators", self.generators, self.generator),
            ("scorers", self.scorers * SCORER_ROLES, self.scorer),
        ]

    def _where(self, asked: int, ids: tuple[str, ...]) -> str:
        """`4 on node-a`, and how many wait for a node that is yet to come."""
        names = {node.node_id: node.name for node in self.nodes}
        parts = [f"{n} on {names[node_id]}" for node_id, n in Counter(ids).items()]
        if len(ids) < asked:
            parts.append(f"{asked - len(ids)} wait for nodes that the autoscaler brings")
        return ", ".join(parts)


def plan(cluster: Cluster, nodes: Sequence[Node], *, tensor_parallel: int = 1) -> Plan:
    """Shares and places for `cluster` on `nodes`; a generator is one of `tensor_parallel` GPUs.

    Raises ValueError where it does not fit and the cluster does not grow by itself, saying what is
    asked, what there is, and what would fit; for GPUs of a generator that are not its engine's; and
    where two learner ranks could be on one GPU.
    """
    _check_gpus(cluster, tensor_parallel)
    made = _place(_with_shares(cluster, nodes, tensor_parallel))
    if (stuck := _stuck(made)) and not cluster.autoscaling:
        raise ValueError(_misfit(cluster, made, stuck, tensor_parallel))
    return made


def _check_gpus(cluster: Cluster, tensor_parallel: int) -> None:
    given, ranks = cluster.generator_gpus, cluster.learners
    if tensor_parallel > 1 and given not in (None, 0, tensor_parallel):
        raise ValueError(
            f"--cluster.generator-gpus is {given:g}, and an engine of --rollout.tensor-parallel "
            f"{tensor_parallel} has as many GPUs, whole: leave the first out"
        )
    if ranks > 1 and 0 < (cluster.learner_gpus or 0) <= 0.5:
        raise ValueError(
            f"--cluster.learner-gpus is {cluster.learner_gpus:g}: two of {ranks} learner ranks "
            f"could be on one GPU, which NCCL refuses. Give more than 0.5, 0 for ranks on CPUs, or "
            f"--cluster.learners 1"
        )


def _with_shares(cluster: Cluster, nodes: Sequence[Node], tensor_parallel: int) -> Plan:
    generators, small = cluster.generators, cluster.scorers * SCORER_ROLES
    gpus = int(sum(node.gpus for node in nodes))
    if tensor_parallel > 1:  # engines of several GPUs have them whole; the others share the rest
        taken = 0 if cluster.generator_gpus == 0 else generators * tensor_parallel
        rest = max(min(1, gpus), gpus - taken)
        learner, _, scorer = gpu_shares(cluster.learners, 0, small, rest)
        generator = float(tensor_parallel)
    else:
        learner, generator, scorer = gpu_shares(cluster.learners, generators, small, gpus)

    def share(role: str, cpus: float, asked: float | None, fallback: float) -> Share:
        pin = role if cluster.role_resources else None
        return Share(cpus, fallback if asked is None else asked, pin)

    cores = [node.cpus for node in nodes if node.cpus]
    if not cores and cluster.threads is None:
        raise ValueError(
            "no node with CPUs is up yet, so their threads cannot be counted: give "
            "--cluster.threads, the cores of a node"
        )
    return Plan(
        generator=share(GENERATOR, cluster.generator_cpus, cluster.generator_gpus, generator),
        learner=share(LEARNER, cluster.learner_cpus, cluster.learner_gpus, learner),
        scorer=share(SCORER, cluster.scorer_cpus, cluster.scorer_gpus, scorer),
        generators=cluster.generators,
        learners=cluster.learners,
        scorers=cluster.scorers,
        threads=cluster.threads or max(1, int(min(cores))),
        nodes=tuple(nodes),
    )


def _place(made: Plan) -> Plan:
    """`made` with the nodes of every actor that finds room."""
    rooms = [Room(node) for node in made.nodes]
    learners, together = _pack(rooms, made.learner, made.learners)
    generators = _spread(rooms, made.generator, made.generators)
    scorers = _spread(rooms, made.scorer, made.scorers * SCORER_ROLES)
    return replace(
        made,
        learner=replace(made.learner, nodes=tuple(learners), together=together),
        generator=replace(made.generator, nodes=tuple(generators)),
        scorer=replace(made.scorer, nodes=tuple(scorers)),
    )


def _stuck(made: Plan) -> str | None:
    """The first role that does not all find room; None: all do."""
    return next((role for role, n, share in made.roles() if len(share.nodes) < n), None)


def _pack(rooms: list[Room], share: Share, count: int) -> tuple[list[str], bool]:
    """All on the tightest node that takes all (the largest, without GPUs); else on as few as can.

    The ids, and whether one node has them.
    """
    for room in sorted(rooms, key=lambda r: r.free_gpus() if share.gpus else -r.cpus):
        if room.copy().take_many(share, count) == count:
            room.take_many(share, count)
            return [room.node.node_id] * count, True
    ids: list[str] = []
    for room in sorted(rooms, key=lambda r: (-r.free_gpus(), -r.cpus)):
        ids += [room.node.node_id] * room.take_many(share, count - len(ids))
    return ids, False


def _spread(rooms: list[Room], share: Share, count: int) -> list[str]:
    """Each on the node that has the fewest of them, then the most room; the ids of those placed."""
    ids: list[str] = []
    for _ in range(count):
        fitting = [room for room in rooms if room.fits(share)]
        if not fitting:
            break
        here = Counter(ids)
        best = min(fitting, key=lambda r: (here[r.node.node_id], -r.free_gpus(), -r.cpus))
        best.take(share)
        ids.append(best.node.node_id)
    return ids


def _misfit(cluster: Cluster, made: Plan, stuck: str, tensor_parallel: int) -> str:
    """What is asked, what there is, and what would fit."""
    nodes = made.nodes
    for name, asked in made.total().items():
        have = sum(node.gpus if name == "GPU" else node.cpus for node in nodes)
        if asked > have + 1e-9:
            fault = f"the run asks for {round(asked, 2):g} {name} and the cluster has {have:g}"
            break
    else:
        fault = f"the {stuck} do not all find room, whole, on {_nodes(len(nodes))}"
    ways = [*_smaller(cluster, nodes, tensor_parallel), *_larger(cluster, nodes, tensor_parallel)]
    fits = f"It would fit with {', or with '.join(ways)}. " if ways else ""
    alone = made.learners > 1 and made.learner.gpus
    own = "Each learner rank needs a GPU of its own, or --cluster.learner-gpus 0. " if alone else ""
    return (
        f"{fault}: {'; '.join(made.asked())}. {own}{fits}Or lower --cluster.generators, "
        f"--cluster.learners or the roles' --cluster.*-cpus and --cluster.*-gpus; on a cluster "
        f"that grows by itself give --cluster.autoscaling"
    )


def _fits(cluster: Cluster, nodes: Sequence[Node], tensor_parallel: int) -> bool:
    return _stuck(_place(_with_shares(cluster, nodes, tensor_parallel))) is None


def _smaller(cluster: Cluster, nodes: Sequence[Node], tensor_parallel: int) -> list[str]:
    """The most generators, else the most learner ranks, that the nodes take."""
    for n in range(cluster.generators - 1, 0, -1):
        if _fits(replace(cluster, generators=n), nodes, tensor_parallel):
            return [f"--cluster.generators {n}"]
    for n in range(cluster.learners - 1, 0, -1):
        if _fits(replace(cluster, learners=n), nodes, tensor_parallel):
            return [f"--cluster.learners {n}"]
    return []


def _larger(cluster: Cluster, nodes: Sequence[Node], tensor_parallel: int) -> list[str]:
    """How many more nodes like the largest would do."""
    if not nodes:
        return []
    largest = max(nodes, key=lambda node: (node.gpus, node.cpus))
    for more in range(1, MOST_NODES):
        if _fits(cluster, [*nodes, *[largest] * more], tensor_parallel):
            kind = f"{largest.cpus:g} CPU and {largest.gpus:g} GPU"
            return [f"{more} more {'node' if more == 1 else 'nodes'} of {kind}"]
        if math.isclose(largest.cpus + largest.gpus, 0):
            break
    return []


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"
