"""Preference strength: how far M reward models tell the two texts of each pair apart.

(Wang et al. 2024, section 2.) Each model sees the data in its own order, with a first head of its
own. `once`: all of the data, then it judges all of it. `crossed`: it judges the fold that it did
not see. Few epochs matter: a model that has memorised a wrong label no longer doubts it.
Shapes: M models, R judgements of a pair, P pairs, N texts.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from rlhf_ray.algos.ranking import preference_strength
from rlhf_ray.algos.remedies import soft_targets
from rlhf_ray.config import Config
from rlhf_ray.data.faults import skipped
from rlhf_ray.data.preference_split import folds_of
from rlhf_ray.data.preferences import PreferenceSet, RankedList, load_lists
from rlhf_ray.files import write_json
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.orchestration.phases import Call, run_phases, set_up
from rlhf_ray.orchestration.plan import Plan
from rlhf_ray.training.output import written_aside
from rlhf_ray.training.reward_model import RewardTraining

PAIRS_FILE, SETTINGS_FILE = "strength.jsonl", "strength.json"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PairStrength:
    """One pair: its list (a place in the data as it stands), its texts, and what the models say.

    mean, std: of the gap better − worse; agree: share of the models with a gap above 0; target:
    mean of σ(gap), how probable they hold the label to be.
    """

    list: int
    better: int
    worse: int
    mean: float
    std: float
    agree: float
    target: float


def member_scores(config: Config, base: str | Path, member: int) -> Iterator[Row]:
    """Train one of the M models; rows of progress, the last with `scores` [N], NaN where unjudged.

    Raises ValueError for data or models that cannot be used, before the first row.
    """
    tokenizer = load_tokenizer(base, trust_remote_code=config.model.trust_remote_code)
    lists = list(read_lists(config, tokenizer))
    judged = np.ones(len(lists), dtype=bool)
    if config.strength.scheme == "crossed":
        repetition, fold = divmod(member, config.strength.folds)
        folds = folds_of(lists, config.strength.folds, (config.run.seed, repetition))
        judged = np.array(folds) == fold
    config = replace(config, rm=replace(config.rm, epochs=config.strength.epochs))
    train = [one for one, held in zip(lists, judged, strict=True)
             if not held or judged.all()]  # fmt: skip
    training = RewardTraining(config, base, tokenizer, train, [], member=member)
    row: Row = {}
    for row in training.fit():
        yield row
    scores_N = training.scores(lists).numpy()
    unseen_N = np.repeat(judged, [len(one.responses) for one in lists])
    yield row | {"done": True, "scores": np.where(unseen_N, scores_N, np.nan)}


def read_lists(config: Config, tokenizer: Any = None) -> PreferenceSet:
    """All lists of `config.data.preferences`; with a tokenizer, rendered by its template."""
    if config.data.preferences is None:
        raise ValueError("there are no preferences: give --data.preferences FILE")
    return load_lists(
        config.data.preferences,
        on_bad_row=config.data.on_bad_row,
        tokenizer=tokenizer,
        chat_template=config.data.chat_template,
        seed=config.run.seed,
        prompt_column=config.data.prompt_column,
    )


def measure(
    config: Config, base: str, *, plan: Plan, log: Callable[[str], None]
) -> Iterator[tuple[int, Row] | list[PairStrength]]:
    """Train the M models side by side: (place, row) as they come, last each pair's strength.

    A row that the chat template refuses is skipped, or fails, as any bad row, and has no strength.
    Raises ValueError for data that cannot be used before anything is trained.
    """
    tokenizer = load_tokenizer(base, trust_remote_code=config.model.trust_remote_code)
    judged = read_lists(config, tokenizer)
    if judged.bad_rows:
        log(skipped(judged.bad_rows, judged.first_bad))
    places = places_of(judged, read_lists(config))
    scores: dict[int, np.ndarray] = {}
    calls: list[Call] = [((config, base, member), {}) for member in range(config.strength.models)]
    rows = run_phases(
        set_up(member_scores),
        calls,
        share=plan.learner,
        threads=plan.threads,
        name=f"strength {config.run.name}",
        start_timeout=config.cluster.start_timeout_s,
        log=log,
    )
    for place, row in rows:
        if "scores" in row:
            scores[place] = row.pop("scores")
        yield place, row
    ordered = [scores[member] for member in range(config.strength.models)]
    yield [replace(one, list=places[one.list]) for one in strengths(judged, ordered)]


def places_of(some: Sequence[RankedList], lists: Sequence[RankedList]) -> list[int]:
    """Where in `lists` each of `some` of them stands; the two agree in source and line alone."""
    rows = {(one.source, one.line) for one in some}
    places = [i for i, one in enumerate(lists) if (one.source, one.line) in rows]
    assert len(places) == len(some)
    return places


def strengths(lists: Sequence[RankedList], scores: Sequence[np.ndarray]) -> list[PairStrength]:
    """Strength of every comparison, from each model's scores of all texts (NaN where unjudged)."""
    places = [
        (i, pair, start + pair.better, start + pair.worse)
        for i, (one, start) in enumerate(zip(lists, _starts(lists), strict=True))
        for pair in one.comparisons()
    ]
    better, worse = (np.array([place[k] for place in places]) for k in (2, 3))
    gaps_RP = _judgements(np.stack([one[better] - one[worse] for one in scores]))
    mean_P, std_P = preference_strength(gaps_RP)
    agree_P, target_P = (gaps_RP > 0).double().mean(0), soft_targets(gaps_RP)
    columns = (x_P.tolist() for x_P in (mean_P, std_P, agree_P, target_P))
    return [
        PairStrength(i, pair.better, pair.worse, *numbers)
        for (i, pair, _, _), numbers in zip(places, zip(*columns, strict=True), strict=True)
    ]


def _starts(lists: Sequence[RankedList]) -> list[int]:
    sizes = np.array([len(one.responses) for one in lists])
    return (np.cumsum(sizes) - sizes).tolist()


def _judgements(gaps_MP: np.ndarray) -> Tensor:
    """The gaps that there are, float64 [R, P]: every pair is judged by equally many models."""
    judged_MP = ~np.isnan(gaps_MP)
    counts_P = judged_MP.sum(0)
    assert (counts_P == counts_P[0]).all() and counts_P[0] > 0
    order_MP = np.argsort(~judged_MP, axis=0, kind="stable")
    gaps_RP = np.take_along_axis(gaps_MP, order_MP, 0)[: counts_P[0]]
    return torch.from_numpy(gaps_RP.astype(np.float64))


def write_strength(directory: Path, config: Config, base: str, found: list[PairStrength]) -> None:
    """strength.jsonl, a pair a line, and strength.json, which says of what and how.

    found: of lists that `read_lists(config)` gives now; the digest of all is kept beside it.
    """
    settings = {
        "preferences": config.data.preferences,
        "on_bad_row": config.data.on_bad_row,
        "prompt_column": config.data.prompt_column,
        "seed": config.run.seed,
        "base": base,
        "digest": digest_of(read_lists(config)),
        **asdict(config.strength),
    }
    lines = "".join(json.dumps(asdict(one)) + "\n" for one in found)
    with written_aside(directory) as aside:
        (aside / PAIRS_FILE).write_text(lines, encoding="utf-8")
        write_json(aside / SETTINGS_FILE, settings)


def read_strength(directory: Path) -> tuple[list[PairStrength], PreferenceSet, dict[str, Any]]:
    """What `write_strength` wrote, all lists of the data it is of, and its settings.

    Raises ValueError where there is none, or the lists are no longer those.
    """
    if not (directory / SETTINGS_FILE).is_file():
        raise ValueError(
            f"{directory} holds no preference strength: measure it first, with "
            f"jobs/preferences.py strength"
        )
    settings = json.loads((directory / SETTINGS_FILE).read_text(encoding="utf-8"))
    lines = (directory / PAIRS_FILE).read_text(encoding="utf-8").splitlines()
    found = [PairStrength(**json.loads(line)) for line in lines]
    lists = load_lists(
        settings["preferences"],
        on_bad_row=settings["on_bad_row"],
        seed=settings["seed"],
        prompt_column=settings["prompt_column"],
    )
    judged = {one.list for one in found}
    pairs = [
        (i, pair.better, pair.worse)
        for i, one in enumerate(lists)
        if i in judged
        for pair in one.comparisons()
    ]
    measured = [(one.list, one.better, one.worse) for one in found]
    if pairs != measured or settings.get("digest") != digest_of(lists):
        raise ValueError(
            f"{settings['preferences']} has changed since its strength was measured: measure again"
        )
    return found, lists, settings


def digest_of(lists: Iterable[RankedList]) -> str:
    """Of what a model learns from these lists, in their order: texts, ranks and pairs."""
    digest = xxhash.xxh3_128()
    for one in lists:
        content = one.prompt, one.responses, one.ranks, [astuple(pair) for pair in one.pairs]
        digest.update(json.dumps(content).encode() + b"\n")
    return digest.hexdigest()
