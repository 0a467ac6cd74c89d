"""What a killed generator costs, and how soon another number of generators is there.

python jobs/bench_chaos.py [--model DIR] [--kills 3]

Real Ray, real vLLM, the real loop on random prompts (a small decoder is made where no model is
given): one generator, scaled to two while the loop goes on; one of the two killed with −9 while it
generates, `kills` times; scaled back to one. The last line is JSON, seconds throughout.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from jobs import bench_ppo
from rlhf_ray import cli
from rlhf_ray.config import Config
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reward_model import RewardModel
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.orchestration.cluster import Cluster
from rlhf_ray.orchestration.lifecycle import State
from rlhf_ray.orchestration.placement import plan_here
from rlhf_ray.orchestration.session import ray_session
from rlhf_ray.training.ppo import Start, make_specs

LOOK_EVERY = 0.02


@dataclass(frozen=True)
class Options:
    model: str | None = None
    """Directory of a causal language model; None: one is made."""
    kills: int = 3
    """Generators killed, one after the other."""
    batch: int = 64
    """Responses of one update."""
    response: int = 48
    """Tokens of a response, exactly."""
    steady: int = 4
    """Undisturbed iterations before each change, that it is compared with."""


@dataclass
class Iteration:
    """One turn of the loop. waited: of its seconds, for rollouts."""

    seconds: float
    waited: float


@dataclass
class Killed:
    """One kill. until_serving: until as many held a version as before.

    waited: for rollouts, in the iteration that it hit; calm_wait: the median of those before.
    own_shard: a shard's time, estimated from those.
    """

    until_serving: float = 0.0
    waited: float = 0.0
    calm_wait: float = 0.0
    own_shard: float = 0.0


@dataclass
class Bench:
    """The loop, one turn at a time, and what it measured."""

    config: Config
    cluster: Cluster
    turns: list[Iteration] = field(default_factory=list)
    at_done: float = 0.0

    def turn(self) -> Iteration:
        """One iteration of the loop of training/ppo.py, without evaluation and record."""
        cluster, step = self.cluster, self.cluster.step
        began = time.monotonic()
        with cluster.recovery():
            cluster.rollouts.request(step)
            batch = cluster.rollouts.take(step)
            stats = cluster.learners.update(step)
            cluster.publish(step + 1)
            cluster.done(step, stats["kl/mean_k1"])
            cluster.checkpoint(None)
        made = Iteration(time.monotonic() - began, batch.wait_seconds)
        self.turns.append(made)
        return made

    def turns_of(self, count: int) -> list[Iteration]:
        """So many iterations."""
        return [self.turn() for _ in range(count)]

    def until(self, done: Callable[[], bool]) -> list[Iteration]:
        """Iterations until `done()`, which is asked all the time; the time is kept in `at_done`."""
        found: list[float] = []

        def look(now: float) -> None:
            if not found and done():
                found.append(time.monotonic())

        self.cluster.reactor.every(LOOK_EVERY, look)
        turns = []
        while not found:
            turns.append(self.turn())
        self.at_done = found[0]
        return turns


def scale(bench: Bench, generators: int) -> dict[str, Any]:
    """Ask for so many generators; when they served, and when the newest had done a shard."""
    pool = bench.cluster.pool
    before = {member.life.name for member in pool.members()}
    calm = bench.turns[-1]
    began = time.monotonic()
    pool.scale(generators)
    if generators < len(before):
        turns = bench.until(lambda: len(pool.members()) == generators)
        return {"removed_after": bench.at_done - began, "longest_turn": _longest(turns)}
    new = {member.life.name for member in pool.members()} - before
    turns = bench.until(lambda: all(_serves(pool, name) for name in new))
    serving = bench.at_done - began
    turns += bench.until(lambda: all(m.done for m in pool.members() if m.life.name in new))
    return {
        "serving_after": serving,
        "first_rollout_after": bench.at_done - began,
        "learner_steps_meanwhile": len(turns),
        "longest_turn": _longest(turns),
        "turn_before": calm.seconds,
    }


def kill(bench: Bench, steady: int) -> Killed:
    """Kill one of the generators while it generates."""
    pool, found = bench.cluster.pool, Killed()
    calm = bench.turns_of(steady)
    found.calm_wait = median(turn.waited for turn in calm)
    alive = pool.loaded()
    struck: list[float] = []

    def strike(now: float) -> None:
        victims = [m for m in pool.members() if m.leases and m.life.state is State.SERVING]
        if not struck and victims and victims[-1].vitals is not None:
            struck.append(time.monotonic())
            os.kill(victims[-1].vitals.pid, signal.SIGKILL)

    bench.cluster.reactor.every(LOOK_EVERY, strike)
    found.waited = bench.turn().waited
    # A shard's time when two work side by side: an iteration's shards, shared out.
    config = bench.config
    shards = config.ppo.prompts // config.rollout.shard_prompts
    found.own_shard = found.calm_wait / max(1, shards // alive)
    bench.until(lambda: pool.loaded() == alive)
    found.until_serving = bench.at_done - struck[0]
    return found


def measure(options: Options, bench: Bench) -> dict[str, Any]:
    """The whole course; the figures."""
    began = time.monotonic()
    bench.cluster.start(None)
    started = time.monotonic() - began
    one = bench.turns_of(options.steady + 1)[1:]
    up = scale(bench, 2)
    two = bench.turns_of(options.steady)
    kills = [kill(bench, options.steady) for _ in range(options.kills)]
    down = scale(bench, 1)
    after = bench.turns_of(options.steady)
    counts = bench.cluster.ledger.counts
    asked = bench.cluster.step * bench.config.ppo.prompts
    cold = up["serving_after"]
    return {
        "run_started": started,
        "scale_up": up,
        "scale_down": down,
        "rollouts_per_s_of_generation": {
            "one": _rate(options, one),
            "two": _rate(options, two),
            "one_again": _rate(options, after),
        },
        "kills": [vars(found) for found in kills],
        "recovery": median(found.until_serving for found in kills),
        "recovery_over_cold_start": median(found.until_serving for found in kills) / cold,
        "iteration_delay": median(found.waited - found.calm_wait for found in kills),
        "delay_allowed": 2 * median(found.own_shard for found in kills) + 2.0,
        "lost": asked - counts["consumed"],
        "done_twice": counts["duplicated"],
        "asked_again": counts["requeued"],
        "restarts": bench.cluster.pool.restarts,
    }


def _serves(pool: Any, name: str) -> bool:
    return any(m.life.name == name and m.life.state is State.SERVING for m in pool.members())


def _longest(turns: list[Iteration]) -> float:
    return max((turn.seconds for turn in turns), default=0.0)


def _rate(options: Options, turns: list[Iteration]) -> float:
    return options.batch / median(turn.waited for turn in turns)


def make_model(directory: str) -> str:
    """A small decoder and its tokenizer in `directory`."""
    tokenizer = make_tokenizer(["all work and no play " * 50], 512)
    tokenizer.save_pretrained(directory)
    make_decoder(tokenizer, hidden=128, layers=4, seed=0).save_pretrained(directory)
    return directory


def main() -> int:
    options = tyro.cli(Options, prog="jobs/bench_chaos.py", description=cli.described(__doc__))
    with tempfile.TemporaryDirectory() as root, ray_session():
        model = options.model or make_model(f"{root}/model")
        RewardModel.from_backbone(model, "last", seed=0).save_pretrained(f"{root}/reward")
        load_tokenizer(model).save_pretrained(f"{root}/reward")
        sizes = bench_ppo.Options(
            model, batch=options.batch, response=options.response, updates=10**6
        )
        config = bench_ppo.make_config(sizes, root)
        config.dir.mkdir(parents=True)
        prompts = bench_ppo.make_prompts(sizes, config)
        start = Start(model, None, config.reward, resume=False)
        plan = plan_here(config)
        specs = make_specs(config, plan, start, prompts)
        cluster = Cluster(config, plan, prompts, specs, print)
        try:
            found = measure(options, Bench(config, cluster))
        finally:
            cluster.shutdown()
    print(json.dumps({"options": vars(options), **found}))
    return 0


if __name__ == "__main__":
    cli.run(main)
