"""The policy on its way out: tied names, probes, a directory that transformers loads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    Gemma4TextConfig,
    PreTrainedModel,
)

from rlhf_ray.config import PPO
from rlhf_ray.data.ids import Version
from rlhf_ray.generators.protocol import Sampling
from rlhf_ray.generators.transformers_engine import TransformersGenerator
from rlhf_ray.learners.build import build_learner, critic_from_reward_model, prepare
from rlhf_ray.learners.export import Exporter
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.ppo import PPOLearner
from rlhf_ray.models.actor_critic import Actor, value_head_for
from rlhf_ray.models.loading import load_causal_lm
from rlhf_ray.models.packing import PackedRows
from rlhf_ray.models.reward_model import Calibration, RewardModel, write_calibration
from rlhf_ray.models.tiny import make_tokenizer
from tests.learners.ranks import CPU, Ranks
from tests.learners.toys import VOCAB, learner, table, tiny_lm

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


SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# With state that does not train: a buffer in each layer, a router's buffer, its frozen parameter.
STATEFUL = {
    "gemma4": Gemma4TextConfig(
        **SMALL, head_dim=16, global_head_dim=16, hidden_size_per_layer_input=0
    ),
    "deepseek": DeepseekV3Config(
        **SMALL,
        moe_intermediate_size=16,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=None,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        num_mtp_layers=0,
    ),
    "ernie": Ernie4_5_MoeConfig(
        **SMALL, moe_intermediate_size=16, moe_k=2, moe_num_experts=4, moe_num_shared_experts=1
    ),
}


def stateful_lm(shape: str) -> PreTrainedModel:
    """Its state that does not train is drawn at random, and none of it fits bfloat16."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(STATEFUL[shape])
    for x in fixed_of(model).values():
        x.data.uniform_(0.5, 1.5)
        assert not torch.equal(x.bfloat16().float(), x)
    return prepare(model)


def fixed_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {n: x for n, x in model.state_dict(keep_vars=True).items() if not x.requires_grad}


def published(group: Group, shape: str, directory: str, shard: bool, dtype: str):
    model = stateful_lm(shape)
    one = PPOLearner(
        Actor(model, value_head=value_head_for(model)),
        None,
        settings=replace(SETTINGS, critic="shared", shard_weights=shard),
        seed=7,
        temperature=1.0,
        group=group,
    )
    one.update(0, table())
    one.save_policy(directory)
    return {name: x.clone() for name, x in one.export(dtype)}, one.probes(SEQUENCES)


def engine_at(directory: Path, *, dtype: str = "float32") -> TransformersGenerator:
    sampling = Sampling(temperature=1.0, max_tokens=4, eos_token_ids=(1,))
    options = {"sampling": sampling, "version": Version(0, 0), "max_model_len": 64}
    return TransformersGenerator(str(directory), dtype=dtype, **options)


@pytest.mark.parametrize("shape", STATEFUL)
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_does_not_train_is_kept_by_the_engine_and_saved_with_the_policy(
    tmp_path: Path, two_ranks: Ranks, shape: str, ranks: int
) -> None:
    start, end = tmp_path / "start", tmp_path / "end"
    model = stateful_lm(shape)
    model.save_pretrained(start)
    fixed = fixed_of(model)
    assert fixed
    settings = (shape, str(end), True, "float32")
    tensors, probes = (
        published(Group(CPU), *settings) if ranks == 1 else two_ranks.run(published, *settings)[0]
    )
    assert tensors.keys() == model.state_dict().keys() - fixed.keys()

    saved = load_causal_lm(end).state_dict()
    assert all(torch.equal(saved[name], x) for name, x in (tensors | fixed).items())
    engine = engine_at(start)
    engine.load(Version(0, 1), tensors.items())
    for (_, wanted), found in zip(probes, engine.token_logprobs(SEQUENCES), strict=True):
        assert found.tolist() == pytest.approx(wanted, abs=1e-5)


def test_the_biases_of_a_router_stay_float32_under_versions_in_bfloat16(tmp_path: Path) -> None:
    model = stateful_lm("deepseek")
    model.save_pretrained(tmp_path / "start")
    tensors, _ = published(Group(CPU), "deepseek", str(tmp_path / "end"), False, "bfloat16")
    engine = engine_at(tmp_path / "start", dtype="bfloat16")
    engine.load(Version(0, 1), tensors.items())
    held = engine._model.state_dict()
    assert all(torch.equal(held[name], x) for name, x in fixed_of(model).items())
    assert all(torch.equal(held[name], x) for name, x in tensors.items())


def test_built_from_directories_and_back(tmp_path: Path) -> None:
    policy, scores, out = tmp_path / "sft", tmp_path / "rm", tmp_path / "policy"
    tiny_lm().save_pretrained(policy)
    tokenizer = make_tokenizer(["some text to learn from"], 300)
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(policy)
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
    saved = AutoTokenizer.from_pretrained(out)
    assert saved("some text").input_ids and saved.chat_template == tokenizer.chat_template
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 32


def test_an_encoder_cannot_be_a_critic(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    encoder = BertModel(BertConfig(vocab_size=20, intermediate_size=8, **sizes))
    RewardModel(encoder, "mean").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has an encoder"):
        critic_from_reward_model(tmp_path)
