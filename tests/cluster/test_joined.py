"""Nodes that join a Ray that is up: by `ray start`, and by Ray's own autoscaler."""

import json
import signal

import pytest

from tests.running.growing import growing_nodes
from tests.running.jobs import TINY, job, rows, start, succeed, wait_for
from tests.running.nodes import several_nodes

LONG = "--ppo.iterations=5000"  # longer than any of these tests


def where_two_serve(run: str) -> set[str]:
    """Nodes of the generators, once two serve."""
    said = job("status", f"--run={run}", "--json").out
    actors = json.loads(said)["actors"] if said.startswith("{") else []
    serving = [a for a in actors if a["role"] == "generator" and a["state"] == "serving"]
    return {actor["node"] for actor in serving} if len(serving) == 2 else set()


@pytest.mark.slow
def test_generators_are_spread_over_nodes_that_joined_by_ray_start(new_run):
    run, place = new_run("spread")
    flags = ("--cluster.generators=2", LONG)
    with several_nodes() as nodes:
        nodes.add(cpus=2)
        nodes.add(cpus=2)
        driver = start("ppo", *place, *TINY, *flags, log=run / "log")
        try:
            where = wait_for(lambda: where_two_serve("spread"), why="two generators never served")
            assert "4 CPUs on 2 nodes" in (run / "log").read_text()
            assert len(where) == 2
        finally:
            driver.send_signal(signal.SIGINT)
            driver.wait(timeout=60)


@pytest.mark.slow
def test_the_autoscaler_of_ray_brings_each_role_its_nodes_and_takes_them_away(new_run):
    """A kind of node for each role, as in cluster/, and none of them up at the start."""
    run, place = new_run("growing")
    kinds = {
        "generators": {"CPU": 1, "rlhf_generator": 1},
        "others": {"CPU": 2, "rlhf_learner": 1, "rlhf_scorer": 1},
    }
    grows = ("--cluster.role-resources", "--cluster.autoscaling", "--cluster.threads=1")
    alone = "--cluster.generator-cpus=1"  # on its node
    with growing_nodes(kinds) as nodes:
        driver = start("ppo", *place, *TINY, *grows, alone, LONG, log=run / "log")
        try:
            wait_for(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) > 1)
            assert nodes.count("generators") == nodes.count("others") == 1
            succeed("scale", "--run=growing", "--generators=+1")
            wait_for(lambda: where_two_serve("growing"), why="two generators never served")
            assert nodes.count("generators") == 2
            succeed("scale", "--run=growing", "--generators=-1")
            wait_for(lambda: nodes.count("generators") == 1, why="the idle node stays")
            done = len(rows(run))
            wait_for(lambda: len(rows(run)) > done + 1, why="the run stands still")
        finally:
            driver.send_signal(signal.SIGINT)
            driver.wait(timeout=60)
        wait_for(lambda: not nodes.count("generators") + nodes.count("others"), why="nodes stay")
