"""Recipes and flags: what is right gets through, what is wrong is named with its fix."""

import ast
import inspect
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from rlhf_ray.cli import Resumable, described, parse_resumable
from rlhf_ray.config import PPO, Config, Reward, RewardSource, Run
from rlhf_ray.recipes import read_recipe
from rlhf_ray.training import pipeline
from tests.running.here import job_here
from tests.running.jobs import ROOT


def _parse(*argv: str) -> Resumable:
    return parse_resumable(argv, prog="job", description="a job")


def _recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_the_class_defaults():
    assert _parse().config == Config()


@pytest.mark.parametrize("goes_on", ["--resume", "--resume-if-begun"])
def test_a_run_is_gone_on_with_or_overwritten(goes_on: str) -> None:
    assert _parse("--run.overwrite").config.run.overwrite
    with pytest.raises(ValueError, match=f"{goes_on} goes on .* --run.overwrite discards it"):
        _parse(goes_on, "--run.overwrite")


def test_flags_override_the_recipe_which_overrides_the_defaults(tmp_path):
    recipe = _recipe(tmp_path, "ppo: {kl_coef: 0.2, lam: 0.9}\nrun: {name: x}\n")
    config = _parse("--recipe", str(recipe), "--ppo.kl-coef", "0.3").config
    assert (config.ppo.kl_coef, config.ppo.lam, config.run.name) == (0.3, 0.9, "x")
    assert config.ppo.clip_low == PPO().clip_low


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "recipes").glob("*.yaml")), ids=str)
def test_what_comes_along_is_a_recipe_and_named_after_its_run(path):
    assert read_recipe(path).run.name == path.stem


@pytest.mark.parametrize("job", ["ppo", "sft", "rm", "status", "scale", "pause", "stop"])
def test_help_comes_from_a_bare_python_and_waits_for_no_torch(job, tmp_path):
    command = [sys.executable, "-X", "importtime", str(ROOT / "jobs" / f"{job}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert f"usage: jobs/{job}.py" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "tyro" in imported and not imported & {"torch", "transformers"}


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
        ("reward: {sources: [{functoin: 'm:f'}]}", "0.functoin: did you mean function?"),
        ("reward: {sources: [{zzz: 1}]}", "known here: model, classifier, function"),
        ("reward: {sources: [{weight: 2}]}", "exactly one of model, classifier, function"),
        ("ppo: {kl_target: 2, kl_horizon: 10}", "β could turn negative; give more than 25.6"),
        ("ppo: {kl_target: 2, kl_coef: 0}", "ppo.kl_target is 2 and ppo.kl_coef is 0: β adapts by "
         "factors, and 0 stays 0; give --ppo.kl-coef above 0, or --ppo.kl-target None"),
        ("ppo: {gamma: 1.5}", "--ppo.gamma is 1.5; it must be at most 1"),
        ("ppo: {dual_clip: 1}", "--ppo.dual-clip is 1.0; it must be above 1"),
        ("run: {name: ../other}", "--run.name is '../other'"),
        ("run: {name: ''}", "--run.name is ''"),
        ("run: {name: rlhf-2}", "names that begin with rlhf- are those of the runs' control"),
        ("- a list", "is a mapping of sections"),
        ("a: [", "is not valid YAML: line 1, column 5: expected the node content, but found '<str"),
        ("ppo:\n\tlam: 1", "line 2, column 1: found character '\\t' that cannot start any token: "),
        ("ppo: {}\n---\nrm: {}", "expected a single document in the stream, but found another"),
        ("ppo: {lam: 1}\nrm: {lr: 1}\nppo: {gamma: 1}", "line 3, column 1: 'ppo' stands here a"),
        ("ppo:\n  lam: 1\n  lam: .9", "line 3, column 3: 'lam' stands here again, after line 2"),
        ("ppo: {iterations: yes}", "ppo.iterations is true, which YAML also reads in yes, "
         "no, on and off: give a number"),
        ("rm: {lora: {alpha: off}}", "rm.lora.alpha is false, which YAML also reads in"),
        ("data: {prompt_prefix_chars: [yes, 3]}", "data.prompt_prefix_chars.0 is true"),
        ("run: {name: on}", "run.name is true, which YAML also reads in yes, no, on and off: put "
         "the word in quotes"),
        ("ppo: {critic: no}", "ppo.critic is false"),
        ("ppo:\n  iterations:", "ppo.iterations is empty: give it a value, or take the line out"),
        ("ppo: 4", "ppo is 4, and it is a section: write its settings below it, indented"),
        ("reward: {sources: {function: 'm:f'}}", "reward.sources is {'function': 'm:f'}, and it is "
         "a list: begin each entry with '- '"),
        ("rm: {lora: {targets: q_proj}}", "rm.lora.targets is 'q_proj', and it is a list"),
        ("ppo.iterations: 4", "unknown key ppo.iterations: write it as a section, ppo: "
         "{iterations: 4}"),
        ("--rm.lora.rank: 8", "write it as a section, rm: {lora: {rank: 8}}"),
        ("data.on-bad-row: skip", "write it as a section, data: {on_bad_row: skip}"),
    ],
)  # fmt: skip
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


def test_sections_and_lists_without_content_are_empty(tmp_path):
    text = "ppo:\n  # lam: 1\nrm:\n  lora:\nreward:\n  sources:\n  clip: null\nrun: {name: x}\n"
    config = read_recipe(_recipe(tmp_path, text))
    assert config == replace(Config(), run=Run(name="x"), reward=Reward(clip=None))
    assert read_recipe(_recipe(tmp_path, "")) == Config()


def test_a_config_is_read_as_it_was_written(tmp_path):
    sources = (RewardSource(function="m:f"), RewardSource(model="runs/x", weight=2.0))
    for config in (Config(), replace(Config(), reward=Reward(sources=sources))):
        assert read_recipe(_recipe(tmp_path, yaml.safe_dump(config.to_dict()))) == config


def test_a_merged_key_may_be_overridden(tmp_path):
    text = "rollout: {<<: {temperature: 0.5, sleep: true}, sleep: false}\n"
    rollout = read_recipe(_recipe(tmp_path, text)).rollout
    assert (rollout.temperature, rollout.sleep) == (0.5, False)


def test_a_missing_recipe_says_where_it_was_looked_for_and_where_recipes_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = rf"recipe none.yaml \({tmp_path}/none.yaml\) does not exist; .* in jobs/recipes/"
    with pytest.raises(ValueError, match=wanted):
        _parse("--recipe", "none.yaml")
    with pytest.raises(ValueError, match=f"recipe {tmp_path}/none.yaml does not exist"):
        _parse("--recipe", f"{tmp_path}/none.yaml")
    _recipe(tmp_path, "")
    with pytest.raises(ValueError, match=r"is a directory \(it holds recipe.yaml\): name one of"):
        _parse("--recipe", str(tmp_path))


@pytest.mark.parametrize("second", [("--recipe", "b.yaml"), ("--recipe=b.yaml",)])
def test_a_second_recipe_is_refused(second):
    with pytest.raises(ValueError, match=r"--recipe is given 2 times \([ab].yaml, [ab].yaml\)"):
        _parse("--recipe", "a.yaml", *second)


@pytest.mark.parametrize("flag", ["--reward.sources", "--reward.sources.0.model=runs/x"])
def test_sources_as_a_flag_are_told_where_they_belong(flag):
    with pytest.raises(ValueError, match=r"--reward\.sources is no flag: a recipe .*--recipe"):
        _parse(flag, "x")


def test_commands_in_a_help_keep_their_lines():
    doc = "A job.\n\npython a \\\n    --b\npython c   what it does\nMore of it,\nand more.\n"
    shown = (
        "A job.\n\n  python a \\\n      --b\n  python c   what it does\n\nMore of it,\nand more.\n"
    )
    assert described(doc) == shown


@pytest.mark.parametrize("args", [("--help",), ("-h",), ("quality", "--help")])
def test_a_study_shows_its_help(args, capsys):
    assert job_here("study_reward", *args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.strip().startswith("python jobs/study_reward.py labels") for line in lines)


@pytest.mark.parametrize("job", ["score", "sample", "scale", "pause", "bench_ppo", "bench_control"])
def test_each_command_of_a_help_stands_on_a_line_of_its_own(job, capsys):
    assert job_here(job, "--help") == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    text = (ROOT / "jobs" / f"{job}.py").read_text().split('"""')[1]
    commands = [line for line in text.split("\n") if line.startswith("python ")]
    assert len(commands) > 1
    for command in commands:  # what explains it may be on the next line
        assert any(line.startswith(command.split("   ")[0]) for line in lines)


@pytest.mark.parametrize(
    ("job", "args", "expected"),
    [
        ("sample", "--policy P --out o.jsonl --prompts 0", "--prompts is 0, which leaves nothing"),
        ("sample", "--policy P --out o.jsonl --samples -1", "--samples is -1, which leaves nothi"),
        ("bench_ppo", "--model M --updates 1", "--updates 1: the first is not counted"),
        ("soak", "--ppo.iterations=50", "--ppo.iterations is 50, and the first 50 are not looked"),
    ],
)
def test_too_few_to_say_anything_are_refused_at_once(job, args, expected, capsys):
    assert job_here(job, *args.split()) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("phase", ["sft", "rm"])
def test_a_phase_says_what_it_skipped(phase, monkeypatch, tmp_path, capsys):
    last = {"bad_rows": 2, "first_bad": "a.txt:3: it is empty"}
    monkeypatch.setattr(pipeline, "train_phase", lambda *_: (tmp_path, last))
    assert job_here(phase) == 0
    assert "2 bad rows skipped, the first: a.txt:3: it is empty\n" in capsys.readouterr().out
    last["bad_rows"] = 0
    assert job_here(phase) == 0
    assert "skipped" not in capsys.readouterr().out


def test_what_make_names_as_targets_has_a_rule():
    text = (ROOT / "Makefile").read_text()
    (named,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(named.split()) == set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


def test_a_split_names_its_own_flags(tmp_path, capsys):
    rows = ['{"question": "Q", "chosen": "a", "rejected": "b"}', '{"question": "Q", "chosen": "a"}']
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(rows))
    parts = ("--train", f"{tmp_path}/train.jsonl", "--test", f"{tmp_path}/test.jsonl")
    split = ("preferences", "split", str(path), *parts, "--prompt-column", "question")
    assert job_here(*split) == 2
    assert "a.jsonl:2: the columns" in (said := capsys.readouterr().err)
    assert said.endswith("or skip such rows: --on-bad-row skip\n")
    assert job_here(*split, "--on-bad-row", "skip") == 2
    said = capsys.readouterr().err
    assert f"{path} has only one group of lists" in said and said.endswith("or set --heldout 0\n")
    assert job_here(*split, "--on-bad-row", "skip", "--heldout", "0") == 0
    assert f"1 bad row skipped, the first: {path}:2: the columns" in capsys.readouterr().out
    assert '"prompt": "Q"' in (tmp_path / "train.jsonl").read_text()
    assert job_here(*split, "--heldout", "1") == 2
    assert "--heldout is 1.0: it is a share" in capsys.readouterr().err


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


def _options(section: type, path: str = "") -> Iterator[tuple[str, str]]:
    """Each flag below a section, and how the docstring of its field begins."""
    (tree,) = ast.parse(inspect.getsource(section)).body
    documented = {
        statement.target.id: below.value.value
        for statement, below in pairwise(tree.body)
        if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr)
    }
    for field in fields(section):
        if is_dataclass(field.type):
            yield from _options(field.type, f"{path}{field.name}.")
        elif (path, field.name) != ("reward.", "sources"):  # a list, which only a recipe can give
            flag = f"--{path}{field.name}".replace("_", "-")
            yield flag, " ".join(documented[field.name].split()[:4])


FLAG = re.compile(
    r"--(?:run|data|model|sft|rm|strength|reward|rollout|ppo|cluster|checkpoint|evaluate)"
    r"(?:\.[a-z0-9]+(?:-[a-z0-9]+)*)+"
)
TEXTS = [*(ROOT / "rlhf_ray").rglob("*.py"), *(ROOT / "jobs").rglob("*.py"), ROOT / "README.md"]
TEXTS += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "cluster").rglob("*.y*ml")]


def test_every_flag_that_we_name_is_one():
    """In messages and pages."""
    # What a recipe alone may list is named by errors about it; the last is Alertmanager's.
    flags = {"--reward.sources", "--reward.sources.model", "--reward.sources.classifier"}
    flags |= {"--cluster.listen-address"}
    flags |= {flag for flag, _ in _options(Config)}
    found = [(flag, path.name) for path in TEXTS for flag in FLAG.findall(path.read_text())]
    assert len(found) > 100
    assert not {one for one in found if one[0].replace(".no-", ".") not in flags}


def test_help_documents_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        _parse("--help")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    # An entry is a flag (its opposite too), what it takes, and its docstring.
    for flag, words in [("--recipe", "A YAML file"), ("--resume", "Go on"), *_options(Config)]:
        entry = rf"{flag}(, --\S+)?( (?!--)\S+)*? {re.escape(words)}"
        assert re.search(entry, shown), f"{flag} is not explained by {words!r}"


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_job_in_the_background_of_a_script_can_be_stopped(asked, tmp_path):
    """There a shell has SIGINT ignored."""
    job = tmp_path / "job.py"
    job.write_text(
        "import time\nfrom rlhf_ray import cli\n"
        "def main():\n    print('up', flush=True)\n    time.sleep(60)\ncli.run(main)\n"
    )
    ignored = f"trap '' INT; exec {sys.executable} {job}"
    with subprocess.Popen(
        ["sh", "-c", ignored],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(asked)
        assert process.communicate(timeout=30)[1] == "interrupted\n"
    assert process.returncode == 130
