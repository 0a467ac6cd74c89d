"""Studies of reward modelling: each writes a page with its table, over several seeds.

python jobs/study_reward.py quality --recipe jobs/recipes/reviews.yaml \\
    --data.preferences FILE --out runs/studies/quality
python jobs/study_reward.py labels   … --flip 0.2     wrong labels: found, mended, or dropped
python jobs/study_reward.py remedies … --elsewhere OTHER.jsonl     contrastive losses and MetaRM

Everything runs in this process, one training after the other. What is done is not done again: a
study that was stopped goes on where it was, and other settings take another --out. Each seed begins
with SFT on the texts of its training lists (--data.texts: on others; --rm.base: on none, the model
is there). Each takes --help.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tyro

from rlhf_ray import cli
from rlhf_ray.config import Config, Contrastive, MetaRM
from rlhf_ray.data.preferences import RankedList, write_jsonl
from rlhf_ray.files import replacing
from rlhf_ray.learners.group import set_up_torch
from rlhf_ray.models.device import device_here
from rlhf_ray.recipes import read_recipe
from rlhf_ray.training import studies
from rlhf_ray.training.cleaning import Limits, clean
from rlhf_ray.training.ownership import owned
from rlhf_ray.training.reward_model import Split, load_split
from rlhf_ray.training.sft import train_sft
from rlhf_ray.training.strength import PairStrength, member_scores, strengths
from rlhf_ray.training.strength_table import buckets_of, markdown

METRICS = ("pair_accuracy", "exact_order", "kendall_tau", "gap_mean", "gap_std", "seconds")
MENDED = ("flip", "drop", "soft", "margin", "flip+margin")


@dataclass(frozen=True)
class Options:
    config: Annotated[Config, tyro.conf.arg(name="")]
    recipe: Path | None = None
    """A YAML file with the sections below; flags override it."""
    out: Path = Path("runs/studies")
    """Directory of the page, and of what is done so far."""
    seeds: int = 3
    """Seeds 0, 1, …"""
    flip: float = 0.2
    """labels: share of labels made wrong."""
    fraction: float = 0.1
    """labels: share of the weakest pairs that is mended."""
    elsewhere: tuple[str, ...] = ()
    """Other sets to judge on, out of distribution."""
    samples: str | None = None
    """remedies: responses for MetaRM (jobs/sample.py). None: the texts of the other sets."""


def deciding(options: Options) -> dict[str, Any]:
    """The settings that have a part in the result of a seed."""
    settings = dataclasses.asdict(options)
    sections = settings.pop("config")
    for name in ("out", "seeds", "recipe"):
        del settings[name]
    del sections["run"]
    return settings | sections


def base_of(options: Options, config: Config) -> str:
    """The backbone of a seed: --rm.base, or an SFT model made (once) from the texts."""
    if config.rm.base is not None:
        return config.rm.base
    path = options.out / f"sft-{config.run.seed}"
    if not path.is_dir():
        if config.data.texts is None:
            texts = str(write_texts(options.out / f"texts-{config.run.seed}.jsonl", config))
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, texts=texts))
        for row in train_sft(config, path):
            if "heldout/perplexity" in row:
                print(f"sft: epoch {row['epoch']:.0f}, perplexity {row['heldout/perplexity']:.2f}")
    return str(path)


def write_texts(path: Path, config: Config) -> Path:
    """What a language model may learn: the texts of the training lists, never those set apart."""
    texts = {one.prompt + text for one in load_split(config).train for text in one.responses}
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in sorted(texts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def quality(options: Options) -> str:
    """From nothing to a reward model, for each seed."""

    def trial(seed: int) -> studies.Numbers:
        config = studies.of_seed(options.config, seed)
        base = base_of(options, config)
        elsewhere = studies.read_elsewhere(options.elsewhere, base, config)
        return studies.train_and_judge(config, base, studies.read_split(config, base), elsewhere)

    results = run(options, {"reward model": trial})
    return studies.table(results, (*METRICS, *others(options)))


def labels(options: Options) -> str:
    """Labels made wrong on purpose: how well they are found, and what each remedy gains."""

    def trial(how: str, seed: int) -> studies.Numbers:
        config = studies.of_seed(options.config, seed)
        base = base_of(options, config)
        split = studies.read_split(config, base)
        split = dataclasses.replace(split, train=studies.one_pair_a_list(split.train, seed))
        noisy, wrong = studies.flipped(split.train, options.flip, seed)
        found = strength_of(options, config, base, noisy)
        numbers = {"auroc": studies.auroc([-one.mean for one in found], wrong)}
        if how != "nothing":
            cleaned, _ = clean(noisy, found, how, Limits(fraction=options.fraction))
            noisy = [one.ranked for one in cleaned]
        mended = Split(noisy, split.heldout, 0)
        return numbers | studies.train_and_judge(config, base, mended, {})

    trials = {how: partial(trial, how) for how in ("nothing", *MENDED)}
    results = run(options, trials)
    lines = [
        f"{how} over nothing: {mean:+.4f} ± {error:.4f} (standard error)"
        for how in MENDED
        for mean, error in [studies.gain(results[how], results["nothing"], "pair_accuracy")]
    ]
    return "\n\n".join(
        [studies.table(results, ("auroc", *METRICS)), "\n".join(lines), deciles(options)]
    )


def strength_of(
    options: Options, config: Config, base: str, lists: list[RankedList]
) -> list[PairStrength]:
    """Strength of these lists by the models of `config.strength`, kept once measured."""
    place = options.out / f"strength-{config.run.seed}"
    place.mkdir(parents=True, exist_ok=True)
    data = place / "noisy.jsonl"
    if not data.is_file():
        write_jsonl(data, lists)
    written = dataclasses.replace(
        config.data,
        preferences=str(data),
        heldout_preferences=None,
        chat_template="never",  # these lists are rendered already
    )
    noisy = dataclasses.replace(config, data=written)
    scores = []
    for member in range(config.strength.models):
        file = place / f"member-{member}.npy"
        if not file.is_file():
            found = list(member_scores(noisy, base, member))[-1]["scores"]
            with replacing(file) as aside, aside.open("wb") as whole:
                np.save(whole, found)
            print(f"strength: model {member + 1} of {config.strength.models}", flush=True)
        scores.append(np.load(file))
    return strengths(lists, scores)


def deciles(options: Options) -> str:
    """The first seed's strength by decile, with the share of labels that are wrong in each."""
    config = studies.of_seed(options.config, 0)
    base = base_of(options, config)
    train = studies.one_pair_a_list(studies.read_split(config, base).train, 0)
    noisy, wrong = studies.flipped(train, options.flip, 0)
    found = strength_of(options, config, base, noisy)
    order = np.argsort([one.mean for one in found], kind="stable")
    parts = np.array_split(np.array(wrong)[order], 10)
    shares = " | ".join(f"{part.mean():.2f}" for part in parts)
    return f"{markdown(buckets_of(found, 10))}\nshare of wrong labels by decile: {shares}"


def remedies(options: Options) -> str:
    """Contrastive losses and MetaRM, in and out of distribution."""
    settings: dict[str, dict] = {"plain": {}} | {
        f"{method} on {on}": {"contrastive": Contrastive(method=method, on=on)}
        for method in ("simcse", "swav")
        for on in ("pairs", "differences")
    }

    def trial(changes: dict, seed: int) -> studies.Numbers:
        config = studies.of_seed(options.config, seed)
        base = base_of(options, config)
        elsewhere = studies.read_elsewhere(options.elsewhere, base, config)
        split = studies.read_split(config, base)
        if "meta" in changes:
            changes = {"meta": MetaRM(samples=samples_of(options, elsewhere))}
        config = dataclasses.replace(config, rm=dataclasses.replace(config.rm, **changes))
        return studies.train_and_judge(config, base, split, elsewhere)

    settings["MetaRM"] = {"meta": None}
    results = run(options, {name: partial(trial, one) for name, one in settings.items()})
    return studies.table(results, (*METRICS, *others(options)))


def samples_of(options: Options, elsewhere: dict[str, list[RankedList]]) -> str:
    """--samples, or a file of the other sets' responses, unranked."""
    if options.samples is not None:
        return options.samples
    if not elsewhere:
        raise ValueError("MetaRM needs responses of a moved policy: give --samples or --elsewhere")
    path = options.out / "samples.jsonl"
    rows = [
        {"prompt": one.prompt, "responses": one.responses, "rendered": True}
        for lists in elsewhere.values()
        for one in lists
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def others(options: Options) -> tuple[str, ...]:
    return tuple(f"{Path(path).stem} accuracy" for path in options.elsewhere)


def run(options: Options, trials: Mapping[str, studies.Trial]) -> dict[str, list[studies.Numbers]]:
    return studies.run_trials(
        trials, range(options.seeds), options.out, tell=lambda line: print(line, flush=True)
    )


STUDIES = {"quality": quality, "labels": labels, "remedies": remedies}


def parse(argv: list[str]) -> Options:
    """Defaults, then the recipe, then flags."""
    recipe = cli.recipe_path(argv)
    base = read_recipe(recipe) if recipe else Config()
    default = Options(config=base, recipe=recipe)
    return tyro.cli(
        Options,
        args=argv,
        default=default,
        prog="jobs/study_reward.py",
        description=cli.described(__doc__),
    )


def main() -> int:
    named = sys.argv[1] if len(sys.argv) > 1 else ""
    if named in ("-h", "--help"):
        print(__doc__)
        return 0
    if named not in STUDIES:
        raise ValueError(f"say which study: one of {', '.join(STUDIES)} (now {named!r})")
    options = parse(sys.argv[2:])
    set_up_torch(deterministic=device_here() == "cpu")  # as in the workers of a run
    with owned(options.out, or_else="or give another --out"):
        studies.keep_settings(options.out, deciding(options))
        page = STUDIES[named](options)
    settings = json.dumps(studies.settings_of(options.config), indent=1)
    path = studies.written(
        options.out / f"{named}.md", f"Study: {named}", page, f"```json\n{settings}\n```"
    )
    print(page)
    print(f"page: {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
