"""That an actor lives, and where: what it says of its process, so that nobody has to ask Ray."""

import os
from dataclasses import dataclass

import ray

LIVENESS = "liveness"
# All that computes runs on one thread. Each thread that does has a team of OpenMP threads, and with
# more teams than cores they sleep between operations instead of waiting: half the speed.
CONCURRENCY = {LIVENESS: 1}


@dataclass(frozen=True, slots=True)
class Presence:
    """One process. node: the host's address and the beginning of Ray's id of the node."""

    pid: int
    node: str


def present() -> Presence:
    """Of the process that calls."""
    node = ray.get_runtime_context().get_node_id()
    return Presence(os.getpid(), f"{ray.util.get_node_ip_address()}/{node[:6]}")
