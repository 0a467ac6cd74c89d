"""Adapters on reward models: step 0 is the base, merging and saving change no score."""

from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomModel, Qwen2Config, Qwen2Model

from rlhf_ray.models.loading import cast_parameters
from rlhf_ray.models.lora import add_lora, has_adapter, merged
from rlhf_ray.models.reward_model import RewardModel

VOCAB = 40
IDS = torch.randint(1, VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 5:] = 0


def backbone(kind: str = "qwen2"):
    torch.manual_seed(0)
    if kind == "bloom":
        return BloomModel(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2))
    wide = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
    return Qwen2Model(
        Qwen2Config(
            vocab_size=VOCAB,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            **wide,
        )
    )


def with_lora(kind: str = "qwen2", **settings) -> RewardModel:
    model = RewardModel(backbone(kind), "mean")
    model.add_lora(**({"rank": 4, "alpha": 8.0} | settings))
    return model.eval()


def disturb(model: RewardModel) -> RewardModel:
    """As training would: everything that trains moves."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("kind", ["qwen2", "bloom"])
def test_at_step_0_it_is_the_base(kind: str) -> None:
    plain = RewardModel(backbone(kind), "mean").eval()
    torch.testing.assert_close(with_lora(kind)(IDS, MASK), plain(IDS, MASK), atol=1e-6, rtol=0)


def test_merged_equals_unmerged_and_the_unmerged_stays() -> None:
    model = disturb(with_lora())
    before = model(IDS, MASK)
    assert (before - with_lora()(IDS, MASK)).abs().max() > 1e-2
    whole = RewardModel(backbone(), "mean")
    whole.head.load_state_dict(model.head.state_dict())
    whole.backbone = merged(model.backbone)
    assert not has_adapter(whole.backbone) and has_adapter(model.backbone)
    torch.testing.assert_close(whole.eval()(IDS, MASK), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(IDS, MASK), before)


def test_train_and_eval_leave_the_weights_alone() -> None:
    model = disturb(with_lora())
    before = model(IDS, MASK)
    assert torch.equal(model.train().eval()(IDS, MASK), before)


def trained_names(model: RewardModel) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_what_trains() -> None:
    head = {"head.weight", "head.bias"}
    none = trained_names(with_lora())
    assert head < none and all("lora_" in name for name in none - head)
    some = trained_names(with_lora(targets=("q_proj", "v_proj"), bias="lora_only"))
    assert all("q_proj" in name or "v_proj" in name for name in some - head)
    assert any(name.endswith("q_proj.base_layer.bias") for name in some)
    every = trained_names(with_lora(targets=("v_proj",), bias="all"))
    assert any("k_proj.bias" in name for name in every)
    shapes = {p.shape for n, p in with_lora(rank=3).named_parameters() if "lora_A" in n}
    assert {shape[0] for shape in shapes} == {3}


def test_alpha_over_rank_is_the_scale() -> None:
    plain = RewardModel(backbone(), "mean").eval()
    once, twice = disturb(with_lora(alpha=1e-3)), disturb(with_lora(alpha=2e-3))
    plain.head.load_state_dict(once.head.state_dict())
    base = plain(IDS, MASK)
    step, double = once(IDS, MASK) - base, twice(IDS, MASK) - base
    torch.testing.assert_close(double, 2 * step, atol=2e-6, rtol=2e-2)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("apart", [True, False])
def test_saved_and_loaded_it_scores_the_same(apart: bool, bias: str, tmp_path: Path) -> None:
    backbone().save_pretrained(tmp_path / "base")
    model = RewardModel.from_backbone(tmp_path / "base", "last")
    model.add_lora(rank=2, alpha=4.0, bias=bias)
    scores = disturb(model.eval())(IDS, MASK)
    model.save_pretrained(tmp_path / "rm", base=tmp_path / "base" if apart else None)
    files = {path.name for path in (tmp_path / "rm").rglob("*")}
    assert ("model.safetensors" in files) != ("adapter_model.safetensors" in files) == apart
    again = RewardModel.from_pretrained(tmp_path / "rm")
    if apart:
        assert torch.equal(again(IDS, MASK), scores)
        whole = RewardModel.from_pretrained(tmp_path / "rm", merge=True)
        assert not has_adapter(whole.backbone)
        again = whole
    torch.testing.assert_close(again(IDS, MASK), scores, atol=1e-5, rtol=1e-5)


def test_in_bfloat16_it_is_still_the_base_at_step_0() -> None:
    model = cast_parameters(with_lora(), torch.bfloat16)
    plain = cast_parameters(RewardModel(backbone(), "mean").eval(), torch.bfloat16)
    assert torch.equal(model(IDS, MASK), plain(IDS, MASK))


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"names attention, and Qwen2Model has the linear layers"):
        add_lora(backbone(), rank=4, alpha=8.0, targets=("attention",))
    with pytest.raises(ValueError, match="rank is 0"):
        add_lora(backbone(), rank=0, alpha=8.0)
