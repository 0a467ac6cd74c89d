"""Reward models on every shape of backbone: padding, pooling, saving, calibration."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    ErnieConfig,
    ErnieModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    OPTModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    RobertaConfig,
    RobertaModel,
)

from rlhf_ray.models.reward_model import (
    Calibration,
    RewardModel,
    calibrate,
    read_calibration,
    write_calibration,
)

VOCAB, PAD = 40, 0
WIDE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
BACKBONES = {
    "bert": lambda: BertModel(BertConfig(**WIDE)),
    "ernie": lambda: ErnieModel(ErnieConfig(**WIDE)),
    "roberta": lambda: RobertaModel(RobertaConfig(**WIDE, pad_token_id=PAD)),
    "bloom": lambda: BloomModel(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**WIDE, num_key_value_heads=1)),
    "llama": lambda: LlamaModel(LlamaConfig(**WIDE, num_key_value_heads=2)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2)),
    # As OPT-350m: its layers are wider than what it gives.
    "opt": lambda: OPTModel(
        OPTConfig(**WIDE | {"hidden_size": 64}, word_embed_proj_dim=32, ffn_dim=48)
    ),
}
ENCODERS = ("bert", "ernie", "roberta")
CASES = [(name, pooling) for name in BACKBONES for pooling in ("last", "mean")] + [
    (name, pooling) for name in ENCODERS for pooling in ("cls", "pooler")
]
MODELS: dict[tuple[str, str], RewardModel] = {}


def model_of(name: str, pooling: str) -> RewardModel:
    if (name, pooling) not in MODELS:
        torch.manual_seed(0)
        backbone: PreTrainedModel = BACKBONES[name]()
        with torch.no_grad():
            for parameter in backbone.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8)  # so that a wrong position or mask shows
        MODELS[name, pooling] = RewardModel(backbone, pooling, seed=1).eval()
    return MODELS[name, pooling]


def batch(rows: list[list[int]], left: int, right: int, filler: int) -> tuple[torch.Tensor, ...]:
    """Rows with `left` padding before them, and up to the longest plus `right` after them."""
    longest = max(map(len, rows)) + left + right
    ids = torch.full((len(rows), longest), filler)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, left : left + len(row)] = torch.tensor(row)
        mask[i, left : left + len(row)] = True
    return ids, mask


ROWS = [[5, 9, 13, 2], [7, 3], [11, 12, 5, 6, 21, 30, 2], [4]]


@pytest.mark.parametrize(("name", "pooling"), CASES)
def test_padding_changes_no_score(name: str, pooling: str) -> None:
    model = model_of(name, pooling)
    alone = torch.cat([model(*batch([row], 0, 0, PAD)) for row in ROWS])
    assert alone.dtype == torch.float32
    assert alone.unique().numel() == len(ROWS)
    for left, right in ((0, 0), (0, 5), (5, 0), (3, 2)):
        scores = model(*batch(ROWS, left, right, PAD))
        torch.testing.assert_close(scores, alone, atol=2e-5, rtol=2e-5)


@given(
    rows=st.lists(
        st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=4
    ),
    left=st.integers(0, 4),
    right=st.integers(0, 4),
    filler=st.integers(0, VOCAB - 1),
)
@settings(max_examples=25, deadline=None)
def test_what_stands_in_the_padding_does_not_matter(rows, left, right, filler) -> None:
    model = model_of("llama", "mean")
    torch.testing.assert_close(
        model(*batch(rows, left, right, filler)),
        model(*batch(rows, 0, 0, PAD)),
        atol=2e-5,
        rtol=2e-5,
    )


def test_scores_follow_the_definition_of_the_pooling() -> None:
    ids, mask = batch([[5, 9, 13]], 0, 0, PAD)
    for pooling in ("last", "mean"):
        model = model_of("gpt2", pooling)
        hidden = model.backbone(input_ids=ids).last_hidden_state[0]
        features = hidden[2] if pooling == "last" else (hidden[0] + hidden[1] + hidden[2]) / 3
        expected = (features * model.head.weight[0]).sum() + model.head.bias[0]
        torch.testing.assert_close(model(ids, mask)[0], expected.detach())
    for pooling in ("cls", "pooler"):
        model = model_of("bert", pooling)
        out = model.backbone(input_ids=ids)
        features = out.last_hidden_state[0, 0] if pooling == "cls" else out.pooler_output[0]
        expected = (features * model.head.weight[0]).sum() + model.head.bias[0]
        torch.testing.assert_close(model(ids, mask)[0], expected.detach())


@pytest.mark.parametrize(("name", "pooling"), [("llama", "mean"), ("bert", "pooler")])
def test_saved_and_loaded_scores_are_equal_to_the_bit(
    name: str, pooling: str, tmp_path: Path
) -> None:
    model = model_of(name, pooling)
    model.save_pretrained(tmp_path)
    inputs = batch(ROWS, 0, 0, PAD)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(*inputs), model(*inputs))
    assert loaded.pooling == pooling and not loaded.training
    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is type(model.backbone)
    for key, x in model.backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], x)


def test_bfloat16_scores_are_close(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RewardModel(BACKBONES["llama"](), "mean").eval()
    model.save_pretrained(tmp_path)
    half = RewardModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    inputs = batch(ROWS, 0, 0, PAD)
    scores = half(*inputs)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, model(*inputs), atol=0.05, rtol=0.05)


def test_the_head_starts_as_it_should() -> None:
    features = 512
    config = GPT2Config(vocab_size=8, n_embd=features, n_layer=0, n_head=2)
    weights = [RewardModel(GPT2Model(config), "mean", seed=s).head.weight[0] for s in range(20)]
    deviation = torch.stack(weights).std().item()
    assert deviation == pytest.approx((features + 1) ** -0.5, rel=0.03)
    assert RewardModel(GPT2Model(config), "last").head.bias.item() == 0
    assert torch.equal(RewardModel(GPT2Model(config), "mean", seed=3).head.weight[0], weights[3])


def test_gradients_reach_attended_tokens_only() -> None:
    model = model_of("llama", "mean")
    model.zero_grad()
    model(*batch([[5, 9], [5, 9, 13]], 0, 3, filler=33)).sum().backward()
    touched = model.backbone.embed_tokens.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert touched == [5, 9, 13]
    model.zero_grad()


def test_a_pooler_without_weights_is_refused(tmp_path: Path) -> None:
    bert = BACKBONES["bert"]()
    bert.save_pretrained(tmp_path / "whole")
    weights = {k: v for k, v in bert.state_dict().items() if not k.startswith("pooler.")}
    bert.save_pretrained(tmp_path / "bare", state_dict=weights)
    RewardModel.from_backbone(tmp_path / "whole", "pooler")
    RewardModel.from_backbone(tmp_path / "bare", "cls")
    with pytest.raises(ValueError, match=r"has no weights of a pooler \(pooler.dense.bias, "):
        RewardModel.from_backbone(tmp_path / "bare", "pooler")


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`pooler`, and GPT2Model has no pooler: set rm.pooling"):
        RewardModel(BACKBONES["gpt2"](), "pooler")
    with pytest.raises(ValueError, match=r"row 1 has no attended token"):
        model_of("gpt2", "mean")(torch.ones(2, 3).long(), torch.tensor([[1] * 3, [0] * 3]))
    with pytest.raises(ValueError, match=r"holds no reward model .*jobs/rm.py"):
        RewardModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "head.safetensors", "reward_model.json", "config.json", "adapter"],
)
def test_a_damaged_file_is_named_with_its_cause(name: str, tmp_path: Path) -> None:
    model, base = model_of("qwen2", "last"), tmp_path / "base"
    model.backbone.save_pretrained(base)
    path = tmp_path / "reward"
    if name == "adapter":
        model = RewardModel.from_backbone(base, "last")
        model.add_lora(rank=2, alpha=4.0)
        name = "adapter/adapter_model.safetensors"
    model.save_pretrained(path, base=base)
    file = path / name
    RewardModel.from_pretrained(path)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"^{file} is damaged or cut short \(.*\): copy or down"):
        RewardModel.from_pretrained(path)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    with pytest.raises(ValueError, match=rf"^{file} is a git-LFS pointer, .* in {file.parent}, or"):
        RewardModel.from_pretrained(path)


@pytest.mark.parametrize("content", ["{}", '{"pooling": "first"}', "[]"])
def test_settings_that_are_of_no_reward_model_are_said(content: str, tmp_path: Path) -> None:
    model_of("qwen2", "last").save_pretrained(tmp_path)
    (tmp_path / "reward_model.json").write_text(content)
    found = "'first'" if "first" in content else "None"
    wanted = rf"reward_model.json gives pooling as {found}, which is none of last, mean, .* again$"
    with pytest.raises(ValueError, match=wanted):
        RewardModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"mean": 1', "[]"])
def test_a_damaged_calibration_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(content)
    wanted = rf"{tmp_path}/calibration.json is damaged \(.*\): take it away, or measure it again"
    with pytest.raises(ValueError, match=wanted):
        read_calibration(tmp_path)


def test_calibration_is_kept_with_the_model(tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None
    calibration = calibrate(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert calibration == Calibration(3.0, pytest.approx(3.5**0.5), 4)
    scaled = calibration(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert scaled.mean().item() == pytest.approx(0, abs=1e-6)
    assert scaled.std(correction=0).item() == pytest.approx(1)
    write_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration
    assert [file.name for file in tmp_path.iterdir()] == ["calibration.json"]
    assert json.loads((tmp_path / "calibration.json").read_text())["samples"] == 4


@pytest.mark.parametrize("scores", [[1.0, 1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_scores_that_cannot_guide_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match=r"do not vary, or are not finite"):
        calibrate(torch.tensor(scores))
