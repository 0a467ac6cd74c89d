"""A policy that is named, not a directory: what is saved with it reads texts as the run did."""

from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers import PreTrainedTokenizerFast, Qwen2Config

from rlhf_ray.learners.export import _copy_tokenizer
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.tiny import make_tokenizer

TEXT = "the food was lovely, 很好"


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerFast:
    """The tokenizer of `owner/policy` in the hub's cache, a generic one beside a Qwen2 config."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    name = tmp_path / "hub" / "models--owner--policy"
    (name / "refs").mkdir(parents=True)
    (name / "refs" / "main").write_text("abc")
    made = make_tokenizer([TEXT] * 4, 300)
    made.save_pretrained(name / "snapshots" / "abc")
    Qwen2Config().save_pretrained(name / "snapshots" / "abc")
    return made


def test_its_tokenizer_is_saved_as_the_run_read_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    _copy_tokenizer("owner/policy", tmp_path / "policy", trust_remote_code=False)
    saved = load_tokenizer(tmp_path / "policy")
    assert saved(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert (len(saved), saved.eos_token_id) == (len(tokenizer), tokenizer.eos_token_id)
