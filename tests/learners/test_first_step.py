"""A learner's first step against its losses written out, over transformers' own passes.

Before the policy moves its ratio is 1, so the surrogate's gradient is that of w·A·log π.
Every setting differs from its default.
"""

from dataclasses import replace
from statistics import fmean

import pytest
import torch
from torch import Tensor, nn

from rlhf_ray.config import PPO
from rlhf_ray.learners.ppo import PPOLearner
from tests.learners import oracle
from tests.learners.toys import learner

SETTINGS = PPO(
    prompts=3, samples=2, epochs=1, minibatches=1, lr=2e-3, gamma=0.9, lam=0.7, kl_coef=9.0,
    value_coef=0.4, max_staleness=2, importance_cap=1.3, micro_batch_tokens=12,
)  # fmt: skip
KL_COEF = 0.3  # where β has come to since `kl_coef`
TEMPERATURE = 0.7
ROWS = oracle.responses()
TABLE = oracle.table_of(ROWS)


def begun(settings: PPO, critic: str | None = None) -> PPOLearner:
    """A learner whose values and β are not those of a run's first step."""
    one = learner(settings=settings, critic=critic, temperature=TEMPERATURE)
    one.kl_coef.load_state_dict({"value": KL_COEF})
    head = one.actor.value_head if one.critic is None else one.critic.value_head
    if head is not None:
        head.weight.data.copy_(torch.linspace(-0.1, 0.1, 32))
    return one


def logprobs_of(one: PPOLearner) -> list[Tensor]:
    """All log-probabilities [T, V] that sampled each response."""
    found = []
    for row in ROWS:
        logits_LV = one.actor.model(torch.tensor([row.prompt_ids + row.ids])).logits[0]
        found.append(torch.log_softmax(logits_LV[len(row.prompt_ids) - 1 : -1] / TEMPERATURE, 1))
    return found


def values_of(trunk: nn.Module, head: nn.Linear) -> list[Tensor]:
    found = []
    for row in ROWS:
        hidden_LD = trunk(torch.tensor([row.prompt_ids + row.ids])).last_hidden_state[0]
        found.append(hidden_LD[len(row.prompt_ids) - 1 : -1] @ head.weight[0] + head.bias)
    return found


def chosen(logp_TV: Tensor, row: oracle.Response) -> Tensor:
    return logp_TV.gather(1, torch.tensor(row.ids)[:, None])[:, 0]


def seen_by(one: PPOLearner, values: list[Tensor] | None = None) -> list[oracle.Response]:
    """ROWS as this policy and critic see them."""
    found = []
    for i, (row, logp_TV) in enumerate(zip(ROWS, logprobs_of(one), strict=True)):
        entropies = -(logp_TV.exp() * logp_TV).sum(1)
        row = replace(row, old=chosen(logp_TV, row).tolist(), entropies=entropies.tolist())
        found.append(row if values is None else replace(row, values=values[i].tolist()))
    return found


def policy_loss(one: PPOLearner, rows: list[oracle.Response]) -> Tensor:
    new_N = torch.cat([chosen(x, row) for x, row in zip(logprobs_of(one), rows, strict=True)])
    ratio_N = (new_N - new_N.detach()).exp()
    advantages_N = torch.tensor(oracle.learned_advantages(rows, one.settings, kl_coef=KL_COEF))
    weights_N = torch.tensor(oracle.weights(rows, cap=one.settings.importance_cap))
    loss = -(weights_N * ratio_N * advantages_N).mean()
    if one.settings.estimator == "grpo":
        lr_N = new_N - torch.tensor(oracle.flat(row.ref for row in rows))
        loss = loss + KL_COEF * (torch.exp(-lr_N) - 1 + lr_N).mean()
    return loss


def value_loss(rows: list[oracle.Response], values: list[Tensor], settings: PPO) -> Tensor:
    aims_N = torch.tensor(oracle.flat(oracle.returns(rows, settings, kl_coef=KL_COEF)))
    return (torch.cat(values) - aims_N).square().mean() / 2


def norm_of_gradient(loss: Tensor, module: nn.Module) -> float:
    gradients = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    return float(torch.cat([g.flatten() for g in gradients]).norm())


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "reinforce_pp"])
def test_the_policy_follows_the_gradient_of_its_loss(estimator: str) -> None:
    one = begun(replace(SETTINGS, estimator=estimator))
    loss = policy_loss(one, seen_by(one))
    want = {"loss/policy": loss.item(), "grad/norm": norm_of_gradient(loss, one.actor)}
    found = one.update(oracle.STEP, TABLE)
    assert {name: found[name] for name in want} == pytest.approx(want, rel=1e-4)


def test_a_separate_critic_follows_the_gradient_of_its_own() -> None:
    one = begun(replace(SETTINGS, critic="separate"), "separate")
    values = values_of(one.critic.backbone, one.critic.value_head)
    rows = seen_by(one, values)
    policy, value = policy_loss(one, rows), value_loss(rows, values, SETTINGS)
    want = {
        "loss/policy": policy.item(),
        "grad/norm": norm_of_gradient(policy, one.actor),
        "loss/value": value.item(),
        "grad/norm_critic": norm_of_gradient(value, one.critic),
    }
    found = one.update(oracle.STEP, TABLE)
    assert {name: found[name] for name in want} == pytest.approx(want, rel=1e-4)


def test_a_shared_trunk_follows_both_losses_the_values_times_value_coef() -> None:
    one = begun(SETTINGS, "shared")
    values = values_of(one.actor.model.model, one.actor.value_head)
    rows = seen_by(one, values)
    policy, value = policy_loss(one, rows), value_loss(rows, values, SETTINGS)
    both = policy + SETTINGS.value_coef * value
    want = {
        "loss/policy": policy.item(),
        "loss/value": value.item(),
        "grad/norm": norm_of_gradient(both, one.actor),
    }
    found = one.update(oracle.STEP, TABLE)
    assert {name: found[name] for name in want} == pytest.approx(want, rel=1e-4)


def test_an_update_reports_what_it_began_with() -> None:
    one = begun(SETTINGS, "shared")
    rows = seen_by(one, values_of(one.actor.model.model, one.actor.value_head))
    want = oracle.stats(rows, SETTINGS, kl_coef=KL_COEF)
    want |= {"kl/coef": KL_COEF, "lr": 2e-3, "policy/ratio_max": 1.0, "policy/approx_kl": 0.0}
    found = one.update(oracle.STEP, TABLE)
    assert {name: found[name] for name in want} == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_a_minibatch_is_a_mean_over_its_own_tokens() -> None:
    """One response each, of unequal lengths, and a learner that stays where it is."""
    settings = replace(SETTINGS, estimator="reinforce_pp", minibatches=len(ROWS), lr=0.0)
    one = begun(settings)
    rows = seen_by(one)
    weights = oracle.weights(rows, cap=settings.importance_cap)
    advantages = oracle.learned_advantages(rows, settings, kl_coef=KL_COEF)
    terms = [-w * a for w, a in zip(weights, advantages, strict=True)]
    means, start = [], 0
    for length in oracle.LENGTHS:
        means.append(fmean(terms[start : start + length]))
        start += length
    found = one.update(oracle.STEP, TABLE)
    assert found["loss/policy"] == pytest.approx(fmean(means), rel=1e-4)
