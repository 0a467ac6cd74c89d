"""jobs/bench_learner.py, small: its counts and its last line, where Ray and vLLM are not."""

import json
import runpy
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rlhf_ray.config import PPO
from rlhf_ray.learners.build import new_critic, prepare
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.ppo import PPOLearner
from rlhf_ray.models.actor_critic import Actor
from tests.running.jobs import ROOT

# 128 response tokens in rows of one length: in bfloat16 nothing is padded to round sizes.
SIZES = Namespace(
    device="cpu", hidden=128, layers=2, vocab=1000, prompt_len=8, response=32, batch=4
)

TINY = "--device cpu --hidden 64 --layers 1 --vocab 64 --prompt-len 4 --response 8 --batch 4"
ALONE = """
import runpy, sys
sys.modules["ray"] = sys.modules["vllm"] = None  # importing them fails from now on
sys.argv = ["bench_learner.py", *sys.argv[1:]]
runpy.run_path("jobs/bench_learner.py", run_name="__main__")
"""


@pytest.mark.parametrize("separate", [False, True])
def test_operations_are_those_that_torch_counts(separate: bool) -> None:
    """All but half of the attention, whose other half is masked: of a scoring pass."""
    bench = runpy.run_path(str(ROOT / "jobs/bench_learner.py"))
    model = prepare(bench["decoder"](SIZES))
    learner = PPOLearner(
        Actor(model),
        new_critic(prepare(bench["decoder"](SIZES)).base_model) if separate else None,
        settings=PPO(prompts=4, minibatches=1, estimator="gae" if separate else "reinforce_pp"),
        seed=0,
        temperature=1.0,
        dtype=torch.bfloat16,
        group=Group(),
    )
    with FlopCounterMode(display=False) as counter:
        learner.old_pass(bench["rollouts"](SIZES))
    positions = SIZES.prompt_len + SIZES.response - 1
    masked = 2 * SIZES.batch * SIZES.layers * positions**2 * SIZES.hidden
    body = sum(p.numel() for p in model.parameters()) - SIZES.vocab * SIZES.hidden
    counts = bench["forward_operations"]
    wanted = counts(SIZES, body, outputs=SIZES.vocab) + masked
    if separate:
        wanted += counts(SIZES, body, outputs=1) + masked
    assert counter.get_total_flops() == pytest.approx(wanted, rel=0.01)


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
