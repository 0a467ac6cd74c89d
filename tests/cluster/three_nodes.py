"""A head and two workers, each a node of its own to Ray, until stdin is closed.

python tests/cluster/three_nodes.py GCS_PORT DASHBOARD_PORT METRICS_PORT
"""

import sys

from ray.cluster_utils import Cluster

MEMORY = 200 << 20  # bytes of each node's object store


def main() -> None:
    gcs, dashboard, metrics = map(int, sys.argv[1:])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": MEMORY,
            "gcs_server_port": gcs,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": dashboard,
            "dashboard_agent_listen_port": 0,
            "metrics_export_port": metrics,
        },
    )
    generators = {"rlhf_generator": 1000.0}
    others = {"rlhf_learner": 1000.0, "rlhf_scorer": 1000.0}
    for resources in (generators, others):
        cluster.add_node(num_cpus=2, resources=resources, object_store_memory=MEMORY)
    print("up", flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
