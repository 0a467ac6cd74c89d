"""Reward model training: every list of a batch in one pass, K texts cost K forwards.

`train_reward_model` is a generator of progress: the same function runs in a script, a test or a Ray
task. `RewardTraining` is the same without files, for who needs the model itself.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_ray.config import Config
from rlhf_ray.data.ids import stable_hash
from rlhf_ray.data.preferences import (
    PreferenceSet,
    RankedList,
    leaks,
    load_lists,
    split_lists,
)
from rlhf_ray.files import write_json
from rlhf_ray.models.device import device_here
from rlhf_ray.models.loading import check_length, compute_dtype, load_tokenizer, positions_in
from rlhf_ray.models.reward_model import RewardModel
from rlhf_ray.training.meta import MetaStep, read_samples
from rlhf_ray.training.output import written_aside
from rlhf_ray.training.ranked_data import RankedData, score_all, tokenise_lists
from rlhf_ray.training.reward_evaluation import Verdict, evaluate_lists, judge
from rlhf_ray.training.reward_step import RewardStep
from rlhf_ray.training.supervised import MasterAdamW, Row, Schedule, epochs_of, fill, fit
from rlhf_ray.training.views import Views

METRICS_FILE, EVALUATION_FILE = "metrics.json", "evaluation.json"


@dataclass(frozen=True, slots=True)
class Split:
    """Lists for training and those set apart. leaked: training lists dropped for being in both."""

    train: list[RankedList]
    heldout: list[RankedList]
    bad_rows: int
    first_bad: str | None = None
    leaked: int = 0


def train_reward_model(
    config: Config,
    base: str | Path,
    out_dir: str | Path,
    *,
    member: int = 0,
    device: str | None = None,
) -> Iterator[Row]:
    """Train on `config.data.preferences` from `base`, write to `out_dir`, yield rows of progress.

    Rows hold step, total, epoch, loss/rank and pair_accuracy (over the last steps), lr, grad/norm,
    tokens_per_s, pairs_per_s, eta_s; at the end of an epoch also the metrics of `evaluate_lists` on
    lists set apart. The weights with the highest pair accuracy on those are written, with the
    tokenizer, metrics.json and evaluation.json beside them. The last row has done=True.
    member: its place in an ensemble; each has its own order of the data and first head.
    Raises ValueError for data or models that cannot be used, before the first row.
    """
    tokenizer = load_tokenizer(base, trust_remote_code=config.model.trust_remote_code)
    split = load_split(config, tokenizer)
    training = RewardTraining(
        config, base, tokenizer, split.train, split.heldout, member=member, device=device
    )
    row: Row = {}
    for row in training.fit():
        yield row
    evaluation = training.judge(split.heldout) if split.heldout else None
    verdict = {f"heldout/{k}": v for k, v in evaluation.metrics.items()} if evaluation else {}
    counts = {"bad_rows": split.bad_rows, "leaked": split.leaked, "cut": training.data.rows.cut}
    summary = {**verdict, "lists": len(split.train), "heldout_lists": len(split.heldout), **counts}
    apart = config.rm.lora.rank and config.rm.lora.save == "adapter"
    with written_aside(out_dir) as aside:
        named = _base_seen_from(Path(out_dir), base, config.dir) if apart else None
        training.model.eval().save_pretrained(aside, base=named)
        tokenizer.save_pretrained(aside)
        write_json(aside / METRICS_FILE, summary)
        if evaluation is not None:
            write_json(aside / EVALUATION_FILE, evaluation.to_dict())
    yield row | verdict | counts | {"first_bad": split.first_bad, "done": True}


def _base_seen_from(out_dir: Path, base: str | Path, run: Path) -> str | Path:
    """`base`, relative to `out_dir` where both are the run's own: it may be moved as a whole."""
    place, own = Path(base).absolute(), run.absolute()
    if own in place.parents and own in out_dir.absolute().parents:
        return os.path.relpath(place, out_dir.absolute())
    return base


class RewardTraining:
    """One reward model on its way: call `fit` once, then ask it for scores."""

    def __init__(
        self,
        config: Config,
        base: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        train: list[RankedList],
        heldout: list[RankedList],
        *,
        member: int = 0,
        device: str | None = None,
    ) -> None:
        place = torch.device(device or device_here())
        settings, seed = config.rm, seed_of(config.run.seed, member)
        torch.manual_seed(seed)  # the model's own dropout
        self._settings, self._seed, self._tokenizer = settings, seed, tokenizer
        self.model = new_model(config, base, seed=seed)
        views = None
        if settings.contrastive.method != "none":
            features = self.model.head.in_features
            views = Views(settings.contrastive, features, seed=seed)
            if views.prototypes is not None:
                self.model.aside["prototypes"] = views.prototypes
        check_length(positions_in(self.model.backbone), settings.max_tokens, "rm.max-tokens")
        self.data, self._heldout = self._rows(train), self._rows(heldout)
        dtype = compute_dtype(config.model.dtype, place)
        self._optimizer = MasterAdamW(
            self.model.to(place), dtype=dtype, weight_decay=settings.weight_decay
        )
        step = RewardStep(
            self._optimizer,
            self.data,
            settings,
            views=views,
            seed=seed,
        )
        self._step = step if settings.meta.samples is None else self._meta(step, config)

    def fit(self) -> Iterator[Row]:
        """Train; a row a step; the weights with the highest held-out pair accuracy stay."""
        steps = epochs_of(self._batches, self._settings.epochs, self._seed)
        schedule = Schedule(self._settings.lr, sum(map(len, steps)), self._settings.warmup)
        self._optimizer.compute.train()
        yield from fit(
            self._optimizer, steps, self._step, schedule=schedule, evaluate=self._evaluate
        )

    def scores(self, lists: list[RankedList]) -> Tensor:
        """Raw scores of all responses of `lists`, float32, by the weights that compute."""
        return score_all(self._optimizer.compute, self._rows(lists).rows)

    def judge(self, heldout: list[RankedList]) -> Verdict:
        """The `Verdict` on lists set apart."""
        return judge(self.scores(heldout), self._rows(heldout), heldout)

    def _rows(self, lists: list[RankedList]) -> RankedData:
        return tokenise_lists(self._tokenizer, lists, max_tokens=self._settings.max_tokens)

    def _batches(self, rng: np.random.Generator) -> list[list[int]]:
        order = rng.permutation(len(self.data)).tolist()
        return fill(order, np.ones(len(self.data)), self._settings.batch_lists)

    def _evaluate(self) -> tuple[float, Row]:
        if not len(self._heldout):
            return 0.0, {}
        compute = self._optimizer.compute
        metrics = evaluate_lists(compute, self._heldout)
        return metrics["heldout/pair_accuracy"], metrics

    def _meta(self, step: RewardStep, config: Config) -> MetaStep:
        settings = config.rm.meta
        assert settings.samples is not None
        samples = read_samples(
            settings.samples,
            self._tokenizer,
            max_tokens=config.rm.max_tokens,
            data=config.data,
        )
        return MetaStep(step, samples, settings, self._seed)


def new_model(config: Config, base: str | Path, *, seed: int) -> RewardModel:
    """A reward model on `base` as the settings ask for: its head, adapters, a language head."""
    model = RewardModel.from_backbone(
        base,
        config.rm.pooling,
        seed=seed,
        lm_head=config.rm.lm_coef > 0,
        trust_remote_code=config.model.trust_remote_code,
    )
    if config.rm.lora.rank:
        lora = asdict(config.rm.lora)
        lora.pop("save")
        model.add_lora(**lora)
    return model


def seed_of(run_seed: int, member: int) -> int:
    """The run's seed for the first member of an ensemble, another for each of the others."""
    return stable_hash(run_seed, "member", member) % 2**31 if member else run_seed


def load_split(config: Config, tokenizer: PreTrainedTokenizerBase | None = None) -> Split:
    """`config.data.preferences`, its lists for training and those set apart: no text in both.

    With a tokenizer prompts are rendered as PPO renders them. Raises ValueError for data that
    cannot be used, and where the held-out file shares a text with the training file under
    `rm.leaks: fail`.
    """
    data = config.data
    if data.preferences is None:
        raise ValueError("a reward model needs ranked lists: give --data.preferences FILE")

    def load(path: str) -> PreferenceSet:
        return load_lists(
            path,
            on_bad_row=data.on_bad_row,
            tokenizer=tokenizer,
            chat_template=data.chat_template,
            seed=config.run.seed,
            prompt_column=data.prompt_column,
        )

    found = load(data.preferences)
    if data.heldout_preferences is None:
        train, heldout = split_lists(found, data.heldout_fraction, config.run.seed)
        return Split(train, heldout, found.bad_rows, found.first_bad)
    given = load(data.heldout_preferences)
    split = Split(
        list(found),
        list(given),
        found.bad_rows + given.bad_rows,
        found.first_bad or given.first_bad,
    )
    return split if config.rm.leaks == "allow" else without_leaks(config, split)


def without_leaks(config: Config, split: Split) -> Split:
    """`split` without training lists that share a text or a first turn with the held-out ones."""
    shared = set(leaks(split.train, split.heldout))
    if not shared:
        return split
    if config.rm.leaks == "fail":
        example = min(shared, key=len)
        raise ValueError(
            f"{config.data.preferences} and {config.data.heldout_preferences} share {len(shared)} "
            f"texts or first turns, such as {example[:60]!r}: leave them out (--rm.leaks drop)"
        )
    kept = [
        one
        for one in split.train
        if not shared & {one.group or one.prompt, *(one.prompt + text for text in one.responses)}
    ]
    if not kept:
        raise ValueError(
            f"every list of {config.data.preferences} shares a text or a first turn with "
            f"{config.data.heldout_preferences}: nothing is left to train on"
        )
    return replace(split, train=kept, leaked=len(split.train) - len(kept))
