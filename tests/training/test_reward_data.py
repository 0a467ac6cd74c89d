"""What a reward model is trained and judged on: templates, mixtures, leaks, the verdict."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_ray.config import RM, Data
from rlhf_ray.data.preferences import leaks, write_tsv
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.ranked_list import Comparison, RankedList
from rlhf_ray.models.tiny import make_tokenizer
from rlhf_ray.training.ranked_data import tokenise_lists
from rlhf_ray.training.reward_evaluation import gaps_of, judge, list_metrics
from rlhf_ray.training.reward_model import load_split
from tests.training.worlds import config_for

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)
QUESTION = "Name a tea."


def tokenizer_with_template():
    tokenizer = make_tokenizer([QUESTION, "Oolong", "No"], vocab=300)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_prompts_are_rendered_for_the_reward_model_as_for_ppo(tmp_path: Path) -> None:
    rows = [{"prompt": QUESTION + str(i), "chosen": "Oolong", "rejected": "No"} for i in range(4)]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    tokenizer = tokenizer_with_template()
    config = dataclasses.replace(
        config_for(tmp_path), data=Data(prompts=str(path), preferences=str(path))
    )
    split = load_split(config, tokenizer)
    prompts = load_prompts(config.data, tokenizer, 0)
    known = {one.text: one.token_ids for one in (*prompts.train, *prompts.heldout)}
    lists = split.train + split.heldout
    data = tokenise_lists(tokenizer, lists, max_tokens=64)
    for i, one in enumerate(lists):
        row = data.rows.token_ids[data.starts[i]]
        prompt = tuple(row[: data.rows.prompt_lengths[data.starts[i]]].tolist())
        assert prompt == known[one.prompt] and prompt.count(tokenizer.bos_token_id) == 1
    assert load_split(config).train[0].prompt.startswith(QUESTION)  # without a tokenizer: as it is
    never = dataclasses.replace(
        config, data=dataclasses.replace(config.data, chat_template="never")
    )
    assert load_split(never, tokenizer).train[0].prompt.startswith(QUESTION)


def held_out_files(tmp_path: Path):
    config = config_for(tmp_path, 30)
    train = load_split(config).train
    held = tmp_path / "held.tsv"
    fresh = RankedList("", ("unseen good", "unseen bad"), (1, 2), "h", 1)
    write_tsv(held, [fresh, train[3]])
    data = dataclasses.replace(config.data, heldout_preferences=str(held))
    return dataclasses.replace(config, data=data), train[3]


def test_lists_that_are_in_both_files_leave_training(tmp_path: Path) -> None:
    config, shared = held_out_files(tmp_path)
    split = load_split(config)
    assert split.leaked == 1 and len(split.train) == 29 and len(split.heldout) == 2
    assert shared.responses not in {one.responses for one in split.train}
    assert not leaks(split.train, split.heldout)


def test_leaks_may_end_the_run_or_stay(tmp_path: Path) -> None:
    config, _ = held_out_files(tmp_path)
    with pytest.raises(ValueError, match=r"share 3 texts or first turns.*--rm.leaks drop"):
        load_split(dataclasses.replace(config, rm=RM(leaks="fail")))
    allowed = load_split(dataclasses.replace(config, rm=RM(leaks="allow")))
    assert len(allowed.train) == 30 and allowed.leaked == 0


def test_a_heldout_file_that_holds_everything_is_refused(tmp_path: Path) -> None:
    config = config_for(tmp_path, 10)
    data = dataclasses.replace(config.data, heldout_preferences=config.data.preferences)
    with pytest.raises(ValueError, match="nothing is left to train on"):
        load_split(dataclasses.replace(config, data=data))


def test_mixtures_are_split_without_leaks(tmp_path: Path) -> None:
    config = config_for(tmp_path, 40)
    other = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "p", "selected": f"a{i}", "rejected": f"b{i}"} for i in range(30)]
    other.write_text("\n".join(map(json.dumps, rows)))
    mixture = f"{config.data.preferences}=2,{other}=0.5"
    split = load_split(
        dataclasses.replace(config, data=dataclasses.replace(config.data, preferences=mixture))
    )
    assert not leaks(split.train, split.heldout)
    sources = [one.source for one in split.train + split.heldout]
    assert sources.count(config.data.preferences) == 80 and 5 < sources.count(str(other)) < 25


LISTS = [
    RankedList("", ("good one", "ok", "bad"), (1, 2, 3), "a", 1),
    RankedList("", ("poor and long", "fine"), (2, 1), "b", 2),
    RankedList("", ("x", "yy"), (1, 2), "b", 3, pairs=(Comparison(1, 0),)),
]
TOKENIZER = make_tokenizer([text for one in LISTS for text in one.responses], vocab=300)
DATA = tokenise_lists(TOKENIZER, LISTS, max_tokens=32)
SCORES = torch.tensor([2.0, 1.0, 1.5, 0.0, 3.0, -1.0, 1.0])


def test_gaps_follow_pairs_where_a_list_has_them() -> None:
    assert gaps_of(SCORES, DATA).tolist() == [1.0, 0.5, -0.5, 3.0, 2.0]
    metrics = list_metrics(SCORES, DATA)
    assert metrics["heldout/pair_accuracy"] == pytest.approx(0.8)
    assert metrics["heldout/exact_order"] == pytest.approx(1 / 3)  # ranks say x before yy


def test_comparisons_of_some_lists_count_their_own_texts() -> None:
    some = DATA.comparisons_of([2, 0])
    assert some.pairs.first_P.tolist() == [1, 2, 2, 3] and some.pairs.list_P.tolist() == [
        0,
        1,
        1,
        1,
    ]
    assert some.pairs.second_P.tolist() == [0, 3, 4, 4]
    assert some.target_P is None and DATA.best_of([1, 0]) == [4, 0]


def test_the_verdict_holds_curves_lengths_and_sources() -> None:
    verdict = judge(SCORES, DATA, LISTS)
    assert verdict.metrics["pair_accuracy"] == pytest.approx(0.8)
    assert sum(verdict.histogram["counts"]) == 5
    edges = verdict.histogram["edges"]
    assert edges[0] == pytest.approx(-0.5) and edges[-1] == pytest.approx(3.0)
    assert sum(one["pairs"] for one in verdict.calibration) == 5
    for one in verdict.calibration:
        assert 0.5 <= one["confidence"] <= 1 and 0 <= one["right"] <= 1
    assert verdict.sources == {
        "a": {"pairs": 3.0, "pair_accuracy": pytest.approx(2 / 3)},
        "b": {"pairs": 2.0, "pair_accuracy": 1.0},
    }
    lengths = verdict.lengths
    # longer is better in 3 of 5 pairs: (good one, ok), (good one, bad), (yy, x)
    assert lengths["longer_is_better"] == pytest.approx(0.6)
    assert lengths["accuracy_longer"] == 1.0 and lengths["accuracy_shorter"] == 0.5
    characters = [len(text) for one in LISTS for text in one.responses]
    assert lengths["correlation"] == pytest.approx(np.corrcoef(SCORES, characters)[0, 1])
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_tied_scores_leave_nothing_undefined() -> None:
    verdict = judge(torch.zeros(7), DATA, LISTS)
    assert verdict.metrics["pair_accuracy"] == 0 == verdict.metrics["exact_order"]
    json.dumps(verdict.to_dict(), allow_nan=False)
