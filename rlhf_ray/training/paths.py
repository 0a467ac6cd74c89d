"""Which files and models a run has: user paths from the root, and what is there already."""

import dataclasses
from pathlib import Path

from rlhf_ray.config import Config, Reward, RewardSource
from rlhf_ray.data.demo import write_demo
from rlhf_ray.data.preferences import absolute_parts
from rlhf_ray.data.rows import SUFFIXES, on_disk

GOLD = "rlhf_ray.data.demo:gold_score"
FOREIGN = (".csv", ".gz", ".zip")  # files too, though none that is read


def resolve(config: Config) -> Config:
    """As `absolute`; where no data and no model is given, the demonstration's data are written."""
    config = absolute(config)
    data = config.data
    models = (config.model.path, config.rm.base, config.reward.sources)
    if any((data.texts, data.prompts, data.preferences, *models)):
        return config
    paths = write_demo(config.dir / "data", seed=config.run.seed)
    data = dataclasses.replace(
        data,
        texts=str(paths.texts),
        preferences=str(paths.lists),
        prompts=str(paths.prompts),
        heldout_prompts=data.heldout_prompts or str(paths.heldout_prompts),
    )
    reward = dataclasses.replace(config.reward, gold=config.reward.gold or GOLD)
    return dataclasses.replace(config, data=data, reward=reward)


def files_of(config: Config) -> list[Path]:
    """The user's files and directories that a resolved config names: data, and models to read."""
    return [
        *read_on_nodes(config),
        *_on_disk([config.data.prompts, config.data.heldout_prompts]),
    ]


def read_on_nodes(config: Config) -> list[Path]:
    """Of `files_of`, what is read on any node. Prompts are not: the driver hands them out."""
    data, sources = config.data, config.reward.sources
    names = [data.texts, config.rm.meta.samples, config.model.path, config.rm.base]
    names += [source.model or source.classifier for source in sources]
    for mixture in (data.preferences, data.heldout_preferences):
        names += _parts(mixture) if mixture else []
    return _on_disk(names)


def policy_of(config: Config) -> str | None:
    """The model that PPO starts from; None: SFT is yet to train it.

    Raises ValueError where SFT is skipped and no model is given.
    """
    if config.sft.epochs == 0:
        if config.model.path is None:
            raise ValueError("--sft.epochs 0 skips SFT: give the policy with --model.path")
        return config.model.path
    path = config.dir / "sft"
    return str(path) if path.is_dir() else None


def reward_of(config: Config) -> Reward | None:
    """What scores; None: the reward model is yet to be trained."""
    path = config.dir / "reward"
    if config.reward.sources:
        return config.reward
    if not path.is_dir():
        return None
    how, caution = config.rm.combine, config.rm.caution
    own = RewardSource(model=str(path), combine=how, caution=caution)
    return dataclasses.replace(config.reward, sources=(own,))


def reward_base(config: Config) -> str:
    """What a reward model grows from. ValueError where there is nothing."""
    base = config.rm.base or str(config.dir / "sft")
    if config.rm.base is None and not Path(base).is_dir():
        raise ValueError(
            f"a reward model grows from a model, and {base} holds none: run jobs/sft.py with the "
            f"same --run.name first, or give --rm.base DIR"
        )
    return base


def vacant(config: Config, name: str, holds: str) -> Path:
    """The directory `name` of the run, to be written. ValueError where it is not to be replaced."""
    path = config.dir / name
    if path.exists() and not config.run.overwrite:
        raise ValueError(
            f"{path} holds {holds}: give another --run.name, or replace it with --run.overwrite"
        )
    return path


def absolute(config: Config) -> Config:
    """The config with user paths from the root. ValueError for a file that is not there."""
    run = dataclasses.replace(config.run, root=str(Path(config.run.root).absolute()))
    data = config.data
    data = dataclasses.replace(
        data,
        texts=_absolute(data.texts, "data.texts"),
        prompts=_absolute(data.prompts, "data.prompts"),
        preferences=_lists(data.preferences, "data.preferences"),
        heldout_preferences=_lists(data.heldout_preferences, "data.heldout_preferences"),
        heldout_prompts=_absolute(data.heldout_prompts, "data.heldout_prompts"),
    )
    model = dataclasses.replace(config.model, path=_absolute(config.model.path, "model.path"))
    meta = config.rm.meta
    meta = dataclasses.replace(meta, samples=_absolute(meta.samples, "rm.meta.samples"))
    rm = dataclasses.replace(config.rm, meta=meta, base=_absolute(config.rm.base, "rm.base"))
    sources = tuple(
        dataclasses.replace(
            source,
            model=_absolute(source.model, "reward.sources.model"),
            classifier=_absolute(source.classifier, "reward.sources.classifier"),
        )
        for source in config.reward.sources
    )
    reward = dataclasses.replace(config.reward, sources=sources)
    return dataclasses.replace(config, run=run, data=data, model=model, rm=rm, reward=reward)


def _absolute(path: str | None, option: str) -> str | None:
    """`path` (or DIR:SPLIT) from the root where it is there; a name of a hub stays as it is."""
    if path is None:
        return None
    if (found := on_disk(path)) is not None:
        place, split = found
        return f"{place.absolute()}{split}"
    if _is_local(path):
        raise ValueError(f"--{option.replace('_', '-')} {path}: there is no such file or directory")
    return path


def _is_local(path: str) -> bool:
    """Whether it can only be meant as a path: a name of a hub is NAME or OWNER/NAME."""
    first, *more = Path(path).parts
    return (
        Path(path).suffix.lower() in (*SUFFIXES, *FOREIGN)
        or path.startswith((".", "/", "~"))
        or len(more) > 1
        or (bool(more) and Path(first).is_dir())
    )


def _lists(path: str | None, option: str) -> str | None:
    """As `_absolute`, of each part of a mixture."""
    try:
        return None if path is None else absolute_parts(path)
    except ValueError as error:
        raise ValueError(f"--{option.replace('_', '-')} {error}") from None


def _on_disk(names: list[str | None]) -> list[Path]:
    """The files and directories among what config fields name; None names nothing."""
    found = [on_disk(name) for name in names if name]
    return [place for place, _ in filter(None, found)]


def _parts(mixture: str) -> list[str]:
    """The names in what `absolute_parts` gave: one, or several each with its weight."""
    if Path(mixture).exists() or "=" not in mixture:
        return [mixture]
    return [part.rpartition("=")[0] for part in mixture.split(",")]
