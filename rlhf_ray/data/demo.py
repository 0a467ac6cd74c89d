"""The demonstration's data, made by code from a seed: Chinese and English product reviews.

A review is an opening (what was bought, when) and two to four opinions, each graded −2 to 2 around
the review's own mood. Since the lexicon is known, so is the true sentiment of any text
(`gold_score`), which evaluation uses and training never sees.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from rlhf_ray.data import demo_chinese, demo_english
from rlhf_ray.data.ids import stable_hash
from rlhf_ray.files import write_text

LANGUAGES: dict[str, ModuleType] = {"en": demo_english, "zh": demo_chinese}
CLAUSE_END = re.compile(
    r"[,.;:!?，。；：！？]|\b(?:and|but|although|yet|also)\b|但是|不过|而且|同时"
)


@dataclass(frozen=True, slots=True)
class Review:
    """A review and the grades of its opinions, in order."""

    text: str
    grades: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DemoPaths:
    texts: Path
    lists: Path
    prompts: Path
    heldout_prompts: Path


def make_texts(n: int, seed: int) -> list[str]:
    """`n` reviews, half English and half Chinese, moods spread evenly from bad to good."""
    reviews = []
    for i in range(n):
        rng = _rng(seed, "text", i)
        reviews.append(write_review(rng, language=_language(rng), mood=rng.uniform(-1, 1)).text)
    return reviews


def make_lists(n: int, k: int = 4, *, seed: int, noise: float = 0.05) -> list[list[str]]:
    """`n` lists of `k` reviews, best first.

    Order: gold score plus a normal error of deviation `noise`, as an annotator errs. Moods are
    spread over the range, so that most pairs are clear and some are close.
    """
    lists = []
    for i in range(n):
        rng = _rng(seed, "list", i)
        one_language = _language(rng) if rng.random() < 0.6 else None
        reviews = []
        for j in range(k):
            mood = -1 + 2 * (j + rng.random()) / k
            review = write_review(rng, language=one_language or _language(rng), mood=mood)
            reviews.append((gold(review.text) + rng.gauss(0, noise), review.text))
        lists.append([text for _, text in sorted(reviews, reverse=True)])
    return lists


def make_prompts(n: int, seed: int) -> list[str]:
    """`n` different openings of reviews, neutral, in both languages.

    Raises ValueError where the grammar has fewer than `n`.
    """
    every = _all_openings()
    if n > len(every):
        raise ValueError(f"{n} prompts asked for, and the grammar has {len(every)}: ask for fewer")
    return _rng(seed, "prompts", 0).sample(every, n)


def write_demo(
    directory: str | Path,
    *,
    seed: int,
    texts: int = 5000,
    lists: int = 1000,
    prompts: int = 1024,
    heldout: int = 128,
) -> DemoPaths:
    """Write texts.txt, lists.tsv, prompts.txt and heldout_prompts.txt; no prompt is in both."""
    directory = Path(directory)
    openings = make_prompts(prompts + heldout, seed)
    ranked = make_lists(lists, seed=seed)
    contents = {
        "texts": make_texts(texts, seed),
        "lists": ["\t".join(row) for row in ranked],
        "prompts": openings[:prompts],
        "heldout_prompts": openings[prompts:],
    }
    paths = {}
    for name, lines in contents.items():
        paths[name] = directory / f"{name}.{'tsv' if name == 'lists' else 'txt'}"
        write_text(paths[name], "".join(f"{line}\n" for line in lines))
    return DemoPaths(**paths)


def gold_score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The true sentiment of each review `prompt + response`; see `gold`."""
    return [gold(prompt + response) for prompt, response in zip(prompts, responses, strict=True)]


def gold(text: str) -> float:
    """True sentiment of `text`, in (−1, 1): (P − N) / (P + N + 2).

    P and N are the summed grades of the good and of the bad clauses. A clause counts at most ±2, an
    opinion once however often it is repeated. A negated opinion becomes a mild one of the other
    sign.
    """
    clauses: list[int] = []
    seen: set[tuple[bool, str]] = set()
    value = 0
    for match in _scanner().finditer(text.lower()):
        opinion = match["english"] or match["chinese"]
        if opinion is None:
            clauses.append(value)
            value = 0
            continue
        grade, negated = _lexicon()[opinion], bool(match["not"] or match["negates"])
        if negated:
            grade = -1 if grade > 0 else int(grade < 0)
        if (negated, opinion) not in seen:
            seen.add((negated, opinion))
            value = max(-2, min(2, value + grade))
    clauses.append(value)
    good = sum(max(value, 0) for value in clauses)
    bad = sum(max(-value, 0) for value in clauses)
    return (good - bad) / (good + bad + 2)


def write_review(rng: random.Random, *, language: str, mood: float) -> Review:
    """One review in `language`; `mood`, −1 to 1, is what its grades scatter around."""
    words = LANGUAGES[language]
    category = rng.choice(sorted(words.CATEGORIES))
    products, aspects = words.CATEGORIES[category]
    topics = [
        topic for topic in sorted(words.TOPICS) if (category, topic) != ("food", "durability")
    ]
    leads_in = rng.random() < 0.4
    opening = rng.choice(words.LEAD_INS if leads_in else words.OPENINGS).format(
        product=rng.choice(products), when=rng.choice(words.WHEN), span=rng.choice(words.SPAN)
    )
    count = rng.choice((2, 2, 2, 3, 3, 4))
    grades = [max(-2, min(2, round(2.2 * mood + rng.gauss(0, 0.7)))) for _ in range(count)]
    closing = rng.random() < 0.5
    opinions = _opinions(rng, words, aspects, topics, grades[: count - closing])
    text = opening + _body(rng, words, language, opinions, grades, capital=not leads_in)
    if closing:
        text += (" " if language == "en" else "") + _plain(rng.choice(words.CLOSINGS[grades[-1]]))
    return Review(text, tuple(grades))


def _opinions(
    rng: random.Random,
    words: ModuleType,
    aspects: Sequence[str],
    topics: Sequence[str],
    grades: Sequence[int],
) -> list[str]:
    """A clause for each grade: on different aspects and topics, in different words."""
    free_topics = rng.sample(list(topics), k=len(topics))
    free_aspects = rng.sample(list(aspects), k=len(aspects))
    used: set[str] = set()
    clauses = []
    for grade in grades:
        if rng.random() < 0.45 and free_topics:
            clauses.append(_plain(rng.choice(words.TOPICS[free_topics.pop()][grade])))
            continue
        adjective = rng.choice([word for word in words.ADJECTIVES[grade] if word not in used])
        used.add(adjective)
        form = rng.choice(words.ASPECT_FORMS)
        clauses.append(form.format(aspect=free_aspects.pop(), adjective=adjective))
    return clauses


def _body(
    rng: random.Random,
    words: ModuleType,
    language: str,
    opinions: Sequence[str],
    grades: Sequence[int],
    *,
    capital: bool,
) -> str:
    """Opinions joined into sentences: a change of sign takes a contrasting connector."""
    stop = ". " if language == "en" else "。"
    text = ""
    for i, opinion in enumerate(opinions):
        if i and (capital := rng.random() < 0.35):
            text += stop
        elif i:
            changed = grades[i] * grades[i - 1] < 0
            text += rng.choice(words.CONTRAST if changed else words.SAME)
        text += opinion[0].upper() + opinion[1:] if capital else opinion
    gap = " " if language == "en" else ""
    return gap + text + stop.strip()


def _all_openings() -> list[str]:
    """Every opening of both languages, in a fixed order."""
    openings: dict[str, None] = {}
    for words in LANGUAGES.values():
        products = [product for row in words.CATEGORIES.values() for product in row[0]]
        for form in words.OPENINGS + words.LEAD_INS:
            for when in words.WHEN if "{when}" in form else ("",):
                for span in words.SPAN if "{span}" in form else ("",):
                    for product in products:
                        openings[form.format(product=product, when=when, span=span)] = None
    return list(openings)


def _plain(opinion: str) -> str:
    return opinion.replace("[", "").replace("]", "")


@cache
def _lexicon() -> dict[str, int]:
    """Every opinion's grade, by its lower-case text."""
    lexicon: dict[str, int] = {}
    for words in LANGUAGES.values():
        for table in (words.CLOSINGS, *words.TOPICS.values()):
            for grade, opinions in table.items():
                for opinion in opinions:
                    lexicon[opinion[opinion.index("[") + 1 : opinion.index("]")].lower()] = grade
        for grade, adjectives in words.ADJECTIVES.items():
            lexicon.update({adjective.lower(): grade for adjective in adjectives})
    return lexicon


@cache
def _scanner() -> re.Pattern[str]:
    """Finds, from the left: an opinion (the longest), perhaps negated, or the end of a clause."""
    english = _either(word for word in _lexicon() if word.isascii())
    chinese = _either(word for word in _lexicon() if not word.isascii())
    en, zh = demo_english, demo_chinese
    return re.compile(
        rf"(?:(?!(?:{english})\b)\b(?P<not>{_either(en.NEGATORS)})\s+(?:(?:{_either(en.BETWEEN)})\s+)*)?"
        rf"\b(?P<english>{english})\b"
        rf"|(?:(?!{chinese})(?P<negates>{_either(zh.NEGATORS)}))?(?:{_either(zh.BETWEEN)})?(?P<chinese>{chinese})"
        rf"|{CLAUSE_END.pattern}"
    )


def _either(words: Iterable[str]) -> str:
    """A pattern for any of `words`, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _language(rng: random.Random) -> str:
    return rng.choice(sorted(LANGUAGES))


def _rng(seed: int, kind: str, index: int) -> random.Random:
    return random.Random(stable_hash(seed, kind, index))
