"""Sample files: the round trip, and the same prompts before and after."""

from pathlib import Path

from rlhf_ray.observe.samples import Sample, before_after, read_samples, write_sample_file

BEFORE = [
    Sample(7, "这家店的", "服务很差。", -1.5, kl=0.0, gold=0.1, tokens=5, finish_reason="eos"),
    Sample(8, "The screen", "is dim.", -0.5, kl=0.0, gold=0.2, tokens=4, finish_reason="length"),
]
AFTER = [
    Sample(8, "The screen", "is bright.", 2.5, kl=4.0, components={"rm": 2.0, "polite": 0.5}),
    Sample(9, "New", "prompt", 0.0, components={"rm": 0.0, "polite": 0.0}),
]


def test_round_trip(tmp_path: Path) -> None:
    for samples in (BEFORE, AFTER):
        path = write_sample_file(tmp_path, 10, samples)
        assert path == tmp_path / "rollouts" / "step-000010.parquet"
        assert read_samples(path) == samples
    assert list((tmp_path / "rollouts").iterdir()) == [path]


def test_before_after_joins_first_and_last_by_prompt(tmp_path: Path) -> None:
    write_sample_file(tmp_path, 0, BEFORE, split="heldout")
    assert before_after(tmp_path) == []
    write_sample_file(tmp_path, 10, BEFORE, split="heldout")
    write_sample_file(tmp_path, 20, AFTER, split="heldout")
    write_sample_file(tmp_path, 30, BEFORE)
    (pair,) = before_after(tmp_path)
    assert (pair.prompt, pair.before, pair.after) == ("The screen", BEFORE[1], AFTER[0])
