"""A node that joins a Ray that is up, by `ray start`."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running.jobs import TINY, job, start, wait_for

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


@pytest.mark.slow
def test_generators_are_spread_over_a_node_that_joined_by_ray_start(joined, new_run):
    run, place = new_run("spread")
    flags = ("--cluster.generators=2", "--ppo.iterations=1000")

    def both_serve() -> set[str]:
        said = job("status", "--run=spread", "--json").out
        actors = json.loads(said)["actors"] if said.startswith("{") else []
        serving = [a for a in actors if a["role"] == "generator" and a["state"] == "serving"]
        return {actor["node"] for actor in serving} if len(serving) == 2 else set()

    driver = start("ppo", *place, *TINY, *flags, log=run / "log")
    try:
        where = wait_for(both_serve, why="two generators never served at once")
        assert "4 CPUs on 2 nodes" in (run / "log").read_text()
        assert len(where) == 2
    finally:
        driver.send_signal(signal.SIGINT)
        driver.wait(timeout=60)
