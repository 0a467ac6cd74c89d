"""Recipes and flags: what is right gets through, what is wrong is named with its fix."""

from pathlib import Path

import pytest

from rlhf_ray.cli import Resumable, parse_resumable, read_recipe
from rlhf_ray.config import PPO, Config, RewardSource
from rlhf_ray.config_limits import ABOVE, BELOW, LEAST, MOST
from tests.running.jobs import ROOT


def _parse(*argv: str) -> Resumable:
    return parse_resumable(argv, prog="job", description="a job")


def _recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_the_class_defaults():
    assert _parse().config == Config()


def test_flags_override_the_recipe_which_overrides_the_defaults(tmp_path):
    recipe = _recipe(tmp_path, "ppo: {kl_coef: 0.2, lam: 0.9}\nrun: {name: x}\n")
    config = _parse("--recipe", str(recipe), "--ppo.kl-coef", "0.3").config
    assert (config.ppo.kl_coef, config.ppo.lam, config.run.name) == (0.3, 0.9, "x")
    assert config.ppo.clip_low == PPO().clip_low


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "recipes").glob("*.yaml")), ids=str)
def test_what_comes_along_is_a_recipe_and_named_after_its_run(path):
    assert read_recipe(path).run.name == path.stem


def test_resume_and_reward_sources(tmp_path):
    recipe = _recipe(tmp_path, "reward:\n  sources:\n  - {function: 'm:f', weight: 0.5}\n")
    command = _parse("--recipe", str(recipe), "--resume")
    assert command.resume
    assert command.config.reward.sources == (RewardSource(function="m:f", weight=0.5),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ppo: {lamm: 1}", "unknown key ppo.lamm: did you mean lam?"),
        ("pppo: {lam: 1}", "unknown key pppo: did you mean ppo?"),
        ("sft: {epochs: many}", "sft.epochs = 'many'"),
        ("ppo: {estimator: gea}", "ppo.estimator = 'gea'"),
        ("ppo: {prompts: 7}", "--ppo.prompts 8"),
        ("ppo: {estimator: rloo}", "set --ppo.samples 4, or --ppo.estimator gae"),
        ("reward: {sources: [{functoin: 'm:f'}]}", "0.functoin: did you mean function?"),
        ("reward: {sources: [{zzz: 1}]}", "known here: model, classifier, function"),
        ("reward: {sources: [{weight: 2}]}", "exactly one of model, classifier, function"),
        ("ppo: {warmup_iterations: 1, estimator: reinforce_pp}", "has none"),
        ("ppo: {kl_target: 2, kl_horizon: 10}", "β could turn negative; give more than 25.6"),
        ("ppo: {gamma: 1.5}", "--ppo.gamma is 1.5; it must be at most 1"),
        ("ppo: {dual_clip: 1}", "--ppo.dual-clip is 1.0; it must be above 1"),
        ("run: {name: ../other}", "--run.name is '../other'"),
        ("run: {name: ''}", "--run.name is ''"),
        ("- a list", "is a mapping of sections"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_named_with_its_fix(tmp_path, text, expected):
    path = _recipe(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        read_recipe(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_recipe_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("run: {name: café}".encode("latin-1"))
    with pytest.raises(ValueError, match=r"recipe.yaml is not UTF-8 text \(byte 15\): save it"):
        read_recipe(path)


def test_a_missing_recipe_says_where_recipes_are(tmp_path):
    with pytest.raises(ValueError, match="jobs/recipes"):
        _parse("--recipe", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--ppo.promps", "8", "--ppo.prompts"),
        ("--ppo.prompts", "7", "for example --ppo.prompts 8"),
        ("--data.on-bad-row", "ignore", "fail"),
    ],
)
def test_a_wrong_flag_ends_with_status_2_and_the_right_one(capsys, flag, value, expected):
    with pytest.raises(SystemExit) as caught:
        _parse(flag, value)
    assert caught.value.code == 2
    shown = "".join(capsys.readouterr())
    assert expected.replace(" ", "") in shown.replace("\n", "").replace("│", "").replace(" ", "")


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--cluster.generators", "0", "--cluster.generators is 0; it must be at least 1"),
        ("--rm.epochs", "0", "--rm.epochs is 0.0; it must be above 0"),
        ("--ppo.max-staleness", "-1", "--ppo.max-staleness is -1; it must be at least 0"),
        ("--ppo.gamma", "1.5", "--ppo.gamma is 1.5; it must be at most 1"),
        ("--data.heldout-fraction", "1", "--data.heldout-fraction is 1.0; it must be below 1"),
    ],
)
def test_a_number_out_of_its_limits_is_named_with_its_flag(flag, value, expected):
    with pytest.raises(ValueError, match=expected):
        _parse(flag, value)


def test_every_limit_is_of_a_number_that_is_there():
    for table in (LEAST, ABOVE, MOST, BELOW):
        for name in (name for names in table.values() for name in names):
            section, field = name.split(".")
            assert isinstance(getattr(getattr(Config(), section), field), int | float | None), name


def test_help_documents_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        _parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--recipe", "--resume", "--ppo.kl-coef", "--data.on-bad-row", "--run.root"):
        assert option in shown
