"""What one update does: ratios, clipping, warm-up, staleness, faults; and that it learns."""

import dataclasses

import numpy as np
import pytest
import torch

from rlhf_ray.config import PPO
from rlhf_ray.learners.build import prepare
from rlhf_ray.learners.ppo import PPOLearner
from rlhf_ray.learners.rollouts import Rollouts
from rlhf_ray.learners.targets import OldPass, make_targets
from rlhf_ray.models.actor_critic import Actor, Critic, value_head_for
from tests.learners.toys import VOCAB, gpt2_in_training, learner, parameters, table

SETTINGS = PPO(prompts=8, epochs=2, minibatches=2, lr=1e-3, critic_lr=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_ratio_of_the_first_step_is_1(
    dtype: torch.dtype, tolerance: float, temperature: float
) -> None:
    settings = PPO(prompts=8, epochs=1, minibatches=1)
    one = learner(settings=settings, dtype=dtype, temperature=temperature)
    stats = one.update(0, table())
    assert abs(stats["policy/ratio_max"] - 1) < tolerance
    assert stats["policy/clip_fraction"] == 0


def test_dropout_is_off_in_every_pass() -> None:
    actor, trunk = Actor(gpt2_in_training()), gpt2_in_training(seed=1).transformer
    critic = Critic(trunk, value_head_for(trunk, weight_D=torch.linspace(-1, 1, 32)))
    settings = PPO(prompts=8, epochs=1, minibatches=1, critic="separate")
    one = PPOLearner(actor, critic, settings=settings, seed=7, temperature=1.0)
    first, second = one.old_pass(table()), one.old_pass(table())
    assert first.values_N.std() > 0.1 and torch.equal(first.values_N, second.values_N)
    stats = one.update(0, table())
    assert stats["policy/ratio_max"] == pytest.approx(1, abs=1e-5)


def test_a_prepared_model_has_its_dropout_off() -> None:
    assert not any(module.training for module in prepare(gpt2_in_training()).modules())


def test_a_pass_per_row_gives_the_old_log_probabilities_of_the_model() -> None:
    rollouts = Rollouts.from_table(table())
    one = learner(settings=SETTINGS, temperature=0.5)
    old = one._old_pass(rollouts, of="these rollouts")
    model = one.actor.model
    for i, (prompt, response) in enumerate(zip(rollouts.prompts, rollouts.responses, strict=True)):
        ids = torch.tensor(np.concatenate([prompt, response]))[None].long()
        with torch.no_grad():
            logp_LV = torch.log_softmax(model(ids).logits[0] / 0.5, 1)
        want = logp_LV[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None]).squeeze(1)
        entropy = -(logp_LV.exp() * logp_LV).sum(1)[len(prompt) - 1 : -1]
        span = slice(int(rollouts.starts_B1[i]), int(rollouts.starts_B1[i + 1]))
        torch.testing.assert_close(old.logprobs_N[span], want, rtol=0, atol=1e-5)
        torch.testing.assert_close(old.entropies_N[span], entropy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_only_the_critic_learns_in_warm_up(critic: str) -> None:
    settings = dataclasses.replace(SETTINGS, critic=critic, warmup_iterations=1)
    one = learner(settings=settings, critic=critic)
    before = parameters(one)
    stats = one.update(0, table())
    assert "loss/policy" not in stats and stats["loss/value"] > 0
    head = {name for name, x in parameters(one).items() if not torch.equal(x, before[name])}
    assert head and all("value_head" in name or name.startswith("critic") for name in head)
    one.update(1, table(step=1))
    moved = {name for name, x in parameters(one).items() if not torch.equal(x, before[name])}
    assert "policy/model.model.embed_tokens.weight" in moved


def test_a_value_head_on_the_policys_trunk_has_a_rate_of_its_own() -> None:
    """Adam's first step moves a weight by its rate, or by less where the gradient is tiny."""
    settings = PPO(prompts=8, epochs=1, minibatches=1, lr=1e-5, value_head_lr=1e-3)
    one = learner(settings=settings, critic="shared")
    before = parameters(one)
    one.update(0, table())
    moved = {name: float((x - before[name]).abs().max()) for name, x in parameters(one).items()}
    heads = [name for name in moved if "value_head" in name]
    assert [moved.pop(name) for name in heads] == pytest.approx([1e-3] * 2, rel=0.01)
    assert 5e-6 < max(moved.values()) < 1.01e-5


def test_after_a_warm_up_the_trunk_begins_at_its_rate() -> None:
    settings = PPO(prompts=8, epochs=1, minibatches=1, lr=1e-5, warmup_iterations=3)
    one = learner(settings=settings, critic="shared")
    for step in range(3):
        one.update(step, table(step=step))
    before = parameters(one)
    one.update(3, table(step=3))
    moved = {name: float((x - before[name]).abs().max()) for name, x in parameters(one).items()}
    trunk = [moved[name] for name in moved if "value_head" not in name]
    assert max(trunk) == pytest.approx(1e-5, rel=0.1)


def test_the_learning_rate_is_annealed_by_the_step() -> None:
    one = learner(settings=dataclasses.replace(SETTINGS, iterations=4, lr_schedule="linear"))
    rates = [one.update(step, table(step=step))["lr"] for step in range(4)]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_importance_weights_only_where_tokens_may_be_stale() -> None:
    fresh, stale = table(rows=4, step=3), table(rows=4, step=2)
    old_N = torch.full((Rollouts.from_table(fresh).tokens,), -2.0)
    old = OldPass(old_N, old_N, old_N)
    for rows, staleness in ((fresh, 0), (fresh, 1), (stale, 0), (stale, 1)):
        settings = dataclasses.replace(SETTINGS, max_staleness=staleness)
        rollouts = Rollouts.from_table(rows)
        targets, stats = make_targets(rollouts, old, settings, kl_coef=0.1, step=3)
        assert (targets.weights_N is not None) == (staleness > 0)
        assert stats["staleness/max"] == (1.0 if rows is stale else 0.0)
    assert targets.weights_N is not None
    # behaviour −3, old −2: exp(1) is above the cap
    assert targets.weights_N.tolist() == pytest.approx([2.0] * len(old_N))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("policy", r"old log-probabilities of step 5 hold NaN"),
        ("critic", r"old values of step 5 hold NaN"),
        ("loss", r"loss/value is inf at step 5, epoch 0, minibatch 0"),
    ],
)
def test_nan_is_named_and_nothing_moves(fault: str, message: str) -> None:
    one = learner(settings=dataclasses.replace(SETTINGS, warmup_iterations=9))
    if fault == "policy":
        one.policy_optimizer.weights.slices()[-1].local.fill_(torch.nan)
    if fault == "critic":
        one.critic_optimizer.weights.slices()[-1].local.fill_(torch.nan)
    scores = np.full(8, 1e30 if fault == "loss" else 1.0)
    before = parameters(one)
    with pytest.raises(FloatingPointError, match=message):
        one.update(5, table(step=5, scores=scores))
    after = parameters(one)
    assert all(torch.equal(after[n].nan_to_num(), before[n].nan_to_num()) for n in before)


def test_a_gradient_that_is_not_finite_is_named_and_nothing_moves() -> None:
    """Though the loss is: scaled down to the largest norm it would make every weight NaN."""
    one = learner(settings=SETTINGS)
    before = parameters(one)
    next(one.actor.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FloatingPointError, match=r"grad/norm is (nan|inf) at step 0"):
        one.update(0, table())
    after = parameters(one)
    assert all(torch.equal(after[n], before[n]) for n in before if n.startswith("policy"))


def test_what_a_reward_left_is_learned_from_though_it_does_not_divide() -> None:
    one = learner(settings=SETTINGS)
    before = parameters(one)
    one.update(0, table(rows=7))
    assert any(not torch.equal(parameters(one)[name], before[name]) for name in before)


def test_bad_tables_are_refused() -> None:
    one = learner(settings=SETTINGS)
    with pytest.raises(ValueError, match="the reward dropped them all"):
        one.update(0, table().slice(0, 0))
    with pytest.raises(ValueError, match="1 rollouts are left for 2 minibatches"):
        one.update(0, table(rows=1))
    with pytest.raises(ValueError, match=r"scores_B holds NaN or inf"):
        one.update(0, table(scores=np.full(8, np.nan)))
    with pytest.raises(ValueError, match=r"lacks the columns \['score'\]"):
        one.update(0, table().drop_columns(["score"]))
    with pytest.raises(ValueError, match="needs a critic"):
        learner(settings=SETTINGS, critic=None)


@pytest.mark.parametrize(("target", "coef"), [(1.0, 0.0525), (1.25, 0.047), (0.1, 0.055)])
def test_adaptive_kl_follows_its_target(target: float, coef: float) -> None:
    """KL 1.1 a response; β = 0.05·(1 + clip(1.1/target − 1, −0.2, 0.2)·8/16)."""
    settings = dataclasses.replace(SETTINGS, kl_coef=0.05, kl_target=target, kl_horizon=16.0)
    one = learner(settings=settings)
    responses = [np.arange(3 if i % 2 else 7) for i in range(8)]
    logprobs_N = one.old_pass(table(responses=responses)).logprobs_N.numpy()
    edges = np.cumsum([len(response) for response in responses])[:-1]
    refs = [part - 0.22 for part in np.split(logprobs_N, edges)]
    stats = one.update(0, table(responses=responses, refs=refs))
    assert stats["kl/mean_k1"] == pytest.approx(1.1, rel=1e-4)
    assert stats["kl/coef"] == 0.05, "of this update; the new one is for the next"
    assert one.kl_coef.coef == pytest.approx(coef, rel=1e-4)


def test_adaptive_kl_goes_by_the_policies_that_sampled_stale_tokens() -> None:
    settings = dataclasses.replace(
        SETTINGS, kl_coef=0.05, kl_target=1.0, kl_horizon=16.0, max_staleness=1
    )
    one = learner(settings=settings)
    responses = [np.arange(5)] * 8
    sampled = table(responses=responses)
    refs = [np.array(row) - 0.22 for row in sampled.column("behaviour_logprobs").to_pylist()]
    stats = one.update(1, table(responses=responses, refs=refs))
    assert stats["staleness/max"] == 1
    assert stats["kl/sampled_mean_k1"] == pytest.approx(1.1, rel=1e-4)
    assert abs(stats["kl/mean_k1"] - 1.1) > 0.5
    assert one.kl_coef.coef == pytest.approx(0.0525, rel=1e-4)


@pytest.mark.parametrize("estimator", ["gae", "rloo"])
def test_it_learns_to_write_a_token(estimator: str) -> None:
    """Reward: how often token 5 occurs. A uniform policy has 6 · 1/32; 40 updates reach half."""
    samples = 4 if estimator == "rloo" else 1
    settings = PPO(
        prompts=32 // samples, samples=samples, estimator=estimator, epochs=2, minibatches=2,
        lr=2e-3, critic_lr=2e-3, lr_schedule="constant", kl_coef=0.0,
    )  # fmt: skip
    one = learner(settings=settings, critic="separate" if estimator == "gae" else None)
    means = [one.update(step, sampled(one, step, samples))["score/mean"] for step in range(40)]
    assert np.mean(means[:3]) < 1 and np.mean(means[-3:]) > 3, means


def sampled(one: PPOLearner, step: int, samples: int):
    """32 responses of 6 tokens from the policy itself, scored by how many are token 5."""
    generator = torch.Generator().manual_seed(step)
    prompts = table(rows=32, samples=samples, step=step, prompt_len=(3, 4))
    prompts_BL = torch.tensor(prompts.column("prompt_token_ids").to_pylist())
    ids = prompts_BL
    for _ in range(6):
        with torch.no_grad():
            probs_BV = one.actor.model(ids).logits[:, -1].softmax(1)
        ids = torch.cat([ids, torch.multinomial(probs_BV, 1, generator=generator)], 1)
    responses = ids[:, 3:].numpy()
    assert responses.max() < VOCAB
    return table(
        rows=32,
        samples=samples,
        step=step,
        prompt_len=(3, 4),
        responses=list(responses),
        scores=(responses == 5).sum(1).astype(np.float32),
    )
