"""The policy on its way out: tied names, probes, a directory that transformers loads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.config import PPO
from rlhf_ray.learners.build import build_learner, critic_from_reward_model
from rlhf_ray.learners.export import Exporter
from rlhf_ray.learners.group import Group
from rlhf_ray.models.packing import PackedRows
from rlhf_ray.models.reward_model import Calibration, RewardModel, write_calibration
from rlhf_ray.models.tiny import make_tokenizer
from tests.learners.ranks import CPU, Ranks
from tests.learners.toys import learner, table, tiny_lm

SETTINGS = PPO(prompts=8, epochs=1, minibatches=2, lr=1e-3, critic_lr=1e-3, critic="separate")
SEQUENCES = ((1, 2, 3, 4, 5), (9, 8, 7))


def exported(group: Group, dtype: torch.dtype, directory: str, shard: bool):
    one = learner(settings=replace(SETTINGS, shard_weights=shard), group=group, dtype=dtype)
    one.update(0, table())
    tensors = {name: x.clone() for name, x in one.export("float32")}
    short = {name: x.clone() for name, x in one.export("bfloat16")}
    assert short.keys() == tensors.keys()
    assert all(torch.equal(x, tensors[name].bfloat16()) for name, x in short.items())
    one.save_policy(directory)
    return tensors, one.probes(SEQUENCES)


@pytest.mark.parametrize(("ranks", "shard"), [(1, True), (2, True), (2, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_leaves_is_one_model(
    tmp_path: Path, two_ranks: Ranks, ranks: int, shard: bool, dtype: torch.dtype
) -> None:
    if ranks == 1:
        tensors, probes = exported(Group(CPU), dtype, str(tmp_path), shard)
    else:
        (tensors, probes), nothing = two_ranks.run(exported, dtype, str(tmp_path), shard)
        assert nothing == ({}, []), "rank 0 alone gets it"
    own = tiny_lm().state_dict()
    assert {name: x.shape for name, x in tensors.items()} == {n: x.shape for n, x in own.items()}
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert not torch.equal(tensors["lm_head.weight"], own["lm_head.weight"]), "it has moved"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert loaded.dtype == torch.float32
    for name, x in loaded.state_dict().items():
        assert torch.equal(x, tensors[name]), name
    for ids, logprobs in probes:
        with torch.no_grad():
            logp_LV = torch.log_softmax(loaded(torch.tensor([ids])).logits[0], 1)
        want = logp_LV[:-1].gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)
        assert logprobs == pytest.approx(want.tolist(), abs=1e-5)
    assert [ids for ids, _ in probes] == [list(ids) for ids in SEQUENCES]


def probed(group: Group, shard: bool, weights_dtype: str):
    settings = replace(SETTINGS, shard_weights=shard)
    one = learner(settings=settings, group=group, dtype=torch.bfloat16)
    with pytest.MonkeyPatch.context() as patched:
        gathered: list[int] = []
        own = Exporter._gathered_model
        patched.setattr(
            Exporter, "_gathered_model", lambda self: gathered.append(group.rank) or own(self)
        )
        return one.probes(SEQUENCES, dtype=weights_dtype), gathered


@pytest.mark.parametrize(
    ("shard", "weights_dtype", "gathers"),
    [(True, "bfloat16", False), (True, "float32", True), (False, "bfloat16", False)],
)
def test_no_rank_holds_sharded_weights_whole_to_probe_them_in_their_own_type(
    two_ranks: Ranks, shard: bool, weights_dtype: str, gathers: bool
) -> None:
    (found, *_), (nothing, *_) = answers = two_ranks.run(probed, shard, weights_dtype)
    assert nothing == [] and [bool(ranks) for _, ranks in answers] == [gathers] * 2
    exact = learner(settings=SETTINGS).probes(SEQUENCES)
    in_bfloat16 = shard and not gathers
    for (ids, logprobs), (same, wanted) in zip(found, exact, strict=True):
        assert ids == same
        assert logprobs == pytest.approx(wanted, abs=0.05 if in_bfloat16 else 1e-5)
        assert (logprobs != pytest.approx(wanted, abs=1e-5)) == in_bfloat16


def test_built_from_directories_and_back(tmp_path: Path) -> None:
    policy, scores, out = tmp_path / "sft", tmp_path / "rm", tmp_path / "policy"
    tiny_lm().save_pretrained(policy)
    make_tokenizer(["some text to learn from"], 300).save_pretrained(policy)
    reward = RewardModel(tiny_lm(seed=3).model, "mean")
    reward.save_pretrained(scores)
    write_calibration(scores, Calibration(mean=7.0, std=9.0, samples=9))  # the run's own counts

    options = {"seed": 0, "temperature": 1.0, "settings": SETTINGS}
    zero = build_learner(policy, **options)
    assert not zero.critic.value_head.weight.any(), "no reward model: V = 0"
    warm = build_learner(policy, reward_model=scores, **options)
    ids_BL, index_N = torch.tensor([[3, 4, 5]]), torch.tensor([2])
    with torch.no_grad():
        hidden_D = reward.backbone(input_ids=ids_BL).last_hidden_state[0, 2]
        raw, row = reward.head(hidden_D), PackedRows(ids_BL[0], (3,))
        torch.testing.assert_close(warm.critic(row, index_N), raw)
        warm.calibrate(mean=2.0, std=4.0)
        torch.testing.assert_close(warm.critic(row, index_N), (raw - 2.0) / 4.0)
    warm.update(0, table())
    warm.save_policy(out)
    assert AutoTokenizer.from_pretrained(out)("some text").input_ids
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 32


def test_an_encoder_cannot_be_a_critic(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    encoder = BertModel(BertConfig(vocab_size=20, intermediate_size=8, **sizes))
    RewardModel(encoder, "mean").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has an encoder"):
        critic_from_reward_model(tmp_path)
