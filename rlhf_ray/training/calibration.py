"""The run's calibration, stored with the reward model that the run trained, at the run's end."""

from pathlib import Path

from rlhf_ray.config import Config
from rlhf_ray.models.reward_model import SETTINGS_FILE, Calibration, write_calibration


def own_model(config: Config) -> Path | None:
    """The one reward model that this run trained and that alone scores; None where it is not so."""
    path = config.dir / "reward"
    alone = not config.reward.sources and (path / SETTINGS_FILE).is_file()
    return path if alone else None


def store_with_model(config: Config, calibration: Calibration) -> None:
    """Beside the run's own model; nothing where the reward is something else."""
    if (path := own_model(config)) is not None:
        write_calibration(path, calibration)
