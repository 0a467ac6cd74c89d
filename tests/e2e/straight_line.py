"""PPO in a straight line over the same actors: no ledger, no pool, no event loop, call by call.

An oracle of orchestration/ alone: what the actors do is the same here and there.

python tests/e2e/straight_line.py OUT [arguments of jobs/ppo.py]     the policy is written to OUT
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ray

from rlhf_ray import cli
from rlhf_ray.actors.generator import GeneratorActor, Order
from rlhf_ray.actors.learner import LearnerActor
from rlhf_ray.actors.presence import CONCURRENCY
from rlhf_ray.actors.scorers import ReferenceActor, RewardActor
from rlhf_ray.config import Config
from rlhf_ray.data.ids import TRAIN, RolloutKey, Version
from rlhf_ray.data.prompts import batch_of_step, load_prompts
from rlhf_ray.generators.environment import torch_environment
from rlhf_ray.generators.registry import BACKENDS
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reward_model import Calibration
from rlhf_ray.observe.console import Console
from rlhf_ray.orchestration.placement import plan_here
from rlhf_ray.orchestration.session import ray_session
from rlhf_ray.training.pipeline import Phases, resolve
from rlhf_ray.training.ppo import Start, make_specs


def ask(call: Any) -> Any:
    return ray.get(call, timeout=120)


class Line:
    """One actor of each role, with the environment that the run gives them."""

    def __init__(self, config: Config, calibration: Calibration) -> None:
        self.config, self.calibration = config, calibration
        plan = plan_here(config)
        policy = str(config.dir / "sft")
        console = Console(config.run.name)
        reward, critic = Phases(config, plan, None, console).reward(policy)  # type: ignore[arg-type]
        tokenizer = load_tokenizer(policy)
        self.prompts = load_prompts(config.data, tokenizer, config.run.seed)
        specs = make_specs(config, plan, Start(policy, critic, reward, False), self.prompts)

        def make(role: type, env: dict[str, str], *args: Any) -> Any:
            options = {"num_cpus": 0, "runtime_env": {"env_vars": env}}
            if role is GeneratorActor:
                return ray.remote(role).options(**options, max_concurrency=8).remote(*args)
            groups = ray.remote(concurrency_groups=CONCURRENCY)(role)
            return groups.options(**options).remote(*args)

        half = torch_environment(max(1, plan.threads // 2))
        engine = BACKENDS[specs.generator.backend].environment(plan.threads)
        self.generator = make(GeneratorActor, engine, "generator", specs.generator)
        self.reference = make(ReferenceActor, half, specs.scorer)
        self.reward = make(RewardActor, half, specs.scorer)
        self.learner = make(LearnerActor, torch_environment(plan.threads), 0, 1, specs.learner)
        ask(self.learner.start.remote(None))
        ask(self.generator.ready.remote())

    def publish(self, step: int) -> None:
        manifest = ask(self.learner.pack.remote(Version(0, step)))
        count = len(manifest.sizes)
        buckets = self.learner.take_objects.options(num_returns=count).remote()
        ask(self.generator.load.remote(manifest, [buckets] if count == 1 else buckets))

    def shards(self, step: int) -> Sequence[Order]:
        config = self.config
        ids = batch_of_step(len(self.prompts.train), config.ppo.prompts, config.run.seed, step)
        size = config.rollout.shard_prompts
        for i in range(0, len(ids), size):
            some = ids[i : i + size]
            keys = tuple(RolloutKey(TRAIN, step, prompt, 0) for prompt in some)
            yield Order(keys, tuple(self.prompts.train[p].token_ids for p in some))

    def step(self, step: int) -> None:
        self.publish(step)
        scored = []
        for order in self.shards(step):
            table, meta = self.generator.generate.options(num_returns=2).remote(order)
            ask(meta)
            reference, done = self.reference.score.options(num_returns=2).remote(table)
            ask(done)
            score, done = self.reward.score.options(num_returns=2).remote(table, self.calibration)
            ask(done)
            scored.append((table, reference, score))
        assert ask(self.learner.fetch.remote(scored)) == []
        ask(self.learner.update.remote(step))


def main() -> int:
    out, sys.argv[1:] = sys.argv[1], sys.argv[2:]
    config = resolve(cli.parse(sys.argv[1:], prog="straight_line", description="").config)
    calibration = Calibration(**json.loads((config.dir / "calibration.json").read_text()))
    with ray_session():
        line = Line(config, calibration)
        for step in range(config.ppo.iterations):
            line.step(step)
        ask(line.learner.save_policy.remote(out))
    return 0


if __name__ == "__main__":
    cli.run(main)
