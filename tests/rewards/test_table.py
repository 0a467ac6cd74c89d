"""From a table of rollouts to a table of scores, against the formula written out."""

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from rlhf_ray.data.ids import HELDOUT, TRAIN, RolloutKey, rollout_id
from rlhf_ray.data.schemas import EOS, LENGTH, ROLLOUT, check, join, rollout_table
from rlhf_ray.models.reward_model import Calibration
from rlhf_ray.rewards.combine import CombinedReward, Source
from rlhf_ray.rewards.protocol import Responses, Scores
from rlhf_ray.rewards.table import responses_of, score_table
from tests.rewards.models import policy_tokenizer


class Told:
    """A source that gives the scores it was made with, and keeps what it was asked."""

    def __init__(self, scores: list[float], valid: list[bool]) -> None:
        self.result = Scores(scores=np.array(scores, np.float32), valid=np.array(valid, bool))
        self.batch: Responses | None = None

    def __call__(self, batch: Responses) -> Scores:
        self.batch = batch
        return self.result

    def close(self) -> None:
        """Nothing to end."""


def rollouts(tokenizer, texts: list[tuple[str, str, bool]]) -> pa.Table:
    """Rows (prompt, response, ended) with ids 7, 6, 5, …"""
    rows = []
    for i, (prompt, response, ended) in enumerate(texts):
        ids = tokenizer(response)["input_ids"] + [tokenizer.eos_token_id] * ended
        rows.append(
            {
                "rollout_id": 7 - i,
                "prompt_id": i,
                "sample_index": 0,
                "prompt_token_ids": tokenizer(prompt)["input_ids"],
                "response_token_ids": ids,
                "behaviour_logprobs": [0.0] * len(ids),
                "finish_reason": EOS if ended else LENGTH,
                "version_spans": [0, 0, 0],
                "generator": "test",
            }
        )
    return rollout_table(rows)


TEXTS = [("the food", " was good", True), ("the staff", " was", False), ("菜", "很好吃", True)]


@pytest.mark.parametrize("calibration", [None, Calibration(mean=1.0, std=2.0, samples=9)])
@pytest.mark.parametrize("clip", [None, 1.5])
def test_scores_are_normalised_then_clipped_then_penalised(calibration, clip) -> None:
    tokenizer = policy_tokenizer()
    first = Told([8.0, -4.0, 1.0], [True, True, False])
    second = Told([1.0, 2.0, 3.0], [True, True, True])
    reward = CombinedReward([Source("a", first, 1.0), Source("b", second, -0.5)])
    table = rollouts(tokenizer, TEXTS)
    result = score_table(
        reward, table, tokenizer, calibration=calibration, clip=clip, missing_eos_penalty=0.75
    )
    expected = []
    for total, ended in [(7.5, True), (-5.0, False), (-0.5, True)]:
        score = total if calibration is None else (total - 1.0) / 2.0
        score = score if clip is None else max(-clip, min(clip, score))
        expected.append(score - (0 if ended else 0.75))
    assert result.column("score").to_pylist() == pytest.approx(expected)
    assert result.column("score/a").to_pylist() == [8.0, -4.0, 1.0]
    assert result.column("score/b").to_pylist() == [1.0, 2.0, 3.0]
    assert result.column("score_valid").to_pylist() == [1, 1, 0]
    assert result.column("rollout_id").to_pylist() == [7, 6, 5]
    types = {field.name: field.type for field in result.schema}
    scores = {name: pa.float32() for name in ("score", "score/a", "score/b")}
    assert types == {"rollout_id": pa.int64(), "score_valid": pa.uint8(), **scores}
    check(result, list(types))
    joined = join(table, result)
    assert joined.column("score/a").to_pylist() == [1.0, -4.0, 8.0]


def test_sources_see_the_policys_tokens_and_plain_text() -> None:
    tokenizer = policy_tokenizer()
    source = Told([0.0] * 3, [True] * 3)
    table = rollouts(tokenizer, TEXTS)
    score_table(
        CombinedReward([Source("a", source, 1.0)]),
        table,
        tokenizer,
        calibration=None,
        clip=None,
        missing_eos_penalty=0.0,
    )
    assert source.batch is not None
    assert list(source.batch.prompts) == [text[0] for text in TEXTS]
    assert list(source.batch.responses) == [text[1] for text in TEXTS]
    assert source.batch.response_token_ids[0][-1] == tokenizer.eos_token_id
    assert source.batch.prompt_token_ids == table.column("prompt_token_ids").to_pylist()


def test_sources_see_prompts_as_they_were_asked() -> None:
    """Not the text of what a chat template has made of them."""
    turns = (("user", "the food"), ("assistant", "was good"), ("user", "the staff"))
    asked = {TRAIN: ["the room", turns, None], HELDOUT: ["held out"]}
    table = rollouts(policy_tokenizer(), TEXTS)
    batch = responses_of(table, policy_tokenizer(), asked)
    assert batch.prompts == ["the room", turns, "菜"]
    assert batch.prompt_texts() == [
        "the room",
        "\n\nuser: the food\n\nassistant: was good\n\nuser: the staff\n\nassistant:",
        "菜",
    ]
    held = rollout_id(RolloutKey(HELDOUT, 3, 0, 0))
    place = table.schema.get_field_index("rollout_id")
    ids = pa.array([held, 1, 2], table.schema.field(place).type)
    held_out = responses_of(
        table.set_column(place, table.schema.field(place), ids), policy_tokenizer(), asked
    )
    assert held_out.prompts[0] == "held out"


def test_a_response_keeps_the_space_that_its_tokenizer_strips_from_a_beginning() -> None:
    """SentencePiece's kind: `▁word` decodes to `word` where a text begins with it."""
    vocab = {"</s>": 0, "▁good": 1, "▁food": 2, "<unk>": 3}
    backend = Tokenizer(tokenizer_models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert tokenizer.decode([2]) == "food"
    batch = responses_of(rollouts(tokenizer, [("good", "food", True)]), tokenizer)
    assert (batch.prompts[0], batch.responses[0]) == ("good", " food")


def test_an_empty_table_gives_an_empty_table() -> None:
    tokenizer = policy_tokenizer()
    reward = CombinedReward([Source("a", Told([], []), 1.0)])
    result = score_table(
        reward,
        ROLLOUT.empty_table(),
        tokenizer,
        calibration=Calibration(0.0, 1.0, 2),
        clip=1.0,
        missing_eos_penalty=1.0,
    )
    assert result.num_rows == 0
    assert result.column_names == ["rollout_id", "score", "score_valid", "score/a"]
