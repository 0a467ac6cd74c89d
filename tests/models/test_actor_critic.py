"""Heads on trunks: as wide as what a trunk gives, not as its layers."""

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from rlhf_ray.learners.build import new_critic, prepare
from rlhf_ray.models.actor_critic import Actor, check_head, value_head_for
from rlhf_ray.models.packing import PackedRows

SIZES = {
    "vocab_size": 40,
    "hidden_size": 64,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(("projected", "features"), [(32, 32), (64, 64), (None, 64)])
def test_a_value_head_is_as_wide_as_opts_projection(projected: int | None, features: int) -> None:
    torch.manual_seed(0)
    model = prepare(OPTForCausalLM(OPTConfig(**SIZES, word_embed_proj_dim=projected)))
    weight_D = torch.randn(features)
    actor = Actor(model, value_head=value_head_for(model, weight_D=weight_D))
    check_head(actor)
    ids_N, index_N, targets_N = (torch.tensor(x) for x in ([3, 4, 5, 6, 7], [1, 4], [8, 9]))
    rows = PackedRows(ids_N, (2, 3))
    out = actor(rows, index_N, targets_N, temperature=1.0)
    found = zip(rows.apart(), targets_N, out.values_N, out.logprobs_N, strict=True)
    for ids_L, target, value, logprob in found:
        hidden_D = model.base_model(ids_L[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(value, hidden_D @ weight_D)
        logits_V = model(ids_L[None]).logits[0, -1]
        torch.testing.assert_close(logprob, logits_V.log_softmax(0)[target])
    assert not new_critic(model.base_model)(rows, index_N).any(), "no reward model: V = 0"
