"""Which actors the tests take for theirs: what they wait for, and kill."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.running.jobs import actor_processes, wait_for

# Stands for a node of Ray: it has a child that is titled as an actor.
NODE = "import subprocess; subprocess.run(['ray::DecoyActor.step', '999'], executable='/bin/sleep')"


@contextmanager
def pretended_node(port: int) -> Iterator[psutil.Process]:
    """Its actor."""
    address = f"--gcs-address=192.0.2.1:{port}"
    node = psutil.Popen([sys.executable, "-c", NODE, address])
    try:
        (actor,) = wait_for(node.children)
        yield actor
        actor.kill()
    finally:
        node.kill()


def test_actors_of_another_ray_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:20001")
    with pretended_node(20001) as own, pretended_node(20002), pretended_node(30001):
        wait_for(lambda: actor_processes() == [own])
        assert actor_processes("decoy") == [own] and not actor_processes("learner")
    assert not actor_processes()
