"""What PPO or the reward model would refuse is refused before anything is trained."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from rlhf_ray.config import PPO, Config, MetaRM, Reward, RewardSource
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.observe.console import Console
from rlhf_ray.training.pipeline import run
from rlhf_ray.training.preflight import preflight
from tests.training.worlds import config_for

FUNCTIONS = """
def length(prompts, responses):
    return [float(len(text)) for text in responses]

def mean(prompts, responses):
    return [0.0 for _ in responses]
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run from nothing that has all it needs, but no file yet that it writes."""
    monkeypatch.chdir(tmp_path)
    Path("my_rewards.py").write_text(FUNCTIONS)
    Path("my_crash.py").write_text("import os\nos._exit(3)\n")
    Path("prompts.txt").write_text("".join(f"the room {i}\n" for i in range(20)))
    Path("held.txt").write_text("the view\n")
    Path("empty.txt").write_text("\n")
    Path("broken.jsonl").write_text('{"prompt": "the room"}\n{"prompt": \n')
    Path("other.jsonl").write_text('{"text": "no responses here"}\n')
    Path("plain").mkdir()
    made = config_for(tmp_path, ppo=PPO(prompts=8))
    return replace(made, data=replace(made.data, prompts="prompts.txt"))


def changed(config: Config, section: str, **fields: Any) -> Config:
    return replace(config, **{section: replace(getattr(config, section), **fields)})


def scored_by(config: Config, **source: Any) -> Config:
    return replace(config, reward=Reward(sources=(RewardSource(**source),)))


def test_a_run_that_has_all_it_needs_may_start(config: Config) -> None:
    preflight(config)
    preflight(scored_by(config, function="my_rewards:length"))


FAULTS = {
    "a context that the model lacks": (
        lambda c: changed(c, "data", max_prompt_tokens=1000),
        r"data\.max_prompt_tokens 1000 and .* make 1064, and the model that SFT trains takes 1024",
    ),
    "a reward model's row that its base lacks": (
        lambda c: changed(c, "rm", max_tokens=1025),
        r"--rm\.max-tokens is 1025, and the model has 1024 positions",
    ),
    "no prompts": (lambda c: changed(c, "data", prompts="empty.txt"), "holds no prompt"),
    "a broken prompt": (lambda c: changed(c, "data", prompts="broken.jsonl"), r"broken\.jsonl:2: "),
    "too few prompts": (lambda c: changed(c, "ppo", prompts=64), r"set --ppo\.prompts to at most"),
    "none held out": (
        lambda c: changed(c, "data", heldout_fraction=0.0),
        r"no prompt is held out to evaluate on",
    ),
    "beginnings of no length": (
        lambda c: changed(c, "data", prompt_prefix_chars=(5, 2)),
        r"data\.prompt_prefix_chars is 5, 2",
    ),
    "a template that is not there": (
        lambda c: changed(c, "data", chat_template="always"),
        r"data\.chat_template is always",
    ),
    "a function that is not there": (
        lambda c: scored_by(c, function="my_rewards:brevity"),
        r"'my_rewards:brevity' cannot be used: .* its functions are length, mean",
    ),
    "a module that is not there": (
        lambda c: scored_by(c, function="no_rewards:brevity"),
        r"there is no module 'no_rewards'",
    ),
    "a gold function whose module ends the process": (
        lambda c: replace(c, reward=Reward(gold="my_crash:gold")),
        r"reward\.gold: .*'my_crash:gold' cannot be used: ended the process .*exit code 3",
    ),
    "a name that is a metric's": (
        lambda c: scored_by(c, function="my_rewards:mean"),
        r"'my_rewards:mean' would be the metric score/mean, .* give the function another name",
    ),
    "a reward model that is none": (
        lambda c: scored_by(c, model="plain"),
        r"plain holds no reward model",
    ),
    "a classifier that is none": (
        lambda c: scored_by(c, classifier="./plain"),
        r"no model could be loaded from .*plain",
    ),
    "no lists": (lambda c: changed(c, "data", preferences=None), r"give --data\.preferences FILE"),
    "a broken list": (lambda c: changed(c, "data", preferences="other.jsonl"), r"other\.jsonl:1: "),
    "an ensemble without held-out lists": (
        lambda c: changed(
            changed(c, "data", heldout_fraction=0.0, heldout_prompts="held.txt"), "rm", members=2
        ),
        r"an ensemble needs held-out lists",
    ),
    "samples that are none": (
        lambda c: changed(c, "rm", meta=MetaRM(samples="other.jsonl")),
        r"other\.jsonl:1: ",
    ),
    "a vocabulary too small": (lambda c: changed(c, "model", vocab=100), r"model\.vocab is 100"),
    "no policy at all": (lambda c: changed(c, "sft", epochs=0), r"--sft\.epochs 0 skips SFT"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_trained_where_a_later_phase_would_fail(config: Config, fault: str) -> None:
    change, message = FAULTS[fault]
    config = change(config)
    with pytest.raises(ValueError, match=message):
        run(config, resume=False, console=Console("small", stream=io.StringIO()))
    assert not config.dir.exists()
    assert not ray.is_initialized()


def with_models(config: Config) -> None:
    """As after SFT and the reward model."""
    tokenizer = make_tokenizer(["the room was good"], 300)
    tokenizer.save_pretrained(config.dir / "sft")
    make_decoder(tokenizer, 64, 1, 0).save_pretrained(config.dir / "sft")
    (config.dir / "reward").mkdir()


@pytest.mark.parametrize(
    "fault",
    ["a context that the model lacks", "no prompts", "none held out", "a name that is a metric's"],
)
def test_where_all_models_are_there_the_rest_is_looked_at_all_the_same(
    config: Config, fault: str
) -> None:
    with_models(config)
    preflight(config)
    change, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message.replace("the model that SFT trains", ".*sft")):
        preflight(change(config))


def test_what_is_slow_to_look_at_is_not_looked_at_twice(config: Config) -> None:
    """A function's module may load a model, and scorers come next."""
    with_models(config)
    preflight(scored_by(config, function="no_rewards:brevity"))
