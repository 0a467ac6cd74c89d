"""A Ray that a run starts for itself: nobody else's machine reaches it, and its own jobs do."""

import os
import signal
import subprocess
import sys

import pytest
import ray

from rlhf_ray.orchestration import session

STARTS = """
import psutil, ray, sys
from rlhf_ray.orchestration.session import ray_session

@ray.remote
class Echo:
    def say(self):
        return "here"

with ray_session():
    echo = Echo.options(name="echo", namespace="test").remote()
    ray.get(echo.say.remote(), timeout=60)
    me = psutil.Process()
    mine = {me.pid, *(child.pid for child in me.children(recursive=True))}
    listening = {c.laddr.ip.removeprefix("::ffff:") for c in psutil.net_connections("tcp")
                 if c.status == "LISTEN" and c.pid in mine}
    print(ray.get_runtime_context().gcs_address, *listening, flush=True)
    sys.stdin.read()
"""
JOINS = """
import ray, sys
from ray._private import services
from rlhf_ray.orchestration.session import join_session

def found():  # not what else is up on this machine
    return set(sys.argv[1:])
found.cache_clear = lambda: None
services.find_gcs_addresses, services.find_bootstrap_address = found, lambda _: None
with join_session():
    print(ray.get(ray.get_actor("echo", namespace="test").say.remote(), timeout=60))
"""


@pytest.mark.slow
def test_a_runs_own_ray_listens_on_127_0_0_1_alone_and_is_joined() -> None:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    run = [sys.executable, "-c"]
    with subprocess.Popen(
        [*run, STARTS],
        env=env | {"RAY_ADDRESS": "local"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        address, *listening = starter.stdout.readline().split()

        def joins(*found: str, **named: str) -> subprocess.CompletedProcess[str]:
            command = [*run, JOINS, *found]
            return subprocess.run(
                command, env=env | named, capture_output=True, text=True, check=False
            )

        alone, several = joins(address), joins(address, "127.0.0.1:1")
        told = joins(address, "127.0.0.1:1", RAY_ADDRESS=address)
        starter.communicate()
    assert listening == ["127.0.0.1"]
    assert alone.stdout.strip() == "here", alone.stderr[-2000:]
    assert "several Rays are up" in several.stderr and not several.stdout
    assert told.stdout.strip() == "here", told.stderr[-2000:]


def test_sigterm_does_what_the_job_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init` puts an exit of its own there, which stays only where nobody asked."""
    rays, jobs = (lambda *_: None), (lambda *_: None)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, rays))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "use_token", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        for asked, then in ((jobs, jobs), (signal.SIG_DFL, rays)):
            signal.signal(signal.SIGTERM, asked)
            with session.ray_session():
                assert signal.getsignal(signal.SIGTERM) is then
    finally:
        signal.signal(signal.SIGTERM, before)
