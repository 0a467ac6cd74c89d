"""Proportional set size of real processes."""

import os
import subprocess
import sys
import time

from rlhf_ray.observe.memory import PssSampler, process_tree, pss_mb, ray_session

HOLD = "import sys; block = b'x' * {mb}_000_000; print('up', flush=True); sys.stdin.read()"
FORK = """
import os, sys
block = b'x' * {mb}_000_000
child = os.fork()
if child:
    print('up', flush=True)
sys.stdin.read()
if child:
    os.wait()
"""


def hold(mb: int, *names: str, program: str = HOLD) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", program.format(mb=mb), *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    return child


def release(child: subprocess.Popen[str]) -> None:
    child.communicate()
    assert child.wait() == 0


def test_pss_counts_a_childs_memory() -> None:
    child = hold(100)
    try:
        assert child.pid in process_tree() and os.getpid() in process_tree()
        assert 100 <= pss_mb([child.pid]) < 130
    finally:
        release(child)
    assert pss_mb([child.pid]) == 0.0


def test_shared_pages_are_counted_once() -> None:
    parent = hold(100, program=FORK)
    try:
        both = process_tree(parent.pid)
        assert len(both) == 2
        assert 100 <= pss_mb(both) < 130
    finally:
        release(parent)


def test_the_sampler_keeps_the_peak() -> None:
    held: list[subprocess.Popen[str]] = []
    with PssSampler(lambda: [child.pid for child in held], interval=0.02) as memory:
        held.append(hold(150))
        deadline = time.monotonic() + 20
        while memory.peak_mb < 150 and time.monotonic() < deadline:
            time.sleep(0.02)
        release(held[0])
    assert 150 <= memory.peak_mb < 190


def test_a_session_is_found_by_the_name_of_its_directory() -> None:
    name = f"session_of_test_{os.getpid()}"
    child = hold(1, f"/tmp/ray/{name}/logs")
    try:
        assert ray_session(f"/tmp/ray/{name}") == {child.pid}
    finally:
        release(child)
