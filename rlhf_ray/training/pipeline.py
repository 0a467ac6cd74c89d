"""The whole way: data → SFT → reward model → PPO → report. What is there is not made again."""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from rlhf_ray.cli import read_recipe
from rlhf_ray.config import Config, Reward, RewardSource
from rlhf_ray.data.demo import write_demo
from rlhf_ray.data.preferences import absolute_parts
from rlhf_ray.data.prompts import Prompts, batch_of_step, load_prompts
from rlhf_ray.models.ensemble import first_member
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.observe.console import Console
from rlhf_ray.observe.gauges import Gauges
from rlhf_ray.observe.keys import Phase
from rlhf_ray.observe.memory import PssSampler, process_tree
from rlhf_ray.observe.memory import ray_session as ray_processes
from rlhf_ray.observe.metrics import RunLog
from rlhf_ray.observe.provenance import write_provenance
from rlhf_ray.observe.report import write_report
from rlhf_ray.observe.samples import before_after
from rlhf_ray.observe.trackers import open_tracker
from rlhf_ray.orchestration.phases import stream
from rlhf_ray.orchestration.placement import plan_here
from rlhf_ray.orchestration.plan import Plan
from rlhf_ray.orchestration.session import ray_session, session_dir
from rlhf_ray.training.ownership import owned
from rlhf_ray.training.pictures import draw_reward
from rlhf_ray.training.ppo import Start, run_ppo
from rlhf_ray.training.reward_ensemble import train_ensemble
from rlhf_ray.training.reward_model import train_reward_model
from rlhf_ray.training.sft import train_sft

GOLD = "rlhf_ray.data.demo:gold_score"
SIDE_BY_SIDE = 6
Row = dict[str, Any]


def run(config: Config, *, resume: bool, console: Console) -> dict[str, Any]:
    """Everything from `config` to `policy/` and `report.html`; summary.json's content."""
    began = time.monotonic()
    with owned(config.dir):
        claim(config, resume=resume)
        config = resolve(config)
        config.dir.mkdir(parents=True, exist_ok=True)
        with ray_session(), PssSampler(_processes()) as memory:
            plan = plan_here(config)
            for line in plan.lines():
                console.note(line)
            _begin(config, plan)
            with open_log(config) as log:
                phases = Phases(config, plan, log, console)
                policy = phases.sft()
                prompts = phases.prompts(policy)
                reward, critic = phases.reward()
                summary = phases.ppo(Start(policy, critic, reward, resume), prompts)
        summary["phase_seconds"] = phases.seconds | summary["phase_seconds"]
        summary["bad_rows"] += phases.bad_rows
        summary |= {"peak_pss_mb": memory.peak_mb, "total_seconds": time.monotonic() - began}
        _write(config.dir / "summary.json", json.dumps(summary, indent=1, allow_nan=False))
        report = write_report(config.dir)
    console.summary(summary, before_after(config.dir)[:SIDE_BY_SIDE], report=str(report))
    return summary


def _begin(config: Config, plan: Plan) -> None:
    """Write what the run is of; not before the cluster has room for it, for --resume reads it."""
    _write(config.dir / "config.yaml", yaml.safe_dump(config.to_dict(), allow_unicode=True))
    write_provenance(
        config.dir, config.to_dict(), data_files=_files(config), threads={"role": plan.threads}
    )


def train_phase(config: Config, phase: Literal["sft", "rm"], console: Console) -> tuple[Path, Row]:
    """One supervised phase alone: the directory of its model, and its last row of metrics.

    Raises ValueError where the directory holds a model already, or there is nothing to start from.
    """
    with owned(config.dir):
        config = resolve(config)
        out = config.dir / {"sft": "sft", "rm": "reward"}[phase]
        if out.exists() and not config.run.overwrite:
            raise ValueError(
                f"{out} holds the model of an earlier run: give another --run.name, or replace it "
                f"with --run.overwrite"
            )
        base = reward_base(config) if phase == "rm" else ""
        with ray_session(), open_log(config) as log:
            phases = Phases(config, plan_here(config), log, console)
            if phase == "sft":
                return out, phases.train("sft", train_sft, config, str(out))
            last = phases.train_rewards(base, out)
        draw_reward(config.dir)
        return out, last


def reward_base(config: Config) -> str:
    """What a reward model grows from. ValueError where there is nothing."""
    base = config.rm.base or str(config.dir / "sft")
    if config.rm.base is None and not Path(base).is_dir():
        raise ValueError(
            f"a reward model grows from a model, and {base} holds none: run jobs/sft.py with the "
            f"same --run.name first, or give --rm.base DIR"
        )
    return base


class Phases:
    """The three phases, each shown and logged while it runs."""

    def __init__(self, config: Config, plan: Plan, log: RunLog, console: Console) -> None:
        self._config, self._plan, self._log, self._console = config, plan, log, console
        self.seconds: dict[str, float] = {}
        self.bad_rows = 0

    def sft(self) -> str:
        """The directory (or name) of the model that PPO starts from."""
        config = self._config
        if config.sft.epochs == 0:
            if config.model.path is None:
                raise ValueError("--sft.epochs 0 skips SFT: give the policy with --model.path")
            return config.model.path
        out = config.dir / "sft"
        if not out.is_dir():
            self.train("sft", train_sft, config, str(out))
        return str(out)

    def reward(self) -> tuple[Reward, str | None]:
        """What scores, and the reward model that a critic starts from."""
        config = self._config
        if config.reward.sources:
            models = [source.model for source in config.reward.sources if source.model]
            return config.reward, str(first_member(models[0])) if models else None
        out = config.dir / "reward"
        if not out.is_dir():
            self.train_rewards(config.rm.base or self.sft(), out)
        how, caution = config.rm.combine, config.rm.caution
        sources = (RewardSource(model=str(out), combine=how, caution=caution),)
        return dataclasses.replace(config.reward, sources=sources), str(first_member(out))

    def train_rewards(self, base: str, out: Path) -> Row:
        """The reward model at `out`, or the ensemble; the last row."""
        config, note = self._config, self._console.note
        if config.rm.members == 1:
            return self.train("rm", train_reward_model, config, base, str(out))
        rows = train_ensemble(config, base, out, plan=self._plan, log=note)
        return self.show("rm", rows)

    def prompts(self, policy: str) -> Prompts:
        """What PPO asks `policy`. ValueError where an iteration or an evaluation lacks prompts."""
        config = self._config
        tokenizer = load_tokenizer(policy, trust_remote_code=config.model.trust_remote_code)
        prompts = load_prompts(config.data, tokenizer, config.run.seed)
        batch_of_step(len(prompts.train), config.ppo.prompts, config.run.seed, 0)
        if not prompts.heldout:
            raise ValueError(
                "no prompt is held out to evaluate on: give --data.heldout-prompts FILE, or a "
                "--data.heldout-fraction above 0"
            )
        return prompts

    def ppo(self, start: Start, prompts: Prompts) -> Row:
        """The policy; summary.json's content."""
        return run_ppo(
            self._config, self._plan, start, prompts, log=self._log, console=self._console
        )

    def train(self, phase: Phase, train: Callable[..., Iterator[Row]], *args: Any) -> Row:
        """Run a supervised phase on Ray, show and log its rows; the last of them."""
        rows = stream(
            train,
            *args,
            share=self._plan.learner,
            threads=self._plan.threads,
            name=f"{phase} {self._config.run.name}",
            log=self._console.note,
        )
        return self.show(phase, rows)

    def show(self, phase: Phase, rows: Iterator[Row]) -> Row:
        """Show and log the rows of a phase as they come; the last of them."""
        began = time.monotonic()
        self._log.rewind(phase, 0)  # an earlier start may have been killed half-way
        row: Row = {}
        with self._console.phase(phase, 1) as line:
            for row in rows:
                follow(phase, row, log=self._log, line=line)
        self.bad_rows += int(row.get("bad_rows", 0))
        self.seconds[phase] = time.monotonic() - began
        return row


def open_log(config: Config) -> RunLog:
    """The run's numbers: its files, Ray's gauges, and a tracker where one is set."""
    tracker = open_tracker(config.run.tracker, config.dir, config.to_dict())
    return RunLog(config.dir, gauges=Gauges(config.run.name), tracker=tracker)


def follow(phase: Phase, row: Row, *, log: RunLog, line: Any) -> None:
    """Show and log one row of a supervised phase; what is no metric (eta, total) is not logged."""
    total, step = int(row["total"]), int(row["step"])
    metrics = {k: v for k, v in row.items() if k not in NOT_METRICS}
    line.update(step, metrics, total=total)
    log.write(phase, step, metrics)


NOT_METRICS = ("step", "total", "epoch", "eta_s", "done", "bad_rows", "leaked", "cut")


def resolve(config: Config) -> Config:
    """The config with user paths made absolute, and the demonstration's data where none is given.

    Raises ValueError for a file that is not there.
    """
    run = dataclasses.replace(config.run, root=str(Path(config.run.root).absolute()))
    config = _absolute_paths(dataclasses.replace(config, run=run))
    data = config.data
    if any((data.texts, data.prompts, data.preferences, config.model.path, config.reward.sources)):
        return config
    paths = write_demo(config.dir / "data", seed=config.run.seed)
    data = dataclasses.replace(
        data,
        texts=str(paths.texts),
        preferences=str(paths.lists),
        prompts=str(paths.prompts),
        heldout_prompts=data.heldout_prompts or str(paths.heldout_prompts),
    )
    reward = dataclasses.replace(config.reward, gold=config.reward.gold or GOLD)
    return dataclasses.replace(config, data=data, reward=reward)


def _absolute_paths(config: Config) -> Config:
    data = config.data
    data = dataclasses.replace(
        data,
        texts=_absolute(data.texts, "data.texts"),
        prompts=_absolute(data.prompts, "data.prompts"),
        preferences=_lists(data.preferences, "data.preferences"),
        heldout_preferences=_lists(data.heldout_preferences, "data.heldout_preferences"),
        heldout_prompts=_absolute(data.heldout_prompts, "data.heldout_prompts"),
    )
    model = dataclasses.replace(config.model, path=_absolute(config.model.path, "model.path"))
    meta = config.rm.meta
    meta = dataclasses.replace(meta, samples=_absolute(meta.samples, "rm.meta.samples"))
    rm = dataclasses.replace(config.rm, meta=meta, base=_absolute(config.rm.base, "rm.base"))
    sources = tuple(
        dataclasses.replace(
            source,
            model=_absolute(source.model, "reward.sources.model"),
            classifier=_absolute(source.classifier, "reward.sources.classifier"),
        )
        for source in config.reward.sources
    )
    reward = dataclasses.replace(config.reward, sources=sources)
    return dataclasses.replace(config, data=data, model=model, rm=rm, reward=reward)


def claim(config: Config, *, resume: bool) -> None:
    """Take the run's directory: see that no PPO in it is overwritten unless that is asked for."""
    begun = (config.dir / "checkpoints").is_dir() or (config.dir / "summary.json").exists()
    if resume or not begun:
        return
    if not config.run.overwrite:
        raise ValueError(
            f"{config.dir} holds a PPO run already: go on with it (--resume), start it again "
            f"(--run.overwrite), or choose another name (--run.name)"
        )
    shutil.rmtree(config.dir)


def read_run(directory: Path) -> Config:
    """The config that the run in `directory` began with. ValueError where there is no run."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise ValueError(
            f"{directory} holds no run to resume: start one without --resume, or name the right "
            f"one with --run.name and --run.root"
        )
    return read_recipe(path)


def _absolute(path: str | None, option: str) -> str | None:
    """`path` from the root where it is a file or directory; a name of a hub stays as it is."""
    if path is None:
        return None
    if Path(path).exists():
        return str(Path(path).absolute())
    if Path(path).suffix in FILES or path.startswith((".", "/", "~")):
        raise ValueError(f"--{option.replace('_', '-')} {path}: there is no such file or directory")
    return path


def _lists(path: str | None, option: str) -> str | None:
    """As `_absolute`, of each part of a mixture."""
    try:
        return None if path is None else absolute_parts(path)
    except ValueError as error:
        raise ValueError(f"--{option.replace('_', '-')} {error}") from None


FILES = (".txt", ".tsv", ".jsonl", ".parquet", ".json")


def _files(config: Config) -> Sequence[Path]:
    data = config.data
    given = [data.texts, data.prompts, data.preferences, config.rm.meta.samples]
    given += [data.heldout_prompts, data.heldout_preferences]
    return [Path(path) for path in given if path and Path(path).is_file()]


def _processes() -> Callable[[], set[int]]:
    """This process's tree, and Ray's session where that is not in it."""
    session = str(session_dir())
    return lambda: process_tree() | ray_processes(session)


def _write(path: Path, text: str) -> None:
    aside = path.with_suffix(".partial")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
