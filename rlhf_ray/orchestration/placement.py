"""The plan on a real Ray: its nodes, placement groups, and hints of where they go."""

from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from rlhf_ray.config import Config
from rlhf_ray.orchestration.plan import Plan, plan
from rlhf_ray.orchestration.reactor import Late, Reactor
from rlhf_ray.orchestration.shares import Node, Share


def nodes() -> list[Node]:
    """The nodes that are alive and have something to give, by name."""
    found = [_node(node) for node in ray.nodes() if node["Alive"]]
    return sorted((n for n in found if n.cpus or n.gpus), key=lambda n: (n.name, n.node_id))


def _node(node: Mapping[str, Any]) -> Node:
    has = node["Resources"]
    offers = frozenset(name for name in has if name.startswith("rlhf_"))
    name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    return Node(node["NodeID"], name, has.get("CPU", 0.0), has.get("GPU", 0.0), offers)


def plan_here(config: Config) -> Plan:
    """The run's plan on the cluster that is up. ValueError where it does not fit."""
    made = plan(config.cluster, nodes(), tensor_parallel=config.rollout.tensor_parallel)
    if config.rollout.sleep and not made.generator.gpus:
        raise ValueError(
            "rollout.sleep frees a GPU's memory, and generators have no GPU here: leave it out"
        )
    gpus = sum(node.gpus for node in made.nodes)
    if config.cluster.weights_by == "cuda_ipc" and gpus != 1:
        raise ValueError(
            f"cluster.weights_by cuda_ipc is for a run that one GPU has to itself, and Ray has "
            f"{gpus:g} here: leave it out"
        )
    return made


def place_for(share: Share, index: int) -> PlacementGroup:
    """A placement group for one actor, on the node that the plan has for it while it has room."""
    return placement_group(
        [share.bundle()], strategy="STRICT_PACK", _soft_target_node_id=share.node(index)
    )


def near(share: Share, index: int) -> Any:
    """Schedule a role's actor on the node that the plan has for it while there is room."""
    node_id = share.node(index)
    return NodeAffinitySchedulingStrategy(node_id, soft=True) if node_id else "DEFAULT"


def reserve(
    reactor: Reactor,
    bundles: list[dict[str, float]],
    *,
    strategy: str,
    who: str,
    timeout: float,
    target: str | None = None,
) -> PlacementGroup:
    """A placement group that is there. ValueError, with what is free, where it is not in time.

    target: the node that a STRICT_PACK group is to go to while it has room.
    """
    target = target if strategy == "STRICT_PACK" else None
    group = placement_group(bundles, strategy=strategy, _soft_target_node_id=target)
    placed = False
    try:
        reactor.result(group.ready(), who=who, what="placement", timeout=timeout)
        placed = True
    except Late:
        raise ValueError(f"{who} was not placed in {timeout:.0f} s: {lacking(group)}") from None
    finally:
        if not placed:
            ray.util.remove_placement_group(group)
    return group


def lacking(group: PlacementGroup) -> str:
    """What a placement group waits for; "" where it is placed."""
    if ray.util.placement_group_table(group)["state"] == "CREATED":  # `wait(0)` says no too often
        return ""
    return room_for(group.bundle_specs)


def room_for(bundles: list[dict[str, float]]) -> str:
    """What somebody who waits for room is to know."""
    free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
    return (
        f"it needs {bundles}, and free now are {free}. "
        f"Stop what else uses the cluster, or lower what the run asks for"
    )


def within(group: PlacementGroup, bundle: int = 0) -> PlacementGroupSchedulingStrategy:
    """Schedule an actor into one bundle of `group`."""
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
