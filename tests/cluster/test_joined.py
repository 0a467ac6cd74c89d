"""A node that joins a Ray that is up, by `ray start`."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.nodes import several_nodes
from tests.running.jobs import TINY, job, rows, start, succeed, wait_for

AGENT = 26482  # the other ports of the tests' Ray are in tests/running/fixtures.py


@pytest.fixture
def joined(ray_address: str) -> Iterator[None]:
    """A second node of the tests' Ray, joined with `ray start`."""
    ports = [f"--dashboard-agent-listen-port={AGENT}", "--metrics-export-port=0"]
    ray = str(Path(sys.executable).parent / "ray")
    node = subprocess.Popen(
        [ray, "start", f"--address={ray_address}", "--num-cpus=2", "--block", *ports],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        node.terminate()
        node.wait(timeout=30)


def where_two_serve(run: str) -> set[str]:
    """Nodes of the generators, once two serve."""
    said = job("status", f"--run={run}", "--json").out
    actors = json.loads(said)["actors"] if said.startswith("{") else []
    serving = [a for a in actors if a["role"] == "generator" and a["state"] == "serving"]
    return {actor["node"] for actor in serving} if len(serving) == 2 else set()


@pytest.mark.slow
def test_generators_are_spread_over_a_node_that_joined_by_ray_start(joined, new_run):
    run, place = new_run("spread")
    flags = ("--cluster.generators=2", "--ppo.iterations=1000")
    driver = start("ppo", *place, *TINY, *flags, log=run / "log")
    try:
        where = wait_for(lambda: where_two_serve("spread"), why="two generators never served")
        assert "4 CPUs on 2 nodes" in (run / "log").read_text()
        assert len(where) == 2
    finally:
        driver.send_signal(signal.SIGINT)
        driver.wait(timeout=60)


@pytest.mark.slow
def test_a_generator_without_room_is_a_demand_that_a_new_node_meets(new_run):
    """What Ray's autoscaler brings nodes for; here one joins by hand."""
    run, place = new_run("growing")
    with several_nodes() as nodes:
        nodes.add(cpus=1)
        driver = start("ppo", *place, *TINY, "--ppo.iterations=2000", log=run / "log")
        try:
            wait_for(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) > 1)
            assert "(no resource demands)" in nodes.status()
            succeed("scale", "--run=growing", "--generators=+1")
            wait_for(lambda: "pending placement groups" in nodes.status(), why="no demand is seen")
            nodes.add(cpus=2)
            where = wait_for(lambda: where_two_serve("growing"), why="two generators never served")
            assert len(where) == 2
        finally:
            driver.send_signal(signal.SIGINT)
            driver.wait(timeout=60)
