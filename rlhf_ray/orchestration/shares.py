"""What one actor reserves, what a node has, and what is left of it."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.models.device import GPUS

# Custom resources that a node offers where roles are kept apart (`cluster.role_resources`): each
# role's actors take a crumb of their own, so a group of nodes grows with its role alone.
GENERATOR, LEARNER, SCORER = "rlhf_generator", "rlhf_learner", "rlhf_scorer"
CRUMB = 0.001


@dataclass(frozen=True, slots=True)
class Share:
    """What one actor of a role reserves in Ray. Threads are set apart from it.

    pin: the custom resource of the nodes that take this role; None: any node. nodes: the ids of
    those where the role's actors are to go, in order; a hint. together: one node has them all.
    """

    cpus: float
    gpus: float
    pin: str | None = None
    nodes: tuple[str, ...] = ()
    together: bool = False

    @property
    def strategy(self) -> str:
        """Of a placement group for the whole role."""
        return "STRICT_PACK" if self.together else "PACK"

    def node(self, index: int) -> str | None:
        """Where the role's actor of this index is to go if there is room."""
        return self.nodes[index] if index < len(self.nodes) else None

    def bundle(self) -> dict[str, float]:
        """As a placement group's bundle; Ray refuses one that is empty."""
        shares = {"CPU": self.cpus, "GPU": self.gpus, **self._pinned()}
        return {name: x for name, x in shares.items() if x} or {"CPU": CRUMB}

    def options(self) -> dict[str, Any]:
        """As options of a Ray actor or task."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": self._pinned()}

    def environment(self) -> dict[str, str]:
        """Environment variables of the actor's process, beside its engine's; Ray's `env_vars`.

        Ray hides no GPU from an actor that reserves none: it would compute on the first.
        """
        hidden = {} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        return {GPUS: f"{self.gpus:g}"} | hidden

    def _pinned(self) -> dict[str, float]:
        return {self.pin: CRUMB} if self.pin else {}


@dataclass(frozen=True, slots=True)
class Node:
    """One node as Ray counts it. offers: the roles' resources that it has."""

    node_id: str
    name: str
    cpus: float
    gpus: float = 0.0
    offers: frozenset[str] = frozenset()


@dataclass
class Room:
    """What is left of a node: CPUs, and a part of each GPU."""

    node: Node
    cpus: float = field(init=False)
    gpus: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.cpus, self.gpus = self.node.cpus, [1.0] * int(self.node.gpus)

    def copy(self) -> "Room":
        """The same room, to try things in."""
        return copy.deepcopy(self)

    def free_gpus(self) -> float:
        """GPUs that are left, parts included."""
        return sum(self.gpus)

    def fits(self, share: Share) -> bool:
        """Whether one more of `share` has room."""
        if share.pin and share.pin not in self.node.offers:
            return False
        return self.cpus >= share.cpus - 1e-9 and self._devices(share.gpus) is not None

    def take(self, share: Share) -> None:
        """Give `share` its part."""
        devices = self._devices(share.gpus)
        assert devices is not None, "take what fits"
        self.cpus -= share.cpus
        for device in devices:
            self.gpus[device] -= min(1.0, share.gpus)

    def take_many(self, share: Share, count: int) -> int:
        """Give as many of `count` as fit; how many that were."""
        for done in range(count):
            if not self.fits(share):
                return done
            self.take(share)
        return count

    def _devices(self, gpus: float) -> list[int] | None:
        """GPUs for one actor: whole ones, or the fullest with room for a part. None: no room."""
        if not gpus:
            return []
        part = min(1.0, gpus)
        room = [i for i, free in enumerate(self.gpus) if free >= part - 1e-9]
        wanted = math.ceil(gpus - 1e-9)
        if len(room) < wanted:
            return None
        return sorted(room, key=lambda i: self.gpus[i])[:wanted]


def gpu_shares(
    learners: int, generators: int, scorers: int, gpus: int
) -> tuple[float, float, float]:
    """GPUs for each learner rank, each generator and each scorer.

    Every actor finds room whatever the order in which Ray places them, each on the fullest GPU that
    has room, and no two ranks share one: NCCL refuses that. With GPUs to spare the scorers share
    those; with just one for each of the others they all fit beside any of them. With fewer, one
    rank shares like all the rest; several have a GPU each, and the rest share what is left, or all
    fit beside any rank. Where ranks outnumber GPUs there is no room for all.
    """
    whole, rest = learners + generators, generators + scorers
    if gpus == 0:
        shares = 0.0, 0.0, 0.0
    elif whole < gpus:
        shares = 1.0, 1.0, min(0.5, 1 / math.ceil(scorers / (gpus - whole)))
    elif whole == gpus:
        shares = 0.6, 0.6, 0.4 / scorers
    elif learners == 1:
        shares = (1 / math.ceil((1 + rest) / gpus),) * 3
    elif learners < gpus:
        shares = 1.0, *(1 / math.ceil(rest / (gpus - learners)),) * 2
    else:
        shares = 0.6, 0.4 / rest, 0.4 / rest
    learner, generator, scorer = map(_floor, shares)
    return learner, generator, scorer


def _floor(share: float) -> float:
    """Down to Ray's grain of 1/10,000, so that parts of a GPU never add up to more than one."""
    return math.floor(share * 10_000) / 10_000
