"""Whether all nodes see what a run writes and reads: each is asked before anything starts."""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlhf_ray.orchestration.reactor import Outcome, Reactor, first_line

if TYPE_CHECKING:  # seconds of torch, which a node that only looks for files need not import
    from rlhf_ray.orchestration.plan import Plan
    from rlhf_ray.orchestration.shares import Node

ANSWERED_WITHIN = 60.0  # seconds for all nodes together; a worker starts first on each
SHOWN_WITHIN = 5.0  # seconds for a file that was just written to be seen elsewhere
LOOK_EVERY = 0.25


def check_visible(
    directory: Path, paths: Sequence[Path], plan: "Plan", *, log: Callable[[str], None]
) -> None:
    """Raise ValueError where a node that may take a part of `plan` lacks `directory` or a path.

    Asked are those that are up, but for the driver's own; where that is the only one, nobody. One
    that dies meanwhile or is late does not hold the run up: `log` says which.
    """
    if not (nodes := _others(plan)):
        return
    directory.mkdir(parents=True, exist_ok=True)
    # Any node may have a directory of that name: only the same one holds this file.
    with tempfile.NamedTemporaryFile(prefix=".seen-", dir=directory) as token:
        lacking = _ask(nodes, Path(token.name), paths, log)
    if lacking:
        found = (
            f"{', '.join(names)} cannot see what the driver's node has at "
            f"{', '.join(map(str, lost))}"
            for lost, names in lacking.items()
        )
        raise ValueError(
            f"{'; '.join(found)}. Put runs, data and models on storage that every node has at the "
            f"same path (NFS, EFS, Lustre), and name it with --run.root, --data.* and --model.path"
        )


def unseen(token: Path, paths: Sequence[Path], *, within: float) -> list[Path]:
    """What this node lacks: the directory that `token` is in, and any of `paths`.

    What is not there at once is looked for again, for `within` seconds.
    """
    end = time.monotonic() + within
    while True:
        lost = [path for path in (token, *paths) if not os.path.exists(path)]
        if not lost or time.monotonic() >= end:
            return [token.parent if path == token else path for path in lost]
        time.sleep(LOOK_EVERY)
        with suppress(OSError):  # NFS asks its server anew about a directory that is opened
            os.listdir(token.parent.parent)


def _others(plan: "Plan") -> list["Node"]:
    """The nodes that have room for somebody of `plan`, without the driver's."""
    from rlhf_ray.orchestration.shares import Room

    own, shares = ray.get_runtime_context().get_node_id(), [share for *_, share in plan.roles()]
    others = [node for node in plan.nodes if node.node_id != own]
    return [node for node in others if any(Room(node).fits(share) for share in shares)]


def _ask(
    nodes: Sequence["Node"], token: Path, paths: Sequence[Path], log: Callable[[str], None]
) -> dict[tuple[Path, ...], list[str]]:
    """Names of nodes by what they lack; those that lack nothing, or did not say, are left out."""
    reactor, said = Reactor(), dict[str, Outcome]()
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        look = ray.remote(max_calls=1)(unseen).options(
            name="look for paths", num_cpus=0, max_retries=0, scheduling_strategy=there
        )
        reactor.when(
            look.remote(token, paths, within=SHOWN_WITHIN),
            partial(said.__setitem__, node.node_id),
            who=node.name,
            what="look for paths",
            timeout=ANSWERED_WITHIN,
        )
    reactor.pump_until(lambda: len(said) == len(nodes))
    lacking: dict[tuple[Path, ...], list[str]] = defaultdict(list)
    for node in nodes:
        outcome = said[node.node_id]
        if outcome.error:
            why = first_line(outcome.error)
            log(f"whether {node.name} sees the run's files is not known: {why}")
        elif outcome.value:
            lacking[tuple(outcome.value)].append(node.name)
    return lacking
