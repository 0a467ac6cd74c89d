"""A directory of reward models that were trained side by side, and the scale of each.

The zero of a ranking model's scores is arbitrary, so members are compared on a scale of their own:
the mean and deviation of their scores on texts that all of them scored.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf_ray.models.reward_model import Calibration, read_calibration

ENSEMBLE_FILE = "ensemble.json"


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Directories of the members, and the scale of each."""

    members: tuple[Path, ...]
    scales: tuple[Calibration, ...]


def member_name(index: int) -> str:
    """Directory of a member within its ensemble."""
    return f"member-{index:02d}"


def read_ensemble(path: str | Path) -> Ensemble | None:
    """The ensemble at `path`; None where it is none.

    A member's own calibration, on samples of the reference policy, is used where all have one.
    """
    file = Path(path) / ENSEMBLE_FILE
    if not file.is_file():
        return None
    held = json.loads(file.read_text(encoding="utf-8"))["members"]
    members = tuple(Path(path) / one["name"] for one in held)
    own = [read_calibration(member) for member in members]
    given = [Calibration(**one["scale"]) for one in held]
    calibrated = [one for one in own if one is not None]
    return Ensemble(members, tuple(calibrated if len(calibrated) == len(own) else given))


def write_ensemble(path: str | Path, names: Sequence[str], scales: Sequence[Calibration]) -> None:
    """Name the members below `path` and their scales."""
    members = [
        {"name": name, "scale": asdict(scale)} for name, scale in zip(names, scales, strict=True)
    ]
    text = json.dumps({"format": 1, "members": members}, indent=2)
    (Path(path) / ENSEMBLE_FILE).write_text(text + "\n", encoding="utf-8")


def first_member(path: str | Path) -> Path:
    """Where a single reward model is to be had from: the directory itself, or its first member."""
    ensemble = read_ensemble(path)
    return ensemble.members[0] if ensemble else Path(path)
