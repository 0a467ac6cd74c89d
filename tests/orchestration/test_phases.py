"""A phase whose process dies ends the job with one line that names it."""

import subprocess
import sys

from tests.running.jobs import ROOT

KILLED = """
import os, sys
sys.path.insert(0, ".")
from rlhf_ray import cli
from rlhf_ray.orchestration.phases import stream
from rlhf_ray.orchestration.session import ray_session
from rlhf_ray.orchestration.shares import Share

def phase():
    yield {"step": 1}
    os.kill(os.getpid(), 9)

def main():
    with ray_session():
        list(stream(phase, share=Share(0.5, 0), threads=1, name="sft mine", log=print))

cli.run(main)
"""


def test_a_killed_phase_is_named_with_what_to_do(ray_address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=ROOT,
        timeout=120,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 2, done.stdout[-2000:]
    assert "Traceback" not in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("error: the process of sft mine died")
    assert "start the same command again" in last
