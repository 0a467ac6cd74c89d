"""Checkpoints: resumed bit for bit, at another number of ranks, damage named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from rlhf_ray.config import PPO
from rlhf_ray.files import fingerprint
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.ppo import PPOLearner
from tests.learners.ranks import CPU, Ranks
from tests.learners.toys import learner, parameters, table

SETTINGS = PPO(prompts=8, epochs=2, minibatches=2, lr=1e-3, critic_lr=1e-3, kl_target=1.0)


def trained(
    steps: range, *, onto: PPOLearner | None = None, group: Group | None = None
) -> PPOLearner:
    found = onto or learner(settings=SETTINGS, group=group)
    for step in steps:
        found.update(step, table(step=step, seed=step))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = trained(range(4), onto=learner(settings=SETTINGS, dtype=dtype))
    first = trained(range(2), onto=learner(settings=SETTINGS, dtype=dtype))
    first.save(tmp_path)
    second = learner(settings=SETTINGS, dtype=dtype)
    second.load(tmp_path)
    assert second.kl_coef.coef == first.kl_coef.coef != SETTINGS.kl_coef
    trained(range(2, 4), onto=second)
    for name, want in parameters(whole).items():
        assert torch.equal(parameters(second)[name], want), name


@pytest.mark.parametrize(("saved", "target", "found"), [(0.05, None, 0.2), (0.0, 1.0, 0.2)])
def test_a_price_of_kl_that_did_not_adapt_is_that_of_the_settings(
    tmp_path: Path, saved: float, target: float | None, found: float
) -> None:
    learner(settings=PPO(prompts=8, kl_coef=saved)).save(tmp_path)
    again = learner(settings=PPO(prompts=8, kl_coef=0.2, kl_target=target))
    again.load(tmp_path)
    assert again.kl_coef.coef == found


def save_after_two(group: Group, directory: str, shard: bool) -> None:
    found = learner(settings=replace(SETTINGS, shard_weights=shard), group=group)
    trained(range(2), onto=found).save(directory)


def go_on(group: Group, directory: str, shard: bool) -> dict[str, torch.Tensor]:
    found = learner(settings=replace(SETTINGS, shard_weights=shard), group=group)
    found.load(directory)
    return parameters(trained(range(2, 3), onto=found))


@pytest.mark.parametrize("shard", [True, False])
@pytest.mark.parametrize(("writers", "readers"), [(2, 1), (1, 2), (2, 2)])
def test_resumes_at_another_number_of_ranks(
    tmp_path: Path, two_ranks: Ranks, writers: int, readers: int, shard: bool
) -> None:
    def on(size: int, function: Callable[..., Any]) -> Any:
        if size == 1:
            return function(Group(CPU), str(tmp_path), shard)
        return two_ranks.run(function, str(tmp_path), shard)[0]

    want = parameters(trained(range(3)))
    on(writers, save_after_two)
    assert len(list(tmp_path.glob("*.safetensors"))) == writers
    found = on(readers, go_on)
    for name in want:
        torch.testing.assert_close(found[name], want[name], rtol=0, atol=5e-6)


def rows_held(group: Group, directory: str, shard: bool) -> dict[str, int]:
    settings = replace(SETTINGS, shard_weights=shard)
    learner(settings=settings, group=group).save(directory)
    file = load_file(Path(directory) / f"rank-{group.rank:05d}.safetensors")
    return {name: len(x) for name, x in file.items()}


def test_no_rank_holds_the_whole_optimizer(tmp_path: Path, two_ranks: Ranks) -> None:
    first, second = two_ranks.run(rows_held, str(tmp_path), True)
    assert first.keys() == second.keys()
    name = "policy/exp_avg/model.model.embed_tokens.weight"
    assert first[name] == second[name] == 16


def test_what_every_rank_holds_is_written_once(tmp_path: Path, two_ranks: Ranks) -> None:
    first, second = two_ranks.run(rows_held, str(tmp_path), False)
    assert first["policy/exp_avg/model.model.embed_tokens.weight"] == 32 and second == {}


@pytest.mark.parametrize("file", ["learner.json", "rank-00000.json", "rank-00000.safetensors"])
@pytest.mark.parametrize("fault", ["flipped", "missing", "cut"])
def test_a_damaged_file_is_named(tmp_path: Path, file: str, fault: str) -> None:
    found = learner(settings=SETTINGS)
    written = found.save(tmp_path)
    assert written == {name: fingerprint(tmp_path / name) for name in ["rank-00000.safetensors"]}
    path = tmp_path / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(content if fault == "flipped" else content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{file} is (damaged|missing)"):
        found.load(tmp_path)


def refused(group: Group, directory: str) -> str:
    """What this rank says of the checkpoint."""
    try:
        learner(settings=SETTINGS, group=group).load(directory)
    except ValueError as error:
        return str(error)
    return "nothing"


def test_damage_that_one_rank_finds_stops_both(tmp_path: Path, two_ranks: Ranks) -> None:
    """A rank reads a part of the files through; the other must not go on without it."""
    two_ranks.run(save_after_two, str(tmp_path), True)
    path = tmp_path / "rank-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    first, second = two_ranks.run(refused, str(tmp_path))
    assert first == f"another rank found the checkpoint at {tmp_path} damaged"
    assert f"{path} is damaged" in second


def score_then_load(group: Group, directory: str, shard: bool) -> list[float]:
    """What a learner that was already in use says once it has loaded."""
    one = learner(settings=replace(SETTINGS, shard_weights=shard), group=group)
    one.old_pass(table())  # the root's weights stay gathered
    one.load(directory)
    return one.old_pass(table()).logprobs_N.tolist()


@pytest.mark.parametrize("shard", [True, False])
def test_a_learner_in_use_computes_with_what_it_loads(
    tmp_path: Path, two_ranks: Ranks, shard: bool
) -> None:
    saved = trained(range(2))
    saved.save(tmp_path)
    wanted = saved.old_pass(table()).logprobs_N.tolist()
    for found in two_ranks.run(score_then_load, str(tmp_path), shard):
        assert found == pytest.approx(wanted, abs=1e-5)


def test_the_file_is_as_safetensors_writes_it(tmp_path: Path) -> None:
    found = trained(range(1))
    found.save(tmp_path)
    tensors = {}
    for role, optimizer in found.optimizers().items():
        for slice_, exp_avg, exp_avg_sq in optimizer.moments():
            kinds = {"parameter": slice_.local, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
            tensors |= {f"{role}/{kind}/{slice_.name}": x for kind, x in kinds.items()}
    assert (tmp_path / "rank-00000.safetensors").read_bytes() == safetensors.torch.save(tensors)


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    found = learner(settings=SETTINGS)
    torch.manual_seed(3)
    found.save(tmp_path)
    want = torch.rand(5)
    found.load(tmp_path)
    assert torch.equal(torch.rand(5), want)


def test_another_model_is_refused(tmp_path: Path) -> None:
    learner(settings=SETTINGS, critic="shared").save(tmp_path)
    with pytest.raises(ValueError, match=r"critic/parameter/.* as nothing"):
        learner(settings=SETTINGS).load(tmp_path)
