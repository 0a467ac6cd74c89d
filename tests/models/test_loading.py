"""Loading: what is there is loaded, what is not says what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2Model,
    MptConfig,
    Phi3Config,
    Phi3Model,
    PreTrainedTokenizerFast,
    T5Config,
    XLNetConfig,
    XLNetModel,
)

from rlhf_ray.models.loading import (
    cast_parameters,
    check_length,
    compute_dtype,
    damage,
    end_token_ids,
    load_causal_lm,
    load_tokenizer,
    loading,
    positions_of,
)
from rlhf_ray.models.tiny import make_decoder, make_tokenizer

MADE = make_tokenizer(["some text"], vocab=300)


def word_tokenizer(path: Path, **special: str) -> None:
    vocab = {name: i for i, name in enumerate(["a", "b", "[X]", "[Y]"])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(path)


def test_a_decoder_round_trips_in_both_types(tmp_path: Path) -> None:
    model = make_decoder(MADE, hidden=64, layers=1, seed=0)
    model.save_pretrained(tmp_path)
    loaded = load_causal_lm(tmp_path)
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    half = load_causal_lm(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_pad_falls_back_to_eos_without_a_new_token(tmp_path: Path) -> None:
    word_tokenizer(tmp_path, eos_token="[X]")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert len(tokenizer) == 4


def test_berts_separator_ends_a_text(tmp_path: Path) -> None:
    word_tokenizer(tmp_path, sep_token="[X]", cls_token="[Y]")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, len(tokenizer)) == (2, 3, 4)


def test_whatever_the_model_says_ends_a_response_does(tmp_path: Path) -> None:
    word_tokenizer(tmp_path, eos_token="[X]")
    tokenizer = load_tokenizer(tmp_path)
    assert end_token_ids(tmp_path, tokenizer) == (2,)
    for named, ends in ((None, (2,)), (2, (2,)), (3, (2, 3)), ([3, 2, 1], (2, 3, 1))):
        settings = {} if named is None else {"eos_token_id": named}
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
        assert end_token_ids(tmp_path, tokenizer) == ends


def test_no_eos_is_an_error(tmp_path: Path) -> None:
    word_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"has no EOS token.*set `eos_token`"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("load", [load_tokenizer, load_causal_lm])
def test_a_missing_directory_is_named(load, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent does not exist: give a directory"):
        load(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"could be loaded from"):
        load(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
IS_POINTER = "is a git-LFS pointer, not the file that it stands for: run `git lfs pull` in"
IS_CUT = r"is damaged or cut short \(.*\): copy or download it again"


@pytest.fixture(scope="module", params=["model.safetensors", "pytorch_model.bin"])
def weights(request, tmp_path_factory) -> Path:
    """The weights of a model that lies beside them, in either format."""
    directory = tmp_path_factory.mktemp("model")
    model = make_decoder(MADE, hidden=64, layers=1, seed=0)
    model.save_pretrained(directory)
    MADE.save_pretrained(directory)
    if request.param.endswith(".bin"):
        torch.save(model.state_dict(), directory / request.param)
        (directory / "model.safetensors").unlink()
    load_causal_lm(directory)
    return directory / request.param


@pytest.mark.parametrize(
    ("kind", "fault"), [("pointer", IS_POINTER), ("cut", IS_CUT), ("empty", IS_CUT)]
)
@pytest.mark.parametrize("name", ["weights", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_named_with_its_cause(
    name: str, kind: str, fault: str, weights: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(weights.parent, tmp_path / "copy"))
    file = directory / (weights.name if name == "weights" else name)
    content = file.read_bytes()
    file.write_bytes({"pointer": POINTER, "cut": content[: len(content) // 2], "empty": b""}[kind])
    load = load_tokenizer if name == "tokenizer.json" else load_causal_lm
    with pytest.raises(ValueError, match=f"^{file} {fault}"):
        load(directory)


def test_damage_is_told_of_what_is_read_alone(weights: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(weights.parent, tmp_path / "copy"))
    (directory / "model.onnx").write_bytes(POINTER)
    if weights.suffix == ".safetensors":
        (directory / "pytorch_model.bin").write_bytes(POINTER)
    assert damage(directory) is None and damage("owner/name") is None
    with pytest.raises(KeyError), loading("model", directory):
        raise KeyError("of another cause")
    wanted = "no model could be loaded from owner/name: header too large"
    with pytest.raises(ValueError, match=wanted), loading("model", "owner/name"):
        raise SafetensorError("header too large")


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=30, intermediate_size=16, **shape)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    GPT2Model(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "trunk"
    )
    for name, architecture in (("bert", "BertForMaskedLM"), ("trunk", "GPT2Model")):
        with pytest.raises(ValueError, match=rf"holds {architecture}, not a causal language"):
            load_causal_lm(tmp_path / name)


def test_compute_dtype() -> None:
    assert compute_dtype("float32") is torch.float32
    assert compute_dtype("bfloat16") is torch.bfloat16
    has = {"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split())
    assert compute_dtype("auto") is (torch.bfloat16 if has else torch.float32)


def test_casting_leaves_buffers_alone() -> None:
    model = cast_parameters(make_decoder(MADE, hidden=64, layers=1, seed=0), torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_rows_longer_than_the_model_are_refused() -> None:
    model = make_decoder(MADE, hidden=64, layers=1, seed=0)
    check_length(positions_of(model.config), 1024, "sft.max-tokens")
    with pytest.raises(ValueError, match=r"--sft.max-tokens is 1025.*1024 positions: set"):
        check_length(positions_of(model.config), 1025, "sft.max-tokens")


def test_a_model_says_how_long_its_rows_may_be_or_does_not() -> None:
    kinds = (GPT2Config, MptConfig, BloomConfig, T5Config, XLNetConfig)
    assert [positions_of(kind()) for kind in kinds] == [1024, 2048, None, None, None]
    sizes = {"vocab_size": 9, "d_model": 8, "n_layer": 1, "n_head": 1, "d_inner": 8}
    model = XLNetModel(XLNetConfig(**sizes))
    assert model.config.max_position_embeddings == -1
    check_length(positions_of(model.config), 10_000, "rm.max-tokens")


def test_longrope_is_taken_as_far_as_a_row_is_the_same_wherever_it_stands() -> None:
    """Phi-3's angles change for a whole pass where one row of it is longer."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = Phi3Config(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        max_position_embeddings=64,
        original_max_position_embeddings=8,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors},
    )
    assert positions_of(config) == 8
    model = Phi3Model(config).eval()
    rows = torch.arange(1, 10)[None]
    with torch.no_grad():
        short, longer = (model(rows[:, :n]).last_hidden_state[:, :4] for n in (8, 9))
        assert torch.allclose(model(rows[:, :4]).last_hidden_state, short, atol=1e-6)
        assert not torch.allclose(short, longer, atol=1e-3)


def test_settings_of_sampling_that_could_not_be_saved_are_left_out(tmp_path: Path) -> None:
    """A temperature without sampling, as in Vicuna's generation_config.json."""
    model = make_decoder(MADE, hidden=64, layers=1, seed=0)
    model.save_pretrained(tmp_path)
    contradicting = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [1, 7]}
    (tmp_path / "generation_config.json").write_text(json.dumps(contradicting))
    loaded = load_causal_lm(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    assert load_causal_lm(tmp_path / "again").generation_config.eos_token_id == [1, 7]


def test_attention_whose_scores_are_capped_is_computed_with_the_cap(tmp_path: Path) -> None:
    """Gemma 2's, which transformers' default attention computes without."""
    config = Gemma2Config(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        attn_logit_softcapping=0.5,
        initializer_range=1.0,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        found = load_causal_lm(tmp_path)(ids).logits
        eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
        default = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
        assert torch.equal(found, eager(ids).logits)
        assert not torch.allclose(found, default(ids).logits, atol=1e-2)
