"""Tokenizers and language models from a path or name, with errors that say what to do."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from rlhf_ray.config import Dtype

Module = TypeVar("Module", bound=nn.Module)
GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
POSITIONS = ("max_position_embeddings", "max_seq_len")  # the latter is MPT's name
CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")
WEIGHTS = (".safetensors", ".bin")  # the first of them that are there is what is read
LFS_POINTER = b"version https://git-lfs"


def compute_dtype(setting: Dtype, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype of matrix products. auto: bfloat16 where the hardware multiplies it natively."""
    if setting != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting]
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer at `path` (a directory or a hub name), with an EOS and a pad token.

    Without a pad token the EOS serves; without an EOS the separator of BERT's kind does, and its
    CLS as BOS. No token is added, so ids keep their meaning. Raises ValueError where there is no
    tokenizer, or it has no EOS.
    """
    options = source_options(path, trust_remote_code=trust_remote_code)
    with loading("tokenizer", path):
        tokenizer = tokenizer_class(path, options).from_pretrained(str(path), **options)
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token
        tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer at {path} has no EOS token, and a response ends with it: "
            f"set `eos_token` in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def end_token_ids(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False
) -> tuple[int, ...]:
    """What ends a response of the model at `path`: its tokenizer's EOS, and what else it says.

    Chat models may end a turn with another token, which generation_config.json names: Gemma's is
    `<end_of_turn>`, Phi-3's `<|end|>`.
    """
    options = source_options(path, trust_remote_code=trust_remote_code)
    try:
        named = GenerationConfig.from_pretrained(str(path), **options).eos_token_id
    except OSError:  # it has none
        named = None
    others = named if isinstance(named, list) else [named]
    ends = [tokenizer.eos_token_id, *(end for end in others if end is not None)]
    return tuple(dict.fromkeys(ends))


def tokenizer_class(
    path: str | Path, options: dict[str, bool]
) -> type[PreTrainedTokenizerFast] | type[AutoTokenizer]:
    """A generic tokenizer by its own class: beside a config of type `qwen2`, AutoTokenizer would
    take it for Qwen2's, with other words and one token more than the model has.
    """
    named = get_tokenizer_config(str(path), **options).get("tokenizer_class")
    return PreTrainedTokenizerFast if named in GENERIC_TOKENIZERS else AutoTokenizer


def load_causal_lm(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The causal language model at `path` (a directory or a hub name), in eval mode.

    Raises ValueError where there is none, or the weights are of something else.
    """
    options = source_options(path, trust_remote_code=trust_remote_code)
    config = load_config(path, trust_remote_code=trust_remote_code)
    named = config.architectures or []
    if named and not any(name.endswith(CAUSAL_ENDINGS) for name in named):
        raise ValueError(
            f"{path} holds {', '.join(named)}, not a causal language model: "
            f"give a model whose architecture ends in {' or '.join(CAUSAL_ENDINGS)}"
        )
    with loading("language model", path):
        model = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, **options, **attention_of(config)
        )
    _make_savable(model)
    return model.eval()


def load_config(path: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model config at `path`. Raises ValueError where there is none."""
    options = source_options(path, trust_remote_code=trust_remote_code)
    with loading("model", path):
        config = AutoConfig.from_pretrained(str(path), **options)
    return config


def attention_of(config: PretrainedConfig) -> dict[str, str]:
    """Keyword arguments for `from_pretrained`: who computes attention, if not the default.

    Gemma 2 caps its scores, which transformers' eager attention does and the others leave out.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {"attn_implementation": "eager"} if capped else {}


def _make_savable(model: PreTrainedModel) -> None:
    """Leave settings of sampling out that contradict each other, as some published models' do.

    `save_pretrained` refuses them, after all the training.
    """
    settings = model.generation_config
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig(
            bos_token_id=settings.bos_token_id,
            eos_token_id=settings.eos_token_id,
            pad_token_id=settings.pad_token_id,
        )


def is_causal(config: PretrainedConfig) -> bool:
    """Whether a position sees only those before it, so that padding on the right is unseen."""
    kind = type(config)
    if kind in MODEL_FOR_MASKED_LM_MAPPING:
        return bool(getattr(config, "is_decoder", False))
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and getattr(config, "is_causal", True)


def features_of(config: PretrainedConfig) -> int:
    """Width of what the trunk gives: of the embeddings where OPT projects down to them."""
    text = config.get_text_config()
    return getattr(text, "word_embed_proj_dim", None) or text.hidden_size


def positions_of(config: PretrainedConfig) -> int | None:
    """Tokens of the longest row that a model of this config takes; None: it does not say.

    Longrope (Phi-3) turns by other angles where any row of a pass is longer than it was trained on
    at first: a row's log-probs would depend on those beside it, so that length is the limit.
    """
    text = config.get_text_config()
    stated = [getattr(config, name, None) for name in POSITIONS]
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        stated.insert(0, rope.get("original_max_position_embeddings"))
    return next((n for n in stated if n is not None and n > 0), None)  # XLNet's -1 is no limit


def positions_in(model: nn.Module) -> int | None:
    """`positions_of` its config, less those that RoBERTa's kind keeps for padding."""
    positions = positions_of(model.config)
    if positions is None:
        return None
    reserved = [
        m.padding_idx + 1
        for m in model.modules()
        if isinstance(m, nn.Embedding)
        and m.num_embeddings == positions
        and m.padding_idx is not None
    ]
    return positions - max(reserved, default=0)


def check_length(positions: int | None, tokens: int, option: str) -> None:
    """Raise ValueError where `option` asks for rows of more tokens than a model has positions."""
    if positions is not None and tokens > positions:
        raise ValueError(
            f"--{option} is {tokens}, and the model has {positions} positions: "
            f"set --{option} {positions} or less"
        )


def source_options(path: str | Path, *, trust_remote_code: bool = False) -> dict[str, bool]:
    """Keyword arguments for `from_pretrained`: the hub is not asked about a directory.

    Raises ValueError where `path` looks like a directory and is none.
    """
    text = str(path)
    local = Path(text).is_dir()
    like_a_path = isinstance(path, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1
    if like_a_path and not local:
        raise ValueError(
            f"model directory {text} does not exist: give a directory that holds a config.json, "
            f"or a hub name such as owner/model"
        )
    return {"local_files_only": local, "trust_remote_code": trust_remote_code}


@contextmanager
def loading(what: str, path: str | Path) -> Iterator[None]:
    """A ValueError for what the block cannot read: it names the damaged file where there is one."""
    try:
        yield
    except Exception as error:  # each reader raises its own kind, tokenizers `Exception` itself
        if fault := damage(path):
            raise ValueError(fault) from error
        if isinstance(error, OSError | ValueError | SafetensorError):
            message = f"no {what} could be loaded from {path}: {_first_line(error)}"
            raise ValueError(message) from error
        raise


def damage(path: str | Path) -> str | None:
    """What is wrong with a file of the directory `path`, and what to do; None: all can be read."""
    if not Path(path).is_dir():
        return None
    weights = next((kind for kind in WEIGHTS if list(Path(path).glob(f"*{kind}"))), None)
    for file in sorted(Path(path).iterdir()):
        if file.suffix not in (weights, ".json", ".model") or not file.is_file():
            continue
        with file.open("rb") as content:
            first = content.read(len(LFS_POINTER))
        if first == LFS_POINTER:
            return (
                f"{file} is a git-LFS pointer, not the file that it stands for: run "
                f"`git lfs pull` in {file.parent}, or download the file again"
            )
        if cause := _broken(file, first):
            return f"{file} is damaged or cut short ({cause}): copy or download it again"
    return None


def _broken(file: Path, first: bytes) -> str | None:
    """Why `file`, which begins with `first`, cannot be read; None where it can or is not known."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return None
        if file.suffix == ".json":
            json.loads(file.read_bytes())
    except (SafetensorError, ValueError) as error:
        return _first_line(error)
    is_cut = not first or (first.startswith(b"PK") and not zipfile.is_zipfile(file))
    return "its end is missing" if file.suffix == ".bin" and is_cut else None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def cast_parameters(model: Module, dtype: torch.dtype) -> Module:
    """`model` with its floating-point parameters in `dtype`, in place.

    Buffers keep their type: rotary frequencies in bfloat16 would misplace tokens.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model
