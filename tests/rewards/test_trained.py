"""The trained reward model: the bare model's scores, row by row, on the right ids."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.rewards.micro_batches import Compute
from rlhf_ray.rewards.tokens import cut, fingerprint
from rlhf_ray.rewards.trained import TrainedReward
from tests.rewards.models import TEXTS, batch_of, policy_tokenizer, save_reward_model

PROMPTS = ["the food was", "the", "菜很", "the staff was rude and the room"]
RESPONSES = [" good</s>", " staff was rude", "好吃</s>", " was clean and good and clean</s>"]


@pytest.fixture(scope="module")
def tokenizer():
    return policy_tokenizer()


@pytest.fixture(scope="module")
def directory(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward")
    save_reward_model(path, tokenizer)
    return path


@pytest.fixture(scope="module")
def reward(directory: Path, tokenizer) -> TrainedReward:
    return TrainedReward(directory, tokenizer, Compute())


def alone(reward: TrainedReward, ids: list[int]) -> float:
    """The model on one row without any padding."""
    row = torch.tensor([ids])
    return reward._model(row, torch.ones_like(row)).item()


def test_each_score_is_that_of_its_row_alone(reward: TrainedReward, tokenizer) -> None:
    batch = batch_of(tokenizer, PROMPTS, RESPONSES)
    assert not reward.retokenises
    pairs = zip(batch.prompt_token_ids, batch.response_token_ids, strict=True)
    expected = [alone(reward, [*p, *r]) for p, r in pairs]
    result = reward(batch)
    assert result.scores == pytest.approx(expected, abs=1e-5) and result.valid.all()
    assert result.scores.dtype == np.float32 and np.ptp(expected) > 1e-3


@pytest.mark.parametrize("tokens", [1, 9, 20, 10_000])
def test_the_cut_into_micro_batches_changes_nothing(
    directory: Path, reward: TrainedReward, tokenizer, tokens: int
) -> None:
    batch = batch_of(tokenizer, PROMPTS * 3, RESPONSES * 3)
    other = TrainedReward(directory, tokenizer, Compute(micro_batch_tokens=tokens))
    assert other(batch).scores == pytest.approx(reward(batch).scores, abs=1e-5)


def test_another_vocabulary_is_tokenised_again(tmp_path: Path, tokenizer) -> None:
    """Same size, other ids: the model must see the ids that its own tokenizer gives the text."""
    own = policy_tokenizer(extra=["zebra zoo " * 20])
    save_reward_model(tmp_path, own)
    reward = TrainedReward(tmp_path, tokenizer, Compute())
    batch = batch_of(tokenizer, PROMPTS, RESPONSES)
    assert reward.retokenises
    expected = batch_of(own, PROMPTS, RESPONSES)
    pairs = zip(expected.prompt_token_ids, expected.response_token_ids, strict=True)
    rows = [[*p, *r] for p, r in pairs]
    assert [row.tolist() for row in reward.token_ids(batch)] == rows
    assert rows[0][-1] == own.eos_token_id and rows[1][-1] != own.eos_token_id
    assert rows[0][: len(batch.prompt_token_ids[0])] != batch.prompt_token_ids[0]
    assert reward(batch).scores == pytest.approx([alone(reward, r) for r in rows], abs=1e-5)


def test_a_model_with_another_tokenizer_reads_prompts_by_its_own_template(
    tmp_path: Path, tokenizer
) -> None:
    own = policy_tokenizer(extra=["zebra zoo " * 20])
    own.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    save_reward_model(tmp_path, own)
    batch = batch_of(tokenizer, ["?", "?"], [" good</s>", " clean"])
    turns = (("Human", "the food"), ("Assistant", "was"), ("Human", "the room"))
    batch = replace(batch, prompts=["the food was", turns])
    for template, texts in (
        ("auto", ["user:the food was;", "user:the food;assistant:was;user:the room;"]),
        ("never", batch.prompt_texts()),
    ):
        reward = TrainedReward(tmp_path, tokenizer, Compute(), template)
        first, second = (row.tolist() for row in reward.token_ids(batch))
        assert first == [*own(texts[0])["input_ids"], *own(" good")["input_ids"], own.eos_token_id]
        assert second == [*own(texts[1])["input_ids"], *own(" clean")["input_ids"]]


def test_the_fingerprint_sees_what_ids_mean_and_nothing_else(tokenizer) -> None:
    assert fingerprint(tokenizer) == fingerprint(policy_tokenizer())
    padded_otherwise = policy_tokenizer()
    padded_otherwise.pad_token = padded_otherwise.eos_token
    padded_otherwise.padding_side = "left"
    assert fingerprint(padded_otherwise) == fingerprint(tokenizer)
    one_more = policy_tokenizer()
    one_more.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    ends_otherwise = policy_tokenizer()
    ends_otherwise.eos_token = ends_otherwise.bos_token
    others = [one_more, ends_otherwise, policy_tokenizer(extra=["zebra zoo " * 20])]
    assert len({fingerprint(tokenizer), *map(fingerprint, others)}) == 4


@pytest.mark.parametrize("same", [True, False])
def test_a_prompt_longer_than_the_model_loses_its_beginning(
    tmp_path: Path, tokenizer, same: bool
) -> None:
    own = tokenizer if same else policy_tokenizer(extra=["zebra zoo " * 20])
    save_reward_model(tmp_path, own, positions=16)
    reward = TrainedReward(tmp_path, tokenizer, Compute())
    assert reward.retokenises != same
    long = " ".join(TEXTS[:2] * 5)
    (row,) = reward.token_ids(batch_of(tokenizer, [long], [" good</s>"]))
    expected = batch_of(own, [long], [" good</s>"])
    whole = [*expected.prompt_token_ids[0], *expected.response_token_ids[0]]
    assert len(whole) > 16 and row.tolist() == whole[-16:]
    assert np.isfinite(reward(batch_of(tokenizer, [long], [" good</s>"])).scores).all()


@given(
    prompt=st.lists(st.integers(1, 50), max_size=12),
    response=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    ended=st.booleans(),
    limit=st.integers(2, 30),
)
def test_a_cut_keeps_the_ends_that_matter(prompt, response, ended: bool, limit: int) -> None:
    eos, other = 0, 99
    row = cut(
        prompt,
        [*response, other] if ended else response,
        max_tokens=limit,
        end=eos if ended else None,
    ).tolist()
    response = [*response, eos] if ended else response
    assert len(row) == min(limit, len(prompt) + len(response))
    if len(response) <= limit:
        assert row == (prompt + response)[-limit:]
    else:
        assert row[:-1] == response[: limit - 1]
        assert row[-1] == (eos if ended else response[limit - 1])


def test_a_token_that_the_model_lacks_is_refused(reward: TrainedReward, tokenizer) -> None:
    batch = batch_of(tokenizer, PROMPTS, RESPONSES)
    batch.response_token_ids[2][0] = len(tokenizer) + 7
    with pytest.raises(ValueError, match=f"sampled token {len(tokenizer) + 7}, which the reward"):
        reward(batch)


def test_bfloat16_is_near_float32(directory: Path, reward: TrainedReward, tokenizer) -> None:
    batch = batch_of(tokenizer, PROMPTS, RESPONSES)
    low = TrainedReward(directory, tokenizer, Compute(dtype=torch.bfloat16))
    assert next(low._model.backbone.parameters()).dtype == torch.bfloat16
    scores = low(batch).scores
    assert scores == pytest.approx(reward(batch).scores, abs=0.05)
    assert not np.array_equal(scores, reward(batch).scores)


def test_a_directory_without_a_reward_model_is_refused(tmp_path: Path, tokenizer) -> None:
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no reward model"):
        TrainedReward(tmp_path, tokenizer, Compute())
