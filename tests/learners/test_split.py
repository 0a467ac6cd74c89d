"""One optimizer step is the same for every split into micro-batches and ranks."""

import dataclasses
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config import PPO
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.microbatches import micro_batches, minibatches, shares
from rlhf_ray.learners.rollouts import Rollouts
from tests.learners.ranks import CPU, Ranks
from tests.learners.toys import learner, parameters, table

LEARN = {"lr": 1e-3, "critic_lr": 1e-3, "lr_schedule": "constant"}
ONE_STEP = PPO(prompts=32, epochs=1, minibatches=1, **LEARN)
KINDS = {
    "gae": (ONE_STEP, "separate"),
    "gae, shared": (dataclasses.replace(ONE_STEP, critic="shared"), "shared"),
    "rloo": (dataclasses.replace(ONE_STEP, estimator="rloo", prompts=8, samples=4), None),
    "grpo": (dataclasses.replace(ONE_STEP, estimator="grpo", prompts=8, samples=4), None),
}


def one_update(
    group: Group, settings: PPO, critic: str | None
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    found = learner(settings=settings, critic=critic, group=group)
    stats = found.update(0, table(rows=32, samples=settings.samples))
    return parameters(found), stats


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_and_ranks_change_nothing(kind: str, two_ranks: Ranks) -> None:
    settings, critic = KINDS[kind]
    before = parameters(learner(settings=settings, critic=critic))
    whole, stats = one_update(Group(CPU), settings, critic)
    assert max(float((whole[name] - before[name]).abs().max()) for name in whole) >= 5e-4
    splits = {
        tokens: one_update(
            Group(CPU), dataclasses.replace(settings, micro_batch_tokens=tokens), critic
        )
        for tokens in (1, 60)
    }
    for shard in (True, False):
        sharded = dataclasses.replace(settings, shard_weights=shard)
        first, second = two_ranks.run(one_update, sharded, critic)
        assert first[1] == second[1], "metrics are the same on every rank"
        splits[f"two ranks, {shard=}"] = first
        if not shard:
            for name in whole:
                assert torch.equal(first[0][name], second[0][name]), f"ranks went apart: {name}"
    for split, (found, found_stats) in splits.items():
        for name, want in whole.items():
            torch.testing.assert_close(found[name], want, rtol=0, atol=5e-6, msg=f"{split} {name}")
        assert found_stats == pytest.approx(stats, rel=2e-4, abs=2e-5), split


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", [True, False])
def test_a_rank_without_rows_keeps_step(two_ranks: Ranks, tied: bool, shard: bool) -> None:
    settings = PPO(prompts=4, epochs=1, minibatches=4, shard_weights=shard, **LEARN)

    found = two_ranks.run(four_rows, settings, tied)[0]
    for name, want in four_rows(Group(CPU), settings, tied).items():
        torch.testing.assert_close(found[name], want, rtol=0, atol=5e-6)


def four_rows(group: Group, settings: PPO, tied: bool) -> dict[str, torch.Tensor]:
    found = learner(settings=settings, group=group, tied=tied)
    found.update(0, table(rows=4))
    return parameters(found)


def refused(group: Group, settings: PPO) -> str:
    """What this rank says of a batch with one response whose value loss is beyond float32."""
    one = learner(settings=settings, group=group)
    try:
        one.update(0, table(rows=4, scores=np.array([1e30, 1.0, 1.0, 1.0])))
    except FloatingPointError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("shard", [True, False])
def test_a_loss_that_is_infinite_on_one_rank_stops_both(two_ranks: Ranks, shard: bool) -> None:
    settings = PPO(
        prompts=4, epochs=1, minibatches=1, critic="separate", warmup_iterations=1,
        shard_weights=shard, **LEARN,
    )  # fmt: skip
    first, second = two_ranks.run(refused, settings)
    assert first == second
    assert first == "loss/value is inf at step 0, epoch 0, minibatch 0: no step with it was taken"


@pytest.mark.parametrize(("tokens", "passes"), [(None, 2), (4096, 1), (1024, 4)])
def test_a_pass_holds_the_tokens_that_are_asked_for(tokens: int | None, passes: int) -> None:
    """32 rows of 104 inputs; by itself a CPU takes 2,048 tokens."""
    one = learner(settings=dataclasses.replace(ONE_STEP, micro_batch_tokens=tokens))
    rows = table(rows=32, prompt_len=(5, 6), response_len=(100, 101))
    rollouts = Rollouts.from_table(rows)
    assert len(list(one._micro_batches(rollouts, range(32)))) == passes


def test_row_order_of_the_table_changes_nothing() -> None:
    settings = PPO(prompts=8, epochs=2, minibatches=2, **LEARN)
    rows = table(rows=8)
    found = []
    for order in (np.arange(8), np.random.default_rng(0).permutation(8)):
        one = learner(settings=settings)
        one.update(0, rows.take(order))
        found.append(parameters(one))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    ranks=st.integers(1, 5),
    budget=st.integers(1, 120),
    packed=st.booleans(),
)
def test_shares_and_micro_batches_hold_every_row_once(
    lengths: list[int], ranks: int, budget: int, packed: bool
) -> None:
    parts = shares(range(len(lengths)), lengths, ranks)
    assert sorted(chain(*parts)) == list(range(len(lengths)))
    loads = [sum(lengths[row] for row in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths)
    rng = np.random.default_rng(0)
    responses = [rng.integers(0, 9, n) for n in lengths]
    rollouts = Rollouts.from_table(table(rows=len(lengths), responses=responses))
    batches = [
        list(
            micro_batches(
                rollouts,
                range(len(lengths)),
                rank=r,
                ranks=ranks,
                budget=budget,
                packed=packed,
                device=CPU,
            )
        )
        for r in range(ranks)
    ]
    assert len({len(of_rank) for of_rank in batches}) == 1, "each rank makes as many passes"
    seen = torch.cat([micro.token_index_N for of_rank in batches for micro in of_rank])
    assert sorted(seen.tolist()) == list(range(sum(lengths)))
    for micro in (m for of_rank in batches for m in of_rank):
        flat = np.concatenate(responses)[micro.token_index_N.numpy()]
        assert micro.targets_N.tolist() == flat.tolist()


def test_minibatches_are_a_permutation_that_seed_step_and_epoch_decide() -> None:
    parts = minibatches(12, 3, seed=1, step=2, epoch=0)
    assert [len(part) for part in parts] == [4, 4, 4]
    assert sorted(chain(*parts)) == list(range(12))
    assert parts == minibatches(12, 3, seed=1, step=2, epoch=0)
    others = [(2, 2, 0), (1, 3, 0), (1, 2, 1)]
    assert all(parts != minibatches(12, 3, seed=a, step=b, epoch=c) for a, b, c in others)
