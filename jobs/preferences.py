"""Measure and mend a set of preferences.

python jobs/preferences.py strength --data.preferences FILE --rm.base MODEL --run.name NAME
python jobs/preferences.py clean runs/NAME/strength --how flip --fraction 0.1 --out cleaned.jsonl
python jobs/preferences.py split FILE --heldout 0.1 --train train.jsonl --test test.jsonl
python jobs/preferences.py evaluate FILE --model runs/NAME/reward

strength: M reward models, side by side, say how far apart the two texts of each pair are. clean:
flip, soften, smooth, drop or set margins by it. split: no dialogue and no text on both sides.
evaluate: what a reward model gets right of the lists in FILE. Each takes --help.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from rlhf_ray import cli
from rlhf_ray.config import ChatTemplate, Combination
from rlhf_ray.data.faults import OnBadRow, skipped
from rlhf_ray.data.preferences import leaks, load_lists, split_lists, write_jsonl
from rlhf_ray.observe.console import Console
from rlhf_ray.observe.curves import (
    STRENGTH_FILE,
    VERDICT_FILE,
    draw_strength,
    draw_verdict,
)
from rlhf_ray.training.cleaning import Limits, clean, rows_of
from rlhf_ray.training.reward_evaluation import evaluate_file
from rlhf_ray.training.strength import PairStrength, read_strength
from rlhf_ray.training.strength_run import measure_strength
from rlhf_ray.training.strength_table import buckets_of, markdown

BUCKETS = 10
Path_ = Annotated[Path, tyro.conf.Positional]


def strength(argv: list[str]) -> int:
    """Train the models, write strength.jsonl, strength.md and strength.png."""
    config = cli.parse(argv, prog="jobs/preferences.py strength", description=__doc__ or "").config
    out, found = measure_strength(config, Console(config.run.name))
    show(found, out)
    print(f"strength of {len(found)} pairs: {out}")
    return 0


def show(found: list[PairStrength], out: Path) -> None:
    """The table by bucket, printed and written, and its picture."""
    buckets = buckets_of(found, min(BUCKETS, len(found)))
    table = markdown(buckets)
    print(table)
    (out / "strength.md").write_text(table, encoding="utf-8")
    draw_strength(out / STRENGTH_FILE, [asdict(one) for one in buckets])


@dataclass(frozen=True)
class CleanOptions:
    strength: Path_
    """Directory that `strength` wrote."""
    out: Path
    """The cleaned set, .jsonl; what was done to a row stands in its column `cleaned`."""
    how: Literal["flip", "soft", "smooth", "margin", "flip+margin", "smooth+margin", "drop"]
    """What is done to weak pairs; margins are set on all pairs."""
    fraction: float | None = None
    """Weak: this share of the pairs, those of least strength."""
    threshold: float | None = None
    """Weak: pairs whose mean gap is below this."""
    label_smoothing: float = 0.1
    """smooth: the probability that a weak label is wrong."""
    margin_scale: float = 1.0
    """margin: this many times the mean gap."""
    margin_limit: float = float("inf")
    """margin: at most this, and at least its negative."""


def clean_set(argv: list[str]) -> int:
    """Write a cleaned copy of the preferences whose strength was measured."""
    options = tyro.cli(CleanOptions, args=argv, prog="jobs/preferences.py clean")
    found, lists, _ = read_strength(options.strength)
    limits = Limits(
        fraction=options.fraction,
        threshold=options.threshold,
        label_smoothing=options.label_smoothing,
        margin_scale=options.margin_scale,
        margin_limit=options.margin_limit,
    )
    cleaned, counts = clean(lists, found, options.how, limits)
    if not cleaned:
        raise ValueError(
            f"--how {options.how} leaves none of {len(lists)} lists: "
            f"lower --fraction, or --threshold"
        )
    kept, columns = zip(*rows_of(cleaned), strict=True)
    write_jsonl(options.out, kept, columns=columns)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    print(f"cleaned set: {options.out}")
    return 0


@dataclass(frozen=True)
class SplitOptions:
    file: Annotated[str, tyro.conf.Positional]
    """Preferences in any format, or a mixture."""
    train: Path
    """Where the training part goes, .jsonl."""
    test: Path
    """Where the held-out part goes, .jsonl."""
    heldout: float = 0.1
    """Share of the groups held out."""
    seed: int = 0
    """Decides which."""
    prompt_column: str = "prompt"
    """Column of the prompt."""
    on_bad_row: OnBadRow = "fail"
    """A bad row ends the job with file, line and fault, or is skipped and counted."""


def split(argv: list[str]) -> int:
    """Write two sets that share no dialogue and no text."""
    options = tyro.cli(SplitOptions, args=argv, prog="jobs/preferences.py split")
    if not 0 <= options.heldout < 1:
        raise ValueError(f"--heldout is {options.heldout}: it is a share, at least 0 and below 1")
    lists = load_lists(
        options.file,
        on_bad_row=options.on_bad_row,
        seed=options.seed,
        prompt_column=options.prompt_column,
        flag="--on-bad-row",
    )
    train, test = split_lists(lists, options.heldout, options.seed, instead="set --heldout 0")
    assert not leaks(train, test)
    for path, part in ((options.train, train), (options.test, test)):
        write_jsonl(path, part)
        print(f"{len(part)} lists: {path}")
    if lists.bad_rows:
        print(skipped(lists.bad_rows, lists.first_bad))
    return 0


@dataclass(frozen=True)
class EvaluateOptions:
    file: Annotated[str, tyro.conf.Positional]
    """Preferences in any format, or a mixture."""
    model: str
    """Directory of a reward model, or of an ensemble."""
    out: Path | None = None
    """Directory for evaluation.json and evaluation.png."""
    combine: Combination = "mean"
    """Ensemble: mean, smallest, or mean less a deviation."""
    chat_template: ChatTemplate = "auto"
    """Render prompts with the tokenizer's chat template: auto is `where it has one`."""
    on_bad_row: OnBadRow = "fail"
    """A bad row ends the job with file, line and fault, or is skipped and counted."""
    prompt_column: str = "prompt"
    """Column that holds the prompt."""


def evaluate(argv: list[str]) -> int:
    """Print the metrics of a reward model on a file; with --out write curves too."""
    options = tyro.cli(EvaluateOptions, args=argv, prog="jobs/preferences.py evaluate")
    verdict = evaluate_file(
        options.model,
        options.file,
        combine=options.combine,
        chat_template=options.chat_template,
        on_bad_row=options.on_bad_row,
        prompt_column=options.prompt_column,
        flag="--on-bad-row",
    )
    tell(verdict.to_dict())
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(verdict.to_dict(), indent=1, allow_nan=False)
        (options.out / "evaluation.json").write_text(text, encoding="utf-8")
        draw_verdict(options.out / VERDICT_FILE, verdict.to_dict())
    return 0


def tell(verdict: dict[str, Any]) -> None:
    """The verdict's numbers, a line each."""
    for group in ("metrics", "lengths"):
        for name, value in verdict[group].items():
            print(f"{name:<20}{value:.4f}")
    for name, one in verdict["sources"].items():
        print(f"{one['pair_accuracy']:.4f} of {one['pairs']:.0f} pairs of {name}")


COMMANDS = {"strength": strength, "clean": clean_set, "split": split, "evaluate": evaluate}


def main() -> int:
    named = sys.argv[1] if len(sys.argv) > 1 else ""
    if named in ("-h", "--help"):
        print(__doc__)
        return 0
    if named not in COMMANDS:
        raise ValueError(f"say what to do: one of {', '.join(COMMANDS)} (now {named!r})")
    return COMMANDS[named](sys.argv[2:])


if __name__ == "__main__":
    cli.run(main)
