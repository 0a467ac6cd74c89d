"""Studies of reward modelling: what is tried, on which seeds, and the table that comes of it.

A study is a list of trials; a trial is a name and a function of the seed that gives numbers. They
run one after the other in this process, so that their seconds can be compared.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from rlhf_ray.config import Config
from rlhf_ray.data.ids import stable_hash
from rlhf_ray.data.preferences import RankedList, load_lists
from rlhf_ray.data.ranked_list import Comparison
from rlhf_ray.files import write_json, write_text
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.training.ranked_data import tokenise_lists
from rlhf_ray.training.reward_evaluation import judge
from rlhf_ray.training.reward_model import RewardTraining, Split, load_split

Numbers = dict[str, float]
Trial = Callable[[int], Numbers]


def keep_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Write what the results in `out` are of into its settings.json.

    Raises ValueError where results of other settings are there.
    """
    path = out / "settings.json"
    given = json.loads(json.dumps(dict(sorted(_flat(settings)))))
    has_results = out.is_dir() and any(one != path for one in out.iterdir())
    if not (has_results and path.is_file()):
        write_json(path, given)
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    for name in sorted(kept | given):
        before, now = kept.get(name), given.get(name)
        if before != now:
            raise ValueError(
                f"{out} holds results of other settings, --{name.replace('_', '-')} "
                f"{before} instead of {now}: give another --out, or the same settings"
            )


def _flat(tree: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """(section.setting, value) of each."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def run_trials(
    trials: Mapping[str, Trial], seeds: Sequence[int], out: Path, *, tell: Callable[[str], None]
) -> dict[str, list[Numbers]]:
    """Every trial on every seed, in turn; each result is written at once and not computed again."""
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Numbers]] = {}
    for seed in seeds:
        for name, trial in trials.items():
            file = out / f"{name.replace(' ', '_').replace('/', '-')}.{seed}.json"
            if not file.is_file():
                began = time.monotonic()
                numbers = trial(seed) | {"seconds": time.monotonic() - began}
                write_text(file, json.dumps(numbers))
            numbers = json.loads(file.read_text(encoding="utf-8"))
            results.setdefault(name, []).append(numbers)
            tell(f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in numbers.items()))
    return results


def table(results: Mapping[str, Sequence[Numbers]], columns: Sequence[str]) -> str:
    """Mean ± deviation over seeds as markdown; a number that a trial lacks is left empty."""
    lines = [f"| trial | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, seeds in results.items():
        cells = [cell([one[column] for one in seeds if column in one]) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(values: Sequence[float]) -> str:
    """Mean ± sample deviation."""
    if not values:
        return ""
    mean = fmean(values)
    digits = 0 if abs(mean) >= 100 else 3
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def gain(better: Sequence[Numbers], worse: Sequence[Numbers], column: str) -> tuple[float, float]:
    """Mean difference over the same seeds, and its standard error."""
    differences = [a[column] - b[column] for a, b in zip(better, worse, strict=True)]
    error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    return fmean(differences), error


def train_and_judge(
    config: Config, base: str | Path, split: Split, elsewhere: Mapping[str, Sequence[RankedList]]
) -> Numbers:
    """A reward model of these settings: metrics on held-out lists, and on other sets by name.

    The weights judged are the last ones: held-out lists choose nothing here.
    """
    tokenizer = load_tokenizer(base, trust_remote_code=config.model.trust_remote_code)
    training = RewardTraining(config, base, tokenizer, split.train, [])
    for _ in training.fit():
        pass
    numbers = dict(training.judge(split.heldout).metrics)
    for name, lists in elsewhere.items():
        held = list(lists)
        data = tokenise_lists(tokenizer, held, max_tokens=config.rm.max_tokens)
        verdict = judge(training.scores(held), data, held)
        numbers[f"{name} accuracy"] = verdict.metrics["pair_accuracy"]
    return numbers


def of_seed(config: Config, seed: int) -> Config:
    """The same settings under another seed."""
    return dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed))


def flipped(
    lists: Sequence[RankedList], share: float, seed: int
) -> tuple[list[RankedList], list[bool]]:
    """Each comparison's label wrong with probability `share`; which are, in order of comparisons.

    A list of two without `pairs` exchanges its ranks; any other gets `pairs`, where a turned one
    has no margin and a sure label.
    """
    noisy, wrong = [], []
    for place, one in enumerate(lists):
        pairs = one.comparisons()
        marks = [
            stable_hash(seed, "flip", place, pair.better, pair.worse) < share * 2.0**63
            for pair in pairs
        ]
        wrong += marks
        turned = tuple(
            Comparison(pair.worse, pair.better) if mark else pair
            for pair, mark in zip(pairs, marks, strict=True)
        )
        if len(one.responses) == 2 and not one.pairs:
            ranks = tuple(reversed(one.ranks)) if marks[0] else one.ranks
            noisy.append(dataclasses.replace(one, ranks=ranks))
        else:
            noisy.append(dataclasses.replace(one, pairs=turned))
    return noisy, wrong


def auroc(weakness: Sequence[float], wrong: Sequence[bool]) -> float:
    """Probability that a wrong label is weaker than a right one; ties count half (Mann-Whitney)."""
    values, marks = np.asarray(weakness), np.asarray(wrong)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n, m = int(marks.sum()), int((~marks).sum())
    return float((ranks[marks].sum() - n * (n + 1) / 2) / (n * m))


def one_pair_a_list(lists: Sequence[RankedList], seed: int) -> list[RankedList]:
    """Lists of four as pairs that share no text: each text is in one pair at most."""
    pairs = []
    for place, one in enumerate(lists):
        rng = np.random.default_rng([seed, place])
        order = rng.permutation(len(one.responses))
        for i, j in zip(order[::2], order[1::2], strict=False):
            a, b = sorted((int(i), int(j)), key=lambda k: one.ranks[k])
            texts = one.responses[a], one.responses[b]
            if one.ranks[a] != one.ranks[b] and texts[0] != texts[1]:
                pairs.append(dataclasses.replace(one, responses=texts, ranks=(1, 2), pairs=()))
    return pairs


def read_split(config: Config, base: str | Path) -> Split:
    """The lists of a study, rendered for `base`."""
    return load_split(
        config, load_tokenizer(base, trust_remote_code=config.model.trust_remote_code)
    )


def read_elsewhere(
    paths: Sequence[str], base: str | Path, config: Config
) -> dict[str, list[RankedList]]:
    """Other sets by the name of their file."""
    tokenizer = load_tokenizer(base, trust_remote_code=config.model.trust_remote_code)
    read = partial(
        load_lists,
        tokenizer=tokenizer,
        on_bad_row=config.data.on_bad_row,
        prompt_column=config.data.prompt_column,
    )
    return {Path(path).stem: list(read(path)) for path in paths}


def written(path: Path, title: str, *parts: str) -> Path:
    """A markdown page of a study."""
    write_text(path, "\n\n".join([f"# {title}", *parts]) + "\n")
    return path


def settings_of(config: Config) -> dict[str, Any]:
    """What a page says of how a study was run."""
    return {"sft": dataclasses.asdict(config.sft), "rm": dataclasses.asdict(config.rm)}
