"""PPO: prompts → rollouts → scores → update → weights. The loop, and the run around it.

Who generates, scores and learns is one layer down (orchestration/), what a step computes is in
learners/, what a number means in algos/, what a run says of itself in record.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_ray.actors.learner import LearnerSpec
from rlhf_ray.actors.scorers import ScorerSpec
from rlhf_ray.config import Config, Reward
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.learners.targets import kl_of_samples
from rlhf_ray.observe.console import Console
from rlhf_ray.observe.journal import Journal
from rlhf_ray.observe.metrics import RunLog
from rlhf_ray.orchestration.cluster import Cluster, Specs
from rlhf_ray.orchestration.plan import Plan
from rlhf_ray.training import live
from rlhf_ray.training.calibration import store_with_model
from rlhf_ray.training.engine import generator_spec
from rlhf_ray.training.output import written_aside
from rlhf_ray.training.record import Record

PROBES, PROBE_TOKENS = 3, 72


def train(config: Config, cluster: Cluster, record: Record) -> None:
    """prompts → rollouts → scores → update → weights. The driver holds refs and metrics only."""
    last = config.ppo.iterations - 1
    for step in cluster.steps():  # starts after the last complete checkpoint
        with cluster.recovery():  # a lost learner group goes back to it
            record.begin(step)
            cluster.rollouts.request(until=min(step + config.ppo.max_staleness, last))
            batch = cluster.rollouts.take(step)  # scored as its shards finished, with the learners
            cluster.rest()  # generators that share a GPU with the learners, where asked
            stats = cluster.learners.update(step)  # advantages, epochs
            record.published(cluster.publish(step + 1))  # generators pull it
            over = cluster.done(step, kl_of_samples(stats)[0])
            record.evaluate(step + 1, last=over)
            record.report(step, batch, stats)
            record.checkpointed(cluster.checkpoint(record.score))


@dataclass(frozen=True, slots=True)
class Start:
    """What PPO starts from. critic: a reward model's directory; None: the policy's trunk."""

    policy: str
    critic: str | None
    reward: Reward
    resume: bool


def run_ppo(
    config: Config,
    plan: Plan,
    start: Start,
    prompts: Prompts,
    *,
    log: RunLog,
    console: Console,
    begin: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train a policy on `prompts` and write it to `policy/`; what summary.json says of it.

    begin: called once every actor is up, with the state to go on from: the run can start.
    """
    specs = make_specs(config, plan, start, prompts)
    journal = Journal(config.dir, console.note)
    cluster = Cluster(config, plan, prompts, specs, journal)
    try:
        if log.gauges:
            cluster.reactor.every(live.EVERY, live.Live(cluster, log.gauges).update)
        cluster.start(cluster.checkpoints.latest() if start.resume else None)
        begin()
        log.rewind("ppo", cluster.step or -1)  # from the beginning: the baseline is made again
        with console.phase("ppo", config.ppo.iterations, done=cluster.step) as line:
            record = Record(config, cluster, log, line, tell=journal)
            cluster.retry_if_learners_lost(record.prepare)
            train(config, cluster, record)
        with written_aside(config.dir / "policy") as aside:
            cluster.save_policy(aside)
        store_with_model(config, cluster.scorers.calibration)
        return record.summary(bad_rows=prompts.bad_rows, cut_prompts=prompts.cut)
    finally:
        cluster.shutdown()


def make_specs(config: Config, plan: Plan, start: Start, prompts: Prompts) -> Specs:
    """What the run's actors are made of. ValueError for a context that the model lacks."""
    trust, temperature = config.model.trust_remote_code, config.rollout.temperature
    generator = generator_spec(config, start.policy, "cuda" if plan.learner.gpus else "cpu")
    return Specs(
        generator=generator,
        scorer=ScorerSpec(
            policy_path=start.policy,
            reward=start.reward,
            dtype=config.model.dtype,
            temperature=temperature,
            chat_template=config.data.chat_template,
            trust_remote_code=trust,
            shares_gpu=config.rollout.sleep or 0 < plan.scorer.gpus < 1,
        ),
        learner=LearnerSpec(
            ppo=config.ppo,
            policy_path=start.policy,
            critic_path=start.critic,
            dtype=config.model.dtype,
            weights_dtype=generator.dtype,
            temperature=temperature,
            run_seed=config.run.seed,
            probes=_probe_sequences(prompts, generator.max_model_len - 2),
            weights_by=config.cluster.weights_by,
            trust_remote_code=trust,
            shares_gpu=config.rollout.sleep or 0 < plan.learner.gpus < 1,
        ),
    )


def _probe_sequences(prompts: Prompts, longest: int) -> tuple[tuple[int, ...], ...]:
    """Real token sequences, prompts end to end: over two cache blocks where there is room."""
    size = min(PROBE_TOKENS, longest)
    joined = [token for prompt in prompts.train[:256] for token in prompt.token_ids]
    pieces = [tuple(joined[i * size : (i + 1) * size]) for i in range(PROBES)]
    return tuple(piece for piece in pieces if len(piece) > 1)
