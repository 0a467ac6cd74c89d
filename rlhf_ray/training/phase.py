"""A supervised phase as a job of its own: where it writes, what it shows."""

from collections.abc import Iterable
from pathlib import Path

from rlhf_ray.config import Config
from rlhf_ray.observe.console import Console
from rlhf_ray.training.supervised import Row


def output_dir(config: Config, phase: str) -> Path:
    """Directory of `phase` in the run's. ValueError where it holds a model already."""
    out = config.dir / phase
    if out.exists() and not config.run.overwrite:
        raise ValueError(
            f"{out} holds the model of an earlier run: give another --run.name, or replace it with "
            f"--run.overwrite True"
        )
    return out


def show(console: Console, phase: str, rows: Iterable[Row]) -> Row:
    """Run the phase to its end, showing its progress; its last row."""
    row: Row = {}
    with console.phase(phase, 1) as line:
        for row in rows:
            line.update(int(row["step"]), row, total=int(row["total"]))
    return row
