"""The demonstration, tiny: every file that a run leaves, and what is in it."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.generators.environment import vllm_environment
from rlhf_ray.observe.keys import KEYS, PHASES, row_of
from tests.observe.test_metrics_documented import RARE
from tests.running.jobs import TINY, actor_processes, job, rows, summary, wait_for

# As somebody does who has vLLM and has never heard of this project.
PLAIN_VLLM = """
import sys
from vllm import LLM, SamplingParams
small = {"max_model_len": 64, "gpu_memory_utilization": 0.2, "kv_cache_memory_bytes": 32 << 20}
engine = LLM(sys.argv[1], dtype="float32", enforce_eager=True, **small)
asked = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
print(list(engine.generate(sys.argv[2], asked)[0].outputs[0].token_ids))
"""


def test_it_leaves_a_whole_run_and_no_process(demonstration):
    run, _ = demonstration
    for name in (
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        "tb",
        "rollouts",
        "checkpoints/step-000003/manifest.json",
        "policy/config.json",
    ):
        assert (run / name).exists(), name
    wait_for(lambda: not actor_processes(), seconds=30, why="an actor outlives the run")


def test_the_summary_has_what_people_compare(demonstration):
    run, _ = demonstration
    found = summary(run)
    heldout = found["heldout"]
    assert {"score_before", "score_after", "score_std_before", "kl"} <= heldout.keys()
    assert -1 <= heldout["gold_before"] <= 1
    assert -1 <= heldout["gold_after"] <= 1
    assert found["rollouts"] == {
        "committed": 48,
        "consumed": 48,
        "requeued": 0,
        "duplicated": 0,
    }
    assert found["bad_rows"] == 0
    assert found["samples_per_s"] > 0
    assert {"sft", "rm", "generate", "update"} <= found["phase_seconds"].keys()


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_has_its_metrics_and_no_others(demonstration, phase):
    run, _ = demonstration
    names = {name for row in rows(run, phase) for name in row.keys() - {"phase", "step", "time"}}
    keys = {row_of(name)[0] for name in names}
    its_own = {key for key, metric in KEYS.items() if phase in metric.phases and not metric.live}
    assert its_own - RARE <= keys <= its_own


def test_each_iteration_has_its_row(demonstration):
    run, _ = demonstration
    assert [row["step"] for row in rows(run)] == [0, 1, 2, 3]
    assert rows(run)[-1]["policy/ratio_max"] >= 1
    assert abs(rows(run)[1]["kl/mean_k1"]) < 0.05  # the first rollouts are the reference's own


def test_the_policy_is_a_plain_transformers_directory(demonstration):
    run, _ = demonstration
    model = AutoModelForCausalLM.from_pretrained(run / "policy")
    tokenizer = AutoTokenizer.from_pretrained(run / "policy")
    start = AutoModelForCausalLM.from_pretrained(run / "sft")
    moved = sum(
        not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True)
    )
    assert moved > 0
    ids = tokenizer("I bought this rice", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] == ids.shape[1] + 4


@pytest.mark.slow
def test_the_policy_is_one_that_plain_vllm_serves(demonstration, tmp_path):
    run, _ = demonstration
    prompt = "I bought this rice"
    script = tmp_path / "plain.py"  # vLLM starts its engine's process from a file
    script.write_text(PLAIN_VLLM)
    done = subprocess.run(
        [sys.executable, script, run / "policy", prompt],
        env=os.environ | vllm_environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ids = AutoTokenizer.from_pretrained(run / "policy")(prompt, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(run / "policy")
    expected = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert json.loads(done.stdout.splitlines()[-1]) == expected[0, ids.shape[1] :].tolist()


def test_a_checkpoint_knows_the_score_of_its_version(demonstration):
    run, _ = demonstration
    meta = json.loads((run / "checkpoints" / "step-000003" / "meta.json").read_text())
    assert meta["score"] == summary(run)["heldout"]["score_after"]


def test_the_console_shows_progress_and_the_end(demonstration):
    run, out = demonstration
    for phase in ("sft", "rm", "ppo"):
        assert f"  {phase}  " in out
    for word in ("before", "after", "KL", "tok/s", "left", f"report: {run / 'report.html'}"):
        assert word in out
    assert ".cc:" not in out, "a line of Ray's own log"


def test_a_second_start_does_not_overwrite(demonstration):
    run, _ = demonstration
    before = (run / "summary.json").read_text()
    done = job("ppo", f"--run.root={run.parent}", *TINY)
    assert done.code == 2
    assert "--resume" in done.out and "--run.overwrite" in done.out and "--run.name" in done.out
    assert (run / "summary.json").read_text() == before
    assert "Traceback" not in done.out


def test_provenance_names_data_and_threads(demonstration):
    run, _ = demonstration
    found = json.loads((run / "provenance.json").read_text())
    assert found["threads"]
    assert any(path.endswith("lists.tsv") for path in found["data"])
