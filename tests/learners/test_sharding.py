"""Sharded weights: what goes to the device, and layers that run again in the backward pass."""

from dataclasses import replace

import pytest
import torch

from rlhf_ray.config import PPO
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.sharding import own
from rlhf_ray.models.actor_critic import Actor
from tests.learners.ranks import CPU, Ranks
from tests.learners.toys import learner, parameters, table, tiny_lm

SETTINGS = PPO(prompts=8, epochs=2, minibatches=2, lr=1e-3, critic_lr=1e-3, critic="separate")


def moved_whole(group: Group, shard: bool) -> bool:
    """Whether the module as a whole is sent to the device."""
    actor, calls = Actor(tiny_lm()), []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Actor, "to", lambda self, device: calls.append(device) or self)
        own(actor, group=group, dtype=torch.float32, shard=shard)
    return bool(calls)


@pytest.mark.parametrize("shard", [True, False])
def test_sharded_weights_never_lie_whole_on_a_device(two_ranks: Ranks, shard: bool) -> None:
    assert two_ranks.run(moved_whole, shard) == [not shard] * 2


def after_an_update(
    group: Group, settings: PPO, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    one = learner(settings=settings, critic=settings.critic, dtype=dtype, group=group)
    stats = one.update(0, table())
    return parameters(one), stats


@pytest.mark.parametrize(("ranks", "shard"), [(1, False), (2, True), (2, False)])
@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_run_again_change_no_bit(
    two_ranks: Ranks, ranks: int, shard: bool, critic: str, dtype: torch.dtype
) -> None:
    kept = replace(SETTINGS, shard_weights=shard, critic=critic)
    again = replace(kept, activation_checkpointing=True)
    (wanted, stats), (found, same_stats) = (
        after_an_update(Group(CPU), settings, dtype)
        if ranks == 1
        else two_ranks.run(after_an_update, settings, dtype)[0]
        for settings in (kept, again)
    )
    assert same_stats == stats
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_layers_of_policy_and_critic_run_again() -> None:
    one = learner(settings=replace(SETTINGS, activation_checkpointing=True))
    names = [type(m).__name__ for x in (one.actor, one.critic) for m in x.modules()]
    assert names.count("RecomputingQwen2DecoderLayer") == 4
