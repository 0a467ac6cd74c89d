"""The whole way: data → SFT → reward model → PPO → report. What is there is not made again."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import yaml

from rlhf_ray.actors.control import refuse_namesake
from rlhf_ray.config import Config, Reward
from rlhf_ray.data.faults import skipped
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.files import write_json, write_text
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.observe.console import Console, PhaseLine
from rlhf_ray.observe.gauges import Gauges
from rlhf_ray.observe.keys import Phase
from rlhf_ray.observe.memory import PssSampler, process_tree
from rlhf_ray.observe.memory import ray_session as ray_processes
from rlhf_ray.observe.metrics import RunLog
from rlhf_ray.observe.provenance import write_provenance
from rlhf_ray.observe.report import write_report
from rlhf_ray.observe.samples import before_after
from rlhf_ray.observe.trackers import open_tracker
from rlhf_ray.orchestration.phases import run_phases, set_up
from rlhf_ray.orchestration.placement import plan_here
from rlhf_ray.orchestration.plan import Plan
from rlhf_ray.orchestration.session import ray_session, session_dir
from rlhf_ray.orchestration.visible import check_visible
from rlhf_ray.recipes import read_recipe
from rlhf_ray.training.critic_start import model_of, why_from_policy
from rlhf_ray.training.ownership import owned, put_back, replaced
from rlhf_ray.training.paths import (
    files_of,
    policy_of,
    read_on_nodes,
    resolve,
    reward_base,
    reward_of,
    vacant,
)
from rlhf_ray.training.pictures import draw_reward
from rlhf_ray.training.ppo import Start, run_ppo
from rlhf_ray.training.preflight import enough_prompts, preflight
from rlhf_ray.training.reward_ensemble import train_ensemble
from rlhf_ray.training.reward_model import train_reward_model
from rlhf_ray.training.sft import train_sft

SIDE_BY_SIDE = 6
HOLDS_MODEL = "the model of an earlier run"
NOT_METRICS = {"step", "total", "epoch", "eta_s", "done", "bad_rows", "first_bad", "leaked", "cut"}
Row = dict[str, Any]


def run(config: Config, *, resume: bool, console: Console) -> dict[str, Any]:
    """Everything from `config` to `policy/` and `report.html`; summary.json's content."""
    began = time.monotonic()
    with owned(config.dir), claimed(config, resume=resume) as discard_old:
        config = _resolved(config, console)
        preflight(config)
        with ray_session(), PssSampler(_processes()) as memory:
            refuse_namesake(config.run.name)
            plan = plan_here(config)
            for line in plan.lines():
                console.note(line)
            check_visible(config.dir, read_on_nodes(config), plan, log=console.note)
            begin = cache(partial(_begin, config, plan, discard_old))  # once
            with told_how_to_go_on(config, console), open_log(config) as log:
                phases = Phases(config, plan, log, console, begin)
                phases.tell_of_critic(policy_of(config) or config.model.path)
                policy = phases.sft()
                prompts = phases.prompts(policy)
                reward, critic = phases.reward(policy)
                start = Start(policy, critic, reward, resume)
                summary = run_ppo(
                    config, plan, start, prompts, log=log, console=console, begin=begin
                )
        summary["phase_seconds"] = phases.seconds | summary["phase_seconds"]
        summary["bad_rows"] += phases.bad_rows
        summary |= {"peak_pss_mb": memory.peak_mb, "total_seconds": time.monotonic() - began}
        write_json(config.dir / "summary.json", summary)
        report = write_report(config.dir)
    console.summary(summary, before_after(config.dir)[:SIDE_BY_SIDE], report=str(report))
    return summary


def train_phase(config: Config, phase: Literal["sft", "rm"], console: Console) -> tuple[Path, Row]:
    """One supervised phase alone: the directory of its model, and its last row of metrics.

    Raises ValueError where the directory holds a model already, or there is nothing to start from,
    or a PPO run would go on with another model than it began with.
    """
    alone = {"sft": _sft_alone, "rm": _reward_alone}[phase]
    with owned(config.dir):
        if (config.dir / "checkpoints").is_dir():
            raise ValueError(
                f"{config.dir} holds a PPO run, which goes on with the models that it began with: "
                f"give another --run.name, or begin all anew with jobs/ppo.py --run.overwrite"
            )
        return alone(_resolved(config, console), console)


def _sft_alone(config: Config, console: Console) -> tuple[Path, Row]:
    out = vacant(config, "sft", HOLDS_MODEL)
    with _phases(config, console) as phases:
        return out, phases.train_sft(out)


def _reward_alone(config: Config, console: Console) -> tuple[Path, Row]:
    out, base = vacant(config, "reward", HOLDS_MODEL), reward_base(config)
    with _phases(config, console) as phases:
        last = phases.train_rewards(base, out)
    draw_reward(config.dir)
    return out, last


class Phases:
    """The phases before PPO, each shown and logged while it runs.

    What each took and met is kept in `phases.json`: a run may go on in another process.
    begin: called before one trains: from then on the run has begun.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        log: RunLog,
        console: Console,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._plan, self._log, self._console = config, plan, log, console
        self._begin = begin
        self._kept = config.dir / "phases.json"
        self._ended: dict[str, dict[str, Any]] = {}
        self._critic_fault: str | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """What each phase of this run took."""
        return {phase: facts["seconds"] for phase, facts in self._ended.items()}

    @property
    def bad_rows(self) -> int:
        """How many bad rows they skipped."""
        return sum(facts["bad_rows"] for facts in self._ended.values())

    def sft(self) -> str:
        """The directory (or name) of the model that PPO starts from."""
        config, found = self._config, policy_of(self._config)
        if found is None:
            one_reward_next = reward_of(config) is None and config.rm.members == 1
            self.train_sft(config.dir / "sft", another_follows=one_reward_next)
            return str(config.dir / "sft")
        if config.sft.epochs:
            self._take_up("sft", found)
        return found

    def tell_of_critic(self, policy: str | None) -> None:
        """Say, once, why a separate critic starts from the policy: `why_from_policy`."""
        if self._critic_fault is None and (why := why_from_policy(self._config, policy)):
            self._critic_fault = why
            self._console.note(why)

    def reward(self, policy: str) -> tuple[Reward, str | None]:
        """What scores, and the reward model that a separate critic starts as."""
        config = self._config
        if reward_of(config) is None:
            self.train_rewards(config.rm.base or policy, config.dir / "reward")
        elif not config.reward.sources:
            self._take_up("rm", str(config.dir / "reward"))
        reward = reward_of(config)
        assert reward is not None
        self.tell_of_critic(policy)
        return reward, None if self._critic_fault else model_of(reward)

    def prompts(self, policy: str) -> Prompts:
        """What PPO asks `policy`."""
        trust = self._config.model.trust_remote_code
        prompts = enough_prompts(self._config, load_tokenizer(policy, trust_remote_code=trust))
        if prompts.overlap:
            told = f"{prompts.overlap} prompts are held-out ones too: they are not trained on"
            self._console.note(told)
        if prompts.bad_rows:
            self._console.note(f"prompts: {skipped(prompts.bad_rows, prompts.first_bad)}")
        return prompts

    def train_sft(self, out: Path, *, another_follows: bool = False) -> Row:
        """The language model at `out`; the last row."""
        return self._train(
            "sft", train_sft, self._config, str(out), another_follows=another_follows
        )

    def train_rewards(self, base: str, out: Path) -> Row:
        """The reward model at `out`, or the ensemble; the last row."""
        config, note = self._config, self._console.note
        if config.rm.members == 1:
            return self._train("rm", train_reward_model, config, base, str(out))
        return self._show("rm", train_ensemble(config, base, out, plan=self._plan, log=note))

    def _train(
        self,
        phase: Phase,
        train: Callable[..., Iterator[Row]],
        *args: Any,
        another_follows: bool = False,
    ) -> Row:
        rows = run_phases(
            set_up(train),
            [(args, {})],
            share=self._plan.learner,
            threads=self._plan.threads,
            name=f"{phase} {self._config.run.name}",
            start_timeout=self._config.cluster.start_timeout_s,
            log=self._console.note,
            another_follows=another_follows,
        )
        return self._show(phase, (row for _, row in rows))

    def _show(self, phase: Phase, rows: Iterator[Row]) -> Row:
        """Show and log the rows of a phase as they come; the last of them."""
        self._begin()
        began = time.monotonic()
        self._log.rewind(phase, 0)  # an earlier start may have been killed half-way
        row: Row = {}
        with self._console.phase(phase, 1) as line:
            for row in rows:
                follow(phase, row, log=self._log, line=line)
        facts = {"seconds": time.monotonic() - began, "bad_rows": int(row.get("bad_rows", 0))}
        self._ended[phase] = facts
        write_json(self._kept, self._read() | {phase: facts})
        return row

    def _take_up(self, phase: Phase, model: str) -> None:
        """Count what this phase took in an earlier start, where it was one of this run."""
        if phase in self._ended:
            return
        self._console.note(f"{phase}: {model} is there already (--run.overwrite makes it anew)")
        if phase in (kept := self._read()):
            self._ended[phase] = kept[phase]

    def _read(self) -> dict[str, Any]:
        return json.loads(self._kept.read_text()) if self._kept.is_file() else {}


@contextmanager
def _phases(config: Config, console: Console) -> Iterator[Phases]:
    """A Ray for one phase alone."""
    with ray_session(), open_log(config) as log:
        plan = plan_here(config)
        check_visible(config.dir, read_on_nodes(config), plan, log=console.note)
        yield Phases(config, plan, log, console)


def open_log(config: Config) -> RunLog:
    """The run's numbers: its files, Ray's gauges, and a tracker where one is set."""
    tracker = open_tracker(config.run.tracker, config.dir, config.to_dict())
    return RunLog(config.dir, gauges=Gauges(config.run.name), tracker=tracker)


def follow(phase: Phase, row: Row, *, log: RunLog, line: PhaseLine) -> None:
    """Show and log one row of a supervised phase; what is no metric (eta, total) is not logged."""
    total, step = int(row["total"]), int(row["step"])
    metrics = {k: v for k, v in row.items() if k not in NOT_METRICS}
    line.update(step, metrics, total=total)
    log.write(phase, step, metrics)


@contextmanager
def claimed(config: Config, *, resume: bool) -> Iterator[Callable[[], None]]:
    """Take the run's directory. --run.overwrite moves the old run aside; the call given deletes it.

    Where the new run has not begun by the end it is put back; after a kill, by the next owner.
    Raises ValueError for a PPO run that nobody wants overwritten.
    """
    place = config.dir.resolve()  # a link to it stays
    aside = replaced(place)
    begun = (place / "checkpoints").is_dir() or (place / "summary.json").exists()
    if begun and not (resume or config.run.overwrite):
        raise ValueError(
            f"{config.dir} holds a PPO run already: go on with it (--resume), start it again "
            f"(--run.overwrite), or choose another name (--run.name)"
        )
    if resume or not config.run.overwrite or not place.is_dir():
        yield lambda: None
        return
    place.rename(aside)
    if config.dir.is_symlink():
        place.mkdir()  # a link that leads nowhere could not be written through
    try:
        yield lambda: shutil.rmtree(aside)
    finally:
        put_back(place)


@contextmanager
def told_how_to_go_on(config: Config, console: Console) -> Iterator[None]:
    """After Ctrl-C, where the run has begun."""
    try:
        yield
    except KeyboardInterrupt:
        if (config.dir / "config.yaml").is_file():
            console.note("interrupted: the run goes on with --resume")
        raise


def read_run(directory: Path) -> Config:
    """The config that the run in `directory` began with. ValueError where there is no run.

    As it holds there now: a run that was copied or moved works in `directory`, on the data that
    came along, and `run.overwrite` was of what its first start found.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        raise ValueError(
            f"{directory} holds no run to resume: start one without --resume, or name the right "
            f"one with --run.name and --run.root"
        )
    config = read_recipe(path)
    before = f"{config.dir}{os.sep}"
    data: dict[str, Any] = {
        name: str(directory / value.removeprefix(before))
        for name, value in vars(config.data).items()
        if isinstance(value, str) and value.startswith(before)
    }
    run = replace(config.run, root=str(directory.parent), name=directory.name, overwrite=False)
    return replace(config, run=run, data=replace(config.data, **data))


def _resolved(config: Config, console: Console) -> Config:
    """`resolve`, and a word where it takes the demonstration's data."""
    resolved = resolve(config)
    if resolved.data != config.data and config.data.texts is None and resolved.data.texts:
        console.note("no data were given: these are the demonstration's, made by code")
    return resolved


def _begin(config: Config, plan: Plan, discard_old: Callable[[], None]) -> None:
    """Write what the run is of, and let go of the one that it overwrites.

    Not before something is made that is worth going on with: what --resume reads is of a run that
    could start, and what is refused before then has cost nothing.
    """
    threads = {"role": plan.threads}
    write_provenance(config.dir, config.to_dict(), data_files=files_of(config), threads=threads)
    # Last: from here on the run has begun, and what it overwrites is not put back.
    write_text(config.dir / "config.yaml", yaml.safe_dump(config.to_dict(), allow_unicode=True))
    discard_old()


def _processes() -> Callable[[], set[int]]:
    """This process's tree, and Ray's session where that is not in it."""
    session = str(session_dir())
    return lambda: process_tree() | ray_processes(session)
