"""Sequence classifiers of transformers as rewards, against what transformers computes by itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    RobertaConfig,
    RobertaModel,
    XLNetConfig,
    XLNetForSequenceClassification,
    XLNetModel,
)

from rlhf_ray.models.loading import check_length, positions_in
from rlhf_ray.models.tiny import make_decoder
from rlhf_ray.rewards.classifier import ClassifierReward
from rlhf_ray.rewards.micro_batches import Compute
from rlhf_ray.rewards.trained import UNSTATED, longest_input
from tests.rewards.models import batch_of, policy_tokenizer, save_classifier, word_tokenizer

PROMPTS = ["the food was", "the", "the staff was rude and the room"]
RESPONSES = [" good</s>", " staff was rude", " was clean and good and clean</s>"]


@pytest.fixture(scope="module")
def batch():
    return batch_of(policy_tokenizer(), PROMPTS, RESPONSES)


def logits_of(path: Path, decoder: bool) -> np.ndarray:
    """float64 [N, C], row by row, from the text by hand: `[CLS] words [SEP]`."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    vocab = word_tokenizer().get_vocab()
    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        words = (prompt + response.removesuffix("</s>")).split()
        ids = torch.tensor([[2, *(vocab[word] for word in words), 3]])
        with torch.no_grad():
            rows.append(model(input_ids=ids).logits[0].double().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("decoder", [False, True], ids=["bert", "llama without a pad token"])
@pytest.mark.parametrize("tokens", [1, 24, 1000])
def test_one_logit_is_the_score(tmp_path: Path, batch, decoder: bool, tokens: int) -> None:
    save_classifier(tmp_path, decoder=decoder, labels=1)
    reward = ClassifierReward(str(tmp_path), Compute(micro_batch_tokens=tokens))
    expected = logits_of(tmp_path, decoder)[:, 0]
    result = reward(batch)
    assert np.ptp(expected) > 0.01
    assert result.scores == pytest.approx(expected, abs=1e-4)
    assert result.scores.dtype == np.float32 and result.valid.all()


@pytest.mark.parametrize("pad", [None, 0, 3], ids=["no pad", "a pad of its own", "pad is EOS"])
def test_a_tokenizer_that_ends_each_text_with_eos(tmp_path: Path, batch, pad: int | None) -> None:
    save_classifier(tmp_path, decoder=True, labels=1, pad_token_id=pad)
    tokenizer = word_tokenizer(pad=False)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    scores = ClassifierReward(str(tmp_path), Compute())(batch).scores
    assert scores == pytest.approx(logits_of(tmp_path, True)[:, 0], abs=1e-4)


@pytest.mark.parametrize("label", [None, 0, 1, 2])
def test_several_logits_give_the_log_odds_of_the_label(
    tmp_path: Path, batch, label: int | None
) -> None:
    save_classifier(tmp_path, decoder=False, labels=3)
    logits = logits_of(tmp_path, False)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    chosen = probabilities[:, 2 if label is None else label]
    scores = ClassifierReward(str(tmp_path), Compute(), label=label)(batch).scores
    assert scores == pytest.approx(np.log(chosen / (1 - chosen)), abs=1e-4)


def test_labels_that_are_questions_of_their_own_give_their_logit(tmp_path: Path, batch) -> None:
    kind = {"problem_type": "multi_label_classification"}
    save_classifier(tmp_path, decoder=False, labels=3, **kind)
    scores = ClassifierReward(str(tmp_path), Compute(), label=1)(batch).scores
    assert scores == pytest.approx(logits_of(tmp_path, False)[:, 1], abs=1e-4)


def test_a_label_it_lacks_is_refused(tmp_path: Path) -> None:
    save_classifier(tmp_path, decoder=False, labels=3)
    with pytest.raises(ValueError, match=r"no label 3: it has 3, .*LABEL_2.*set label"):
        ClassifierReward(str(tmp_path), Compute(), label=3)


def test_a_text_longer_than_the_model_loses_its_beginning(tmp_path: Path) -> None:
    save_classifier(tmp_path, decoder=False, labels=1, positions=8)
    reward = ClassifierReward(str(tmp_path), Compute())
    batch = batch_of(policy_tokenizer(), ["the food was good " * 20], ["clean</s>"])
    vocab = word_tokenizer().get_vocab()
    kept = ["was", "good", "the", "food", "was", "good", "clean"][-6:]
    assert [row.tolist() for row in reward.token_ids(batch)] == [[2, *(vocab[w] for w in kept), 3]]
    assert np.isfinite(reward(batch).scores).all()


def test_roberta_keeps_positions_for_padding() -> None:
    config = RobertaConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=20,
        pad_token_id=1,
    )
    model = RobertaModel(config).eval()
    longest = longest_input(model, word_tokenizer())
    assert longest == 18
    check_length(positions_in(model), 18, "rm.max-tokens")
    with pytest.raises(ValueError, match=r"--rm.max-tokens is 19, and the model has 18 positions"):
        check_length(positions_in(model), 19, "rm.max-tokens")
    with torch.no_grad():
        model(torch.full((1, longest), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, longest + 1), 5))


def test_a_model_without_a_stated_length_takes_any(tmp_path: Path) -> None:
    tokenizer, sizes = word_tokenizer(), {"hidden_size": 16, "n_layer": 1, "n_head": 2}
    config = BloomConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, **sizes)
    BloomForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = ClassifierReward(str(tmp_path), Compute())
    long = batch_of(policy_tokenizer(), ["the food was good " * 600], ["clean</s>"])
    assert [len(row) for row in reward.token_ids(long)] == [2403]
    scores = reward(batch_of(policy_tokenizer(), PROMPTS, RESPONSES)).scores
    assert scores == pytest.approx(logits_of(tmp_path, True)[:, 0], abs=1e-4)


def test_a_model_read_at_the_last_place_sees_no_padding(tmp_path: Path, batch) -> None:
    tokenizer, sizes = word_tokenizer(), {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16}
    torch.manual_seed(0)
    config = XLNetConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.5, **sizes)
    XLNetForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scores = ClassifierReward(str(tmp_path), Compute())(batch).scores
    assert scores == pytest.approx(logits_of(tmp_path, False)[:, 0], abs=1e-4)


def test_a_limit_below_one_is_none() -> None:
    sizes = {"vocab_size": 9, "d_model": 8, "n_layer": 1, "n_head": 1, "d_inner": 8}
    assert longest_input(XLNetModel(XLNetConfig(**sizes)), word_tokenizer()) == UNSTATED


def test_a_language_model_is_no_classifier(tmp_path: Path) -> None:
    """transformers would give it a head with random weights."""
    tokenizer = policy_tokenizer()
    make_decoder(tokenizer, hidden=64, layers=1, seed=0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"ForCausalLM and lacks .*score.*random"):
        ClassifierReward(str(tmp_path), Compute())


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        ClassifierReward(str(tmp_path / "nowhere"), Compute())
