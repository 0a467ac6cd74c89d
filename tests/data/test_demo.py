import random
import re
from itertools import combinations, pairwise

import pytest

from rlhf_ray.data import demo_chinese, demo_english
from rlhf_ray.data.demo import (
    gold,
    gold_score,
    make_lists,
    make_prompts,
    make_texts,
    write_demo,
    write_review,
)


def chinese(text):
    return bool(re.search(r"[\u4e00-\u9fff]", text))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_gold_reads_back_the_grades_that_wrote_the_review(language):
    for i in range(1500):
        rng = random.Random(i)
        review = write_review(rng, language=language, mood=rng.uniform(-1, 1))
        good = sum(g for g in review.grades if g > 0)
        bad = -sum(g for g in review.grades if g < 0)
        assert gold(review.text) == pytest.approx((good - bad) / (good + bad + 2)), review


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("", 0),
        ("The kettle is here.", 0),
        ("The lid is good.", 1 / 3),
        ("the lid is EXCELLENT", 2 / 4),
        ("The lid is excellent. The base is superb!", 4 / 6),
        ("The lid is excellent, but delivery was slow.", (2 - 1) / 5),
        ("Excellent excellent excellent! Excellent. The lid is excellent.", 2 / 4),
        ("excellent superb outstanding fantastic wonderful brilliant", 2 / 4),
        ("The lid is not good.", -1 / 3),
        ("The lid is not bad.", 1 / 3),
        ("The lid is not very excellent.", -1 / 3),
        ("The lid is never terrible.", 1 / 3),
        ("The lid is anything but useless.", 1 / 3),
        ("I would not buy it again.", -1 / 3),
        ("I would buy it again.", 1 / 3),
        ("support never answered, and my questions were answered", (1 - 2) / 5),
        ("It was goodness itself.", 0),
        ("盖子不错。", 1 / 3),
        ("盖子不太好，", -1 / 3),
        ("盖子并不一流", -1 / 3),
        ("盖子非常好。做工太差了！", 0),
        ("盖子非常好，非常好，非常好。", 2 / 4),
        ("不推荐。", -1 / 3),
        ("谈不上一塌糊涂", 1 / 3),
        ("物流挺快，而且盖子一流，客服态度恶劣", (1 + 2 - 2) / 7),
        ("\ufffd\ufffd 好极\ufffd one of the the", 0),
    ],
)
def test_gold_by_hand(text, score):
    assert gold(text) == pytest.approx(score)


def test_gold_score_reads_prompt_and_response_as_one_text():
    prompts, responses = ["I think the lid is", "买了水壶，感觉盖子"], [" superb.", "不怎么样。"]
    assert gold_score(prompts, responses) == pytest.approx([2 / 4, -1 / 3])
    assert gold_score([], []) == []
    with pytest.raises(ValueError, match="zip"):
        gold_score(["a"], [])


def test_no_opinion_has_two_grades_and_none_is_cut_by_the_end_of_a_clause():
    for words in (demo_english, demo_chinese):
        tables = [words.CLOSINGS, *words.TOPICS.values()]
        opinions = [
            (re.search(r"\[(.+)\]", o)[1].lower(), grade)
            for table in tables
            for grade, row in table.items()
            for o in row
        ] + [(a.lower(), grade) for grade, row in words.ADJECTIVES.items() for a in row]
        assert len({o for o, _ in opinions}) == len(opinions)
        for opinion, grade in opinions:
            assert gold(opinion) == grade / (abs(grade) + 2), opinion


def test_texts_are_various_and_in_both_languages():
    texts = make_texts(2000, seed=0)
    assert texts == make_texts(2000, seed=0) != make_texts(2000, seed=1)
    assert texts[:50] == make_texts(50, seed=0)
    assert len(set(texts)) == 2000
    assert 880 < sum(map(chinese, texts)) < 1120
    assert not any(mark in text for text in texts for mark in "\t\n[]{}")
    scores = [gold(text) for text in texts]
    assert abs(sum(scores) / len(scores)) < 0.06
    assert len(set(scores)) >= 20
    english = [text.lower().split() for text in texts if not chinese(text)]
    bigrams = {pair for words in english for pair in pairwise(words)}
    assert len(bigrams) > 1500


def test_lists_are_best_first_and_noise_errs_in_close_pairs():
    exact = make_lists(300, seed=0, noise=0.0)
    assert all(len(row) == 4 for row in exact)
    assert all(gold(a) >= gold(b) for row in exact for a, b in combinations(row, 2))
    noisy = make_lists(300, k=3, seed=0, noise=0.2)
    gaps = [gold(a) - gold(b) for row in noisy for a, b in combinations(row, 2)]
    wrong = [gap for gap in gaps if gap < 0]
    assert 0.02 * len(gaps) < len(wrong) < 0.2 * len(gaps)
    assert min(gaps) > -1


def test_prompts_are_neutral_different_and_open_reviews():
    prompts = make_prompts(1200, seed=0)
    assert len(set(prompts)) == 1200
    assert {gold(prompt) for prompt in prompts} == {0.0}
    assert 400 < sum(map(chinese, prompts)) < 800
    assert prompts == make_prompts(1200, seed=0) != make_prompts(1200, seed=1)
    openings = set(make_prompts(3000, seed=0))
    texts = make_texts(200, seed=0)
    assert sum(any(text.startswith(o) for o in openings) for text in texts) > 150
    with pytest.raises(ValueError, match="ask for fewer"):
        make_prompts(10**6, seed=0)


def test_write_demo_writes_the_four_files(tmp_path):
    paths = write_demo(tmp_path / "demo", seed=3, texts=50, lists=20, prompts=40, heldout=10)
    texts = paths.texts.read_text().splitlines()
    prompts, heldout = (p.read_text().splitlines() for p in (paths.prompts, paths.heldout_prompts))
    assert texts == make_texts(50, seed=3)
    assert [line.split("\t") for line in paths.lists.read_text().splitlines()] == make_lists(
        20, seed=3
    )
    assert (len(prompts), len(heldout)) == (40, 10)
    assert not set(prompts) & set(heldout)
    assert [p.name for p in (paths.texts, paths.lists, paths.prompts, paths.heldout_prompts)] == [
        "texts.txt", "lists.tsv", "prompts.txt", "heldout_prompts.txt",
    ]  # fmt: skip
