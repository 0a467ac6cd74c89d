"""Preference strength and what is made of it: tables, remedies, the cleaned set; the commands."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_ray.config import RM, Config, Data, Strength
from rlhf_ray.data.preference_split import folds_of
from rlhf_ray.data.preferences import leaks, load_lists
from rlhf_ray.data.ranked_list import Comparison, RankedList
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.training import strength
from rlhf_ray.training.cleaning import REMEDIES, Limits, clean
from rlhf_ray.training.strength import (
    PairStrength,
    measure,
    member_scores,
    read_lists,
    read_strength,
    strengths,
    write_strength,
)
from rlhf_ray.training.strength_table import buckets_of, markdown
from tests.running.here import job_here
from tests.training.worlds import config_for

LISTS = [
    RankedList("", ("good", "bad"), (1, 2), "x", 1),
    RankedList("p", ("worse", "better"), (2, 1), "x", 2),
    RankedList("", ("a", "b", "c"), (1, 2, 3), "x", 3),
]
PAIRS = [(0, 0, 1), (1, 1, 0), (2, 0, 1), (2, 0, 2), (2, 1, 2)]
MEANS = [2.0, -1.5, 0.5, 1.0, -0.2]
FOUND = [
    PairStrength(*pair, mean=mean, std=0.1, agree=0.9, target=0.7)
    for pair, mean in zip(PAIRS, MEANS, strict=True)
]


def test_strength_is_mean_and_deviation_of_the_gaps_over_models() -> None:
    scores = [
        np.array([3.0, 1.0, 0.0, 1.0, 1.0, 2.0, 4.0]),
        np.array([1.0, 3.0, 0.0, 3.0, 5.0, 2.0, 4.0]),
    ]
    found = strengths(LISTS, scores)
    assert [(one.list, one.better, one.worse) for one in found] == PAIRS
    assert [one.mean for one in found] == [0.0, 2.0, 1.0, -1.0, -2.0]
    assert [one.std for one in found] == [2.0, 1.0, 2.0, 2.0, 0.0]
    assert [one.agree for one in found] == [0.5, 1.0, 0.5, 0.5, 0.0]
    sigma = torch.tensor([2.0, -2.0]).sigmoid().mean().item()
    assert found[0].target == pytest.approx(sigma)


def test_judgements_of_folds_are_brought_together() -> None:
    nan = float("nan")
    first, second = np.array([3.0, 1.0, nan, nan]), np.array([nan, nan, 5.0, 1.0])
    found = strengths(LISTS[:2], [first, second, second, first])
    assert [one.mean for one in found] == [2.0, -4.0] and found[0].std == 0


def test_folds_keep_groups_together_and_use_all_of_them() -> None:
    lists = [
        RankedList("", (f"good {i // 2}", f"bad {i}"), (1, 2), "x", i) for i in range(60)
    ]  # each good text is in two lists
    folds = folds_of(lists, 3, (0, 1))
    assert all(folds[i] == folds[i + 1] for i in range(0, 60, 2)) and set(folds) == {0, 1, 2}
    assert folds != folds_of(lists, 3, (0, 2))


def test_the_table_goes_from_weak_to_strong() -> None:
    found = [dataclasses.replace(FOUND[0], mean=float(x)) for x in (5, 1, 3, 2, 4, 0)]
    buckets = buckets_of(found, 3)
    assert [(one.low, one.high, one.mean) for one in buckets] == [
        (0, 1, 0.5), (2, 3, 2.5), (4, 5, 4.5),
    ]  # fmt: skip
    assert markdown(buckets).count("\n") == 5
    with pytest.raises(ValueError, match="give 1 to 6"):
        buckets_of(found, 7)


def cleaned(how: str, **limits):
    kept, counts = clean(LISTS, FOUND, how, Limits(**limits))
    return [one.ranked for one in kept], counts, [one.notes for one in kept]


def test_flipping_exchanges_what_is_better() -> None:
    lists, counts, notes = cleaned("flip", threshold=0.0)
    assert lists[0] == LISTS[0] and lists[1].ranks == (1, 2) and not lists[1].pairs
    assert lists[2].comparisons() == (Comparison(0, 1), Comparison(0, 2), Comparison(2, 1))
    assert counts == {"pairs": 5, "lists": 3, "flip": 2}
    assert notes == [
        [],
        [{"better": 1, "worse": 0, "did": "flip", "strength": -1.5}],
        [{"better": 1, "worse": 2, "did": "flip", "strength": -0.2}],
    ]


def test_dropping_leaves_out_pairs_and_empty_lists() -> None:
    lists, counts, _ = cleaned("drop", fraction=0.4)
    assert [one.line for one in lists] == [1, 3]
    assert lists[1].comparisons() == (Comparison(0, 1), Comparison(0, 2))
    assert counts["drop"] == 2 and counts["lists left out"] == 1


def test_soft_and_smooth_labels_are_of_weak_pairs_alone() -> None:
    lists, _, _ = cleaned("soft", threshold=0.0)
    assert lists[0].comparisons() == (Comparison(0, 1),)
    assert lists[1].comparisons() == (Comparison(1, 0, target=0.7),)
    lists, _, _ = cleaned("smooth", threshold=0.0, label_smoothing=0.2)
    assert lists[1].comparisons() == (Comparison(1, 0, target=0.8),)


def test_margins_are_of_all_pairs_and_of_the_label_as_it_stands() -> None:
    lists, _, _ = cleaned("margin", margin_scale=2.0, margin_limit=2.5)
    assert [pair.margin for one in lists for pair in one.comparisons()] == [
        2.5,
        -2.5,
        1.0,
        2.0,
        -0.4,
    ]
    lists, counts, _ = cleaned("flip+margin", threshold=-1.0)
    assert lists[1].comparisons() == (Comparison(0, 1, margin=1.5),)
    assert counts["flip+margin"] == 1 and counts["margin"] == 4
    lists, _, _ = cleaned("smooth+margin", threshold=-1.0)
    assert lists[1].comparisons() == (Comparison(1, 0, margin=-1.5, target=0.9),)


def mended(one: RankedList, how: str, *means: float) -> tuple[Comparison, ...]:
    """Comparisons of this list after `how`; a pair of negative mean is weak."""
    found = [
        PairStrength(0, pair.better, pair.worse, mean=mean, std=0.1, agree=0.9, target=0.7)
        for pair, mean in zip(one.comparisons(), means, strict=True)
    ]
    needed = {} if how == "margin" else {"threshold": 0.0}
    return clean([one], found, how, Limits(**needed))[0][0].ranked.comparisons()


BROUGHT = (Comparison(0, 1, margin=0.5, target=0.8), Comparison(1, 2, margin=0.3, target=0.9))


@pytest.mark.parametrize(
    ("how", "weak"),
    [
        ("drop", None),
        ("flip", Comparison(2, 1)),
        ("soft", Comparison(1, 2, margin=0.3, target=0.7)),
        ("smooth", Comparison(1, 2, margin=0.3, target=0.9)),
    ],
)
def test_a_pair_keeps_the_margin_and_target_it_came_with(how: str, weak: Comparison | None) -> None:
    one = dataclasses.replace(LISTS[2], pairs=BROUGHT)
    assert mended(one, how, 1.0, -1.0) == ((BROUGHT[0],) if weak is None else (BROUGHT[0], weak))


def test_a_remedy_that_sets_margins_leaves_targets_and_a_flipped_pair_has_none_left() -> None:
    one = dataclasses.replace(LISTS[2], pairs=BROUGHT)
    assert mended(one, "margin", 1.0, -1.0) == (
        Comparison(0, 1, margin=1.0, target=0.8),
        Comparison(1, 2, margin=-1.0, target=0.9),
    )
    assert mended(one, "flip+margin", 1.0, -1.0) == (
        Comparison(0, 1, margin=1.0, target=0.8),
        Comparison(2, 1, margin=1.0),
    )


def test_two_texts_compared_twice_stay_compared_twice() -> None:
    one = dataclasses.replace(LISTS[0], pairs=(Comparison(0, 1), Comparison(0, 1)))
    for how in ("flip", "margin", "smooth"):
        assert len(mended(one, how, 1.0, -1.0)) == 2
    assert mended(one, "flip", 1.0, -1.0) == (Comparison(0, 1), Comparison(1, 0))
    assert mended(one, "drop", 1.0, -1.0) == (Comparison(0, 1),)


@pytest.mark.parametrize("how", REMEDIES)
def test_a_cleaned_set_is_written_and_read_back(how: str, tmp_path: Path) -> None:
    config = config_for(tmp_path, 8)
    lists = list(read_lists(config))
    rng = np.random.default_rng(0)
    found = [
        PairStrength(i, pair.better, pair.worse, float(rng.normal()), 0.1, 0.5, 0.5)
        for i, one in enumerate(lists)
        for pair in one.comparisons()
    ]
    write_strength(tmp_path / "s", config, "base", found)
    out = tmp_path / "cleaned.jsonl"
    args = ["clean", str(tmp_path / "s"), "--how", how, "--fraction", "0.3", "--out", str(out)]
    assert job_here("preferences", *args) == 0
    expected, _ = clean(lists, found, how, Limits(fraction=0.3))
    read = load_lists(out)
    for one, wanted in zip(read, expected, strict=True):
        assert one.responses == wanted.ranked.responses
        assert one.comparisons() == wanted.ranked.comparisons()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row.get("cleaned", []) for row in rows] == [one.notes for one in expected]


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    config = config_for(tmp_path, 8)
    write_strength(tmp_path / "s", config, "base", FOUND)
    with pytest.raises(ValueError, match="has changed since its strength was measured"):
        read_strength(tmp_path / "s")
    with pytest.raises(ValueError, match="holds no preference strength"):
        read_strength(tmp_path)


def test_strength_is_of_these_texts_ranks_and_pairs(tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    row = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 1, 2]}
    row["pairs"] = [{"better": 0, "worse": 1, "margin": 0.5, "target": 0.8}]
    path.write_text(json.dumps(row))
    config = config_for(tmp_path, 8, data=Data(preferences=str(path)))
    write_strength(tmp_path / "s", config, "base", [PairStrength(0, 0, 1, 1.0, 0.1, 1.0, 0.7)])
    assert len(read_strength(tmp_path / "s")[0]) == 1
    changes = [
        {"prompt": "q"},
        {"responses": ["a", "B", "c"]},
        {"ranks": [1, 2, 3]},
        {"pairs": [row["pairs"][0] | {"margin": 0.6}]},
        {"pairs": [row["pairs"][0] | {"target": 0.9}]},
    ]
    for change in changes:
        path.write_text(json.dumps(row | change))
        with pytest.raises(ValueError, match="has changed since its strength was measured"):
            read_strength(tmp_path / "s")
    path.write_text(json.dumps(row | {"id": 7}))  # a column that no model sees
    assert len(read_strength(tmp_path / "s")[0]) == 1


def test_strength_without_a_digest_is_measured_again(tmp_path: Path) -> None:
    config = config_for(tmp_path, 8)
    found = strengths(list(read_lists(config)), [np.zeros(24)])
    write_strength(tmp_path / "s", config, "base", found)
    assert len(read_strength(tmp_path / "s")[0]) == 24
    settings = json.loads((tmp_path / "s" / "strength.json").read_text())
    del settings["digest"]
    (tmp_path / "s" / "strength.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"lists\.tsv has changed .*: measure again"):
        read_strength(tmp_path / "s")


def test_weak_is_a_share_or_a_threshold() -> None:
    with pytest.raises(ValueError, match="give exactly one of them"):
        clean(LISTS, FOUND, "flip", Limits())
    with pytest.raises(ValueError, match="remedy 'turn' is none of"):
        clean(LISTS, FOUND, "turn", Limits(fraction=0.1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    config = config_for(path, 40)
    tokenizer = make_tokenizer(Path(config.data.texts).read_text().split("\n"), vocab=320)
    make_decoder(tokenizer, hidden=64, layers=1, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("scheme", ["once", "crossed"])
def test_flipped_labels_are_the_weak_ones(scheme: str, base: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path, 40, rm=RM(epochs=9, lr=3e-3, batch_lists=8))
    path = Path(config.data.preferences)
    lines = path.read_text().splitlines()
    flipped = set(range(0, 40, 8))
    path.write_text("\n".join(
        "\t".join(reversed(line.split("\t"))) if i in flipped else line
        for i, line in enumerate(lines)
    ))  # fmt: skip
    config = dataclasses.replace(config, strength=Strength(models=2, epochs=2, scheme=scheme))
    scores = [list(member_scores(config, base, member))[-1]["scores"] for member in range(2)]
    if scheme == "crossed":
        assert (np.isnan(scores[0]) != np.isnan(scores[1])).all()
    found = strengths(list(read_lists(config)), scores)
    wrong, right = (
        np.array([one.mean for one in found if (one.list in flipped) == is_flipped])
        for is_flipped in (True, False)
    )
    assert (wrong[:, None] < right).mean() > 0.9  # AUROC


REFUSING = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
)


@pytest.fixture
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Ten rows, the third with a system's turn, and `base`, whose template refuses that.

    The M models are trained here, one after the other.
    """
    asked = [{"role": "user", "content": "how was the room?"}]
    rows = [
        {"prompt": asked, "chosen": f"the room was good {i}", "rejected": f"the room was bad {i}"}
        for i in range(10)
    ]
    rows[2]["prompt"] = [{"role": "system", "content": "be kind"}, *asked]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = make_tokenizer(["the room was good", "the room was bad"], vocab=300)
    tokenizer.chat_template = REFUSING
    for part in (tokenizer, make_decoder(tokenizer, hidden=64, layers=1, seed=0)):
        part.save_pretrained(tmp_path / "base")

    def one_after_the_other(_: Any, calls: Any, **__: Any) -> Iterator[tuple[int, dict]]:
        for place, (args, _) in enumerate(calls):
            for row in member_scores(*args):
                yield place, row

    monkeypatch.setattr(strength, "run_phases", one_after_the_other)
    data = Data(preferences=str(tmp_path / "rows.jsonl"), on_bad_row="skip")
    config = config_for(tmp_path, data=data, rm=RM(lr=3e-3, batch_lists=4))
    return dataclasses.replace(config, strength=Strength(models=2, epochs=1))


PLAN = SimpleNamespace(learner=None, threads=1)


def test_a_row_that_the_template_refuses_has_no_strength(refusing: Config, tmp_path: Path) -> None:
    said: list[str] = []
    *_, found = measure(refusing, str(tmp_path / "base"), plan=PLAN, log=said.append)
    assert [one.list for one in found] == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert len(said) == 1 and "1 bad row skipped" in said[0] and "rows.jsonl:3: " in said[0]
    write_strength(tmp_path / "s", refusing, "base", found)
    out = tmp_path / "cleaned.jsonl"
    args = ["clean", str(tmp_path / "s"), "--how", "flip", "--fraction", "1", "--out", str(out)]
    assert job_here("preferences", *args) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["ranks"] for row in rows] == [[1, 2] if i == 2 else [2, 1] for i in range(10)]
    assert [i for i, row in enumerate(rows) if "cleaned" not in row] == [2]


def test_such_a_row_ends_it_before_anything_is_trained(refusing: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(
        refusing, data=dataclasses.replace(refusing.data, on_bad_row="fail")
    )
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: the chat template refuses .*skip"):
        next(measure(config, str(tmp_path / "base"), plan=PLAN, log=print))


def test_split_writes_two_sets_without_leaks(tmp_path: Path, capsys) -> None:
    config = config_for(tmp_path, 50)
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    args = (config.data.preferences, "--train", str(train), "--test", str(test))
    assert job_here("preferences", "split", *args, "--heldout", "0.3") == 0
    parts = list(load_lists(train)), list(load_lists(test))
    assert len(parts[0]) + len(parts[1]) == 50 and 5 < len(parts[1]) < 25
    assert not leaks(*parts)
    assert f"{len(parts[1])} lists: {test}" in capsys.readouterr().out


def test_what_the_job_cannot_do_it_says(tmp_path: Path, capsys) -> None:
    assert job_here("preferences", "mend") == 2
    assert "one of strength, clean, split, evaluate (now 'mend')" in capsys.readouterr().err
