"""The whole demonstration on a cluster of three nodes, by the command line of Ray's job server."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf_ray.observe.gauges import gauge_name
from rlhf_ray.observe.keys import KEYS, PHASES, row_of
from tests.cluster.scrape import families
from tests.cluster.submitting import ray_job, submit
from tests.running.heads import free_ports, wait_until
from tests.running.jobs import (
    ROOT,
    TINY,
    actor_processes,
    rows,
    succeed,
    summary,
    wait_for,
)


@dataclass
class Nodes:
    """A cluster that is up."""

    server: str
    address: str
    page: str


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head without CPUs, a node for generators, one for learners and scorers."""
    with tempfile.TemporaryDirectory(prefix="ray") as home, pytest.MonkeyPatch.context() as env:
        env.setenv("RAY_AUTH_MODE", "token")
        env.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        env.delenv("RAY_ADDRESS", raising=False)
        places = {
            "RAY_TMPDIR": home,  # also where Ray notes the cluster that `auto` would find
            "RAY_metrics_report_interval_ms": "1000",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        gcs, dashboard, metrics = free_ports(3)
        ports = map(str, (gcs, dashboard, metrics))
        log = Path(home) / "nodes.log"
        with log.open("w") as said:
            cluster = subprocess.Popen(
                [sys.executable, ROOT / "tests" / "cluster" / "three_nodes.py", *ports],
                env=os.environ | places,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        assert cluster.stdin and cluster.stdout
        try:
            wait_until(lambda: cluster.stdout.readline() == "up\n", cluster, log)
            address = f"127.0.0.1:{gcs}"
            env.setenv("RAY_ADDRESS", address)
            page = f"http://127.0.0.1:{metrics}/metrics"
            yield Nodes(f"http://127.0.0.1:{dashboard}", address, page)
        finally:
            cluster.stdin.close()
            cluster.wait(timeout=60)


@pytest.mark.slow
def test_a_run_from_nothing_to_its_end_with_every_role_on_its_own_node(nodes, tmp_path):
    run = tmp_path / "apart"
    flags = ("--cluster.role-resources", "--ppo.critic=separate", "--evaluate.every=2")
    first = submit(
        nodes.server, run, *TINY, *flags, "--ppo.iterations=6", options="--submission-id s1"
    )
    assert first.returncode == 0, first.stdout[-4000:]
    assert "succeeded" in first.stdout
    assert "4 CPUs on 2 nodes" in first.stdout
    assert summary(run)["rollouts"]["consumed"] == 96
    assert [row["step"] for row in rows(run)] == list(range(7))
    assert "succeeded" in ray_job(nodes.server, "status", "s1").stdout
    logs = ray_job(nodes.server, "logs", "s1").stdout
    assert "report: " in logs and len(logs.splitlines()) < 150


@pytest.mark.slow
def test_a_run_that_is_stopped_half_way_goes_on_by_another_job(nodes, tmp_path):
    run = tmp_path / "halves"
    flags = ("--cluster.role-resources", "--ppo.critic=separate", "--evaluate.every=2")
    options = "--no-wait --submission-id s2"
    begun = submit(nodes.server, run, *TINY, *flags, "--ppo.iterations=1000", options=options)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for(lambda: list(run.glob("checkpoints/step-*4")), why="no fourth iteration")
    said = succeed("status", "--run=halves", "--json")
    nodes_of = {row["role"]: row["node"] for row in json.loads(said)["actors"]}
    assert nodes_of["generator"] not in (nodes_of["learner"], nodes_of["reward"])
    assert nodes_of["learner"] == nodes_of["reward"] == nodes_of["reference"]
    names = {name for phase in PHASES for row in rows(run, phase) for name in row}
    written = {row_of(name)[0] for name in names - {"phase", "step", "time"}}
    wanted = {f"ray_{gauge_name(key)}" for key in written | {k for k, m in KEYS.items() if m.live}}
    wait_for(lambda: wanted <= families(nodes.page).keys(), seconds=30, why="a key is missing")
    ray_job(nodes.server, "stop", "s2")
    assert "STOPPED" in ray_job(nodes.server, "list").stdout
    wait_for(lambda: not actor_processes(), seconds=30, why="an actor outlives its job")
    last = max(int(path.name[-6:]) for path in run.glob("checkpoints/step-*")) + 2
    ended = submit(nodes.server, run, "--resume", f"--ppo.iterations={last}")
    assert ended.returncode == 0, ended.stdout[-4000:]
    assert [row["step"] for row in rows(run)] == list(range(last + 1))
    counts = summary(run)["rollouts"]
    assert counts["consumed"] == last * 16 and counts["duplicated"] == 0


@pytest.mark.slow
def test_a_job_that_fails_says_why_in_its_last_line(nodes, tmp_path):
    done = submit(nodes.server, tmp_path / "failing", "--data.texts=/no/such/texts.txt")
    assert done.returncode != 0
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("error: --data.texts /no/such/texts.txt")
    assert "Traceback" not in done.stdout
