"""Tiny models and rollout tables for the learner's tests."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from rlhf_ray.config import PPO
from rlhf_ray.data import schemas
from rlhf_ray.data.ids import RolloutKey, rollout_id
from rlhf_ray.learners.build import new_critic, prepare
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.ppo import PPOLearner
from rlhf_ray.models.actor_critic import Actor, value_head_for

VOCAB = 32


def tiny_lm(
    *, seed: int = 0, vocab: int = VOCAB, layers: int = 2, tied: bool = True
) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    return prepare(Qwen2ForCausalLM(config))


def gpt2_in_training(*, seed: int = 0) -> GPT2LMHeadModel:
    """With the dropout that GPT-2 comes with, on."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    return GPT2LMHeadModel(config).train()


def learner(
    *,
    settings: PPO,
    critic: str | None = "separate",
    dtype: torch.dtype = torch.float32,
    group: Group | None = None,
    temperature: float = 1.0,
    seed: int = 7,
    tied: bool = True,
) -> PPOLearner:
    actor = Actor(tiny_lm(tied=tied))
    if critic == "shared":
        actor.value_head = value_head_for(actor.model)
    own_critic = new_critic(tiny_lm(seed=1).model) if critic == "separate" else None
    return PPOLearner(
        actor,
        own_critic,
        settings=settings,
        seed=seed,
        temperature=temperature,
        dtype=dtype,
        group=group,
    )


def table(
    *,
    rows: int = 8,
    samples: int = 1,
    step: int = 0,
    seed: int = 0,
    responses: Sequence[np.ndarray] | None = None,
    scores: np.ndarray | None = None,
    refs: Sequence[np.ndarray] | None = None,
    prompt_len: tuple[int, int] = (2, 6),
    response_len: tuple[int, int] = (1, 9),
    vocab: int = VOCAB,
) -> pa.Table:
    """A joined table of random rollouts, or of the responses, scores and ref_logprobs given."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(rows):
        prompt, sample = divmod(i, samples)
        prompt_rng = np.random.default_rng((seed, prompt))
        response = (
            responses[i]
            if responses is not None
            else rng.integers(0, vocab, rng.integers(*response_len))
        )
        records.append(
            {
                "rollout_id": rollout_id(RolloutKey(0, step, prompt, sample)),
                "prompt_id": prompt,
                "sample_index": sample,
                "prompt_token_ids": prompt_rng.integers(0, vocab, prompt_rng.integers(*prompt_len)),
                "response_token_ids": response,
                "behaviour_logprobs": np.full(len(response), -3.0, np.float32),
                "finish_reason": schemas.EOS if i % 2 else schemas.LENGTH,
                "version_spans": [0, 0, step],
                "generator": "toy",
            }
        )
    joined = schemas.rollout_table(records)
    if refs is None:
        refs = [rng.normal(-3.4, 0.3, len(record["response_token_ids"])) for record in records]
    found = scores if scores is not None else rng.normal(size=rows)
    ids = joined.column("rollout_id").combine_chunks()
    return schemas.join(
        joined, schemas.ref_columns(ids, refs), schemas.score_columns(ids, {"score": found})
    )


def parameters(found: PPOLearner) -> dict[str, torch.Tensor]:
    """Copies of all float32 masters, gathered, by role and name."""
    copies = {}
    for role, optimizer in found.optimizers().items():
        for name, x in optimizer.weights.full_tensors(torch.float32):
            copies[f"{role}/{name}"] = x.detach().clone()
    return copies
