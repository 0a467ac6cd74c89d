"""Small causal LMs of each shape, made from configs, whose weights tell tokens apart."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3MoeConfig,
)

VOCAB, EOS, POSITIONS = 128, 1, 256
PUBLISHED = "published.pt"
_SPECIAL = {"vocab_size": VOCAB, "bos_token_id": 2, "eos_token_id": EOS, "pad_token_id": 0}
_LLAMA_LIKE = {
    **_SPECIAL,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": POSITIONS,
}

CONFIGS = {
    "qwen2": Qwen2Config(**_LLAMA_LIKE, tie_word_embeddings=True),
    "llama": LlamaConfig(**_LLAMA_LIKE, tie_word_embeddings=False),
    # Caps low enough to show. Eager, for the oracle: the other kinds leave the first of them out.
    "gemma2": Gemma2Config(
        **_LLAMA_LIKE,
        head_dim=32,
        query_pre_attn_scalar=32,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        attn_implementation="eager",
    ),
    "gpt2": GPT2Config(**_SPECIAL, n_embd=64, n_layer=2, n_head=2, n_positions=POSITIONS),
    "qwen3_moe": Qwen3MoeConfig(
        **_LLAMA_LIKE, head_dim=32, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2
    ),
    "mixtral": MixtralConfig(**_LLAMA_LIKE, num_local_experts=4, num_experts_per_tok=2),
    "bloom": BloomConfig(**_SPECIAL, hidden_size=64, n_layer=2, n_head=2),
}


def make(shape: str, directory: Path, *, seed: int) -> PreTrainedModel:
    """A model with every weight drawn from `seed`, also written to `directory`.

    PUBLISHED there has its weights under the names that a learner gives them: those of experts are
    others than in the files of a checkpoint. Norms and biases are drawn too, so that a tensor which
    is not replaced shows.
    """
    model = AutoModelForCausalLM.from_config(CONFIGS[shape]).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.2 * noise if is_norm else 0.15 * noise)
    model.save_pretrained(directory)
    torch.save(dict(model.named_parameters()), directory / PUBLISHED)
    return model
