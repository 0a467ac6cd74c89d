"""jobs/bench_learner.py, small: its last line, and that it runs where Ray and vLLM are not."""

import json
import subprocess
import sys

import pytest

from tests.running.jobs import ROOT

TINY = "--device cpu --hidden 64 --layers 1 --vocab 64 --prompt-len 4 --response 8 --batch 4"
ALONE = """
import runpy, sys
sys.modules["ray"] = sys.modules["vllm"] = None  # importing them fails from now on
sys.argv = ["bench_learner.py", *sys.argv[1:]]
runpy.run_path("jobs/bench_learner.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["none", "separate"])
def test_it_needs_torch_alone_and_ends_with_json(critic: str):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *TINY.split(), "--updates", "1", "--critic", critic],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["device"] == "cpu" and found["dtype"] == "bfloat16"
    assert found["parameters"] > 64 * 64
    for name in ("update_tokens_per_s", "scoring_tokens_per_s", "product_tflops"):
        assert found[name] > 0
    assert 0 < found["update_share"] < 1 and 0 < found["scoring_share"] < 1
