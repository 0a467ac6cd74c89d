"""jobs/bench_ppo.py on the tiny demonstration's model: what its last line promises."""

import json
from pathlib import Path

import pytest

from tests.running.jobs import succeed

pytestmark = pytest.mark.slow
SMALL = ("--batch=16", "--prompt-len=8", "--epochs=1", "--minibatches=2", "--updates=3")


def last_line(*flags: str) -> dict:
    return json.loads(succeed("bench_ppo", *SMALL, *flags).strip().splitlines()[-1])


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_responses_of_a_fixed_length_are_exactly_so_long(
    demonstration: tuple[Path, str], critic: str
) -> None:
    run, _ = demonstration
    found = last_line(f"--model={run / 'sft'}", "--response=24", f"--critic={critic}")
    assert found["mean_response"] == 24
    assert found["tokens_per_s"] == pytest.approx(24 * found["samples_per_s"])
    assert len(found["sec_per_update"]) == 2, "the first of three is not counted"
    seconds = sum(found["sec_per_update"]) / 2
    assert found["samples_per_s"] == pytest.approx(16 / seconds)
    assert 0 < max(found["phase_seconds"].values()) <= seconds
    assert set(found["phase_seconds"]) == {"generate", "score", "update", "publish"}
    assert found["peak_pss_mb"] > 100
    told = {name: found[name] for name in ("batch", "epochs", "minibatches", "critic")}
    assert told == {"batch": 16, "epochs": 1, "minibatches": 2, "critic": critic}


def test_responses_to_real_prompts_end_where_they_end(
    demonstration: tuple[Path, str], tmp_path: Path
) -> None:
    run, _ = demonstration
    (tmp_path / "prompts.txt").write_text("I bought this rice\n这个房间\nThe staff\n" * 9)
    asked = ("--eos", f"--prompts={tmp_path / 'prompts.txt'}", "--response=40")
    found = last_line(f"--model={run / 'sft'}", *asked)
    assert 1 <= found["mean_response"] < 40
