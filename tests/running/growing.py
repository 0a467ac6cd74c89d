"""A Ray whose own autoscaler brings nodes and takes them away, all on this machine."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.running.heads import free_ports
from tests.running.nodes import MEMORY, Nodes, several_nodes

HEAD, HEAD_KIND = "f" * 51 + "00000", "ray.head.default"  # as the provider below takes it
ENVIRONMENT = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
# The provider that Ray tests its autoscaler with. By its own name, fake_multinode, Ray reads a file
# for it that its wheel lacks; as a module of somebody else's it reads none.
PROVIDER = {
    "type": "external",
    "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    "head_node_id": HEAD,
    "launch_multiple": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
EMPTY = (  # what the launcher fills in before it hands the file to Ray
    *("initialization_commands", "setup_commands", "cluster_synced_files"),
    *("head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)


@contextmanager
def growing_nodes(kinds: dict[str, dict[str, float]]) -> Iterator[Nodes]:
    """Such a Ray for the block: a head without CPUs, and up to two nodes of each kind, as they are
    asked for. kinds: the resources of each."""
    (port,) = free_ports(1)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(_launcher_file(kinds, f"127.0.0.1:{port}"), file)
        file.flush()
        with several_nodes(f"--autoscaling-config={file.name}", port=port, **ENVIRONMENT) as nodes:
            yield nodes


def _launcher_file(kinds: dict[str, dict[str, float]], address: str) -> dict[str, object]:
    workers = {
        kind: {
            "resources": resources | {"object_store_memory": MEMORY},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        }
        for kind, resources in kinds.items()
    }
    head = {HEAD_KIND: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    return {
        "cluster_name": "growing",
        "max_workers": 2 * len(kinds),
        "idle_timeout_minutes": 0.1,
        "provider": PROVIDER | {"gcs_address": address},
        "available_node_types": head | workers,
        "head_node_type": HEAD_KIND,
        "auth": {},
        "file_mounts": {},
        **{key: [] for key in EMPTY},
    }
