"""Preference strength as a run of its own: on Ray, shown while it goes on."""

from pathlib import Path

from rlhf_ray.config import Config
from rlhf_ray.observe.console import Console
from rlhf_ray.orchestration.placement import plan_here
from rlhf_ray.orchestration.session import ray_session
from rlhf_ray.training.pipeline import Row, resolve, reward_base
from rlhf_ray.training.reward_ensemble import together
from rlhf_ray.training.strength import PairStrength, measure, write_strength


def measure_strength(config: Config, console: Console) -> tuple[Path, list[PairStrength]]:
    """The strength of each pair of `data.preferences`, and the directory it is written to.

    Raises ValueError where the directory holds one already, or there is no model to start from.
    """
    config = resolve(config)
    out, base = config.dir / "strength", reward_base(config)
    if out.exists() and not config.run.overwrite:
        raise ValueError(
            f"{out} holds a measurement already: give another --run.name, or replace it with "
            f"--run.overwrite"
        )
    found: list[PairStrength] = []
    latest: dict[int, Row] = {}
    models = config.strength.models
    with ray_session(), console.phase("strength", 1) as line:
        for one in measure(config, base, plan=plan_here(config), log=console.note):
            if isinstance(one, list):
                found = one
                continue
            place, row = one
            latest[place] = row
            row = together(row, latest, models)
            line.update(int(row["step"]), row, total=int(row["total"]))
    write_strength(out, config, base, found)
    return out, found
