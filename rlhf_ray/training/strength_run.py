"""Preference strength as a run of its own: on Ray, shown while it goes on."""

from pathlib import Path

from rlhf_ray.config import Config
from rlhf_ray.observe.console import Console
from rlhf_ray.orchestration.placement import plan_here
from rlhf_ray.orchestration.session import ray_session
from rlhf_ray.orchestration.visible import check_visible
from rlhf_ray.training.ownership import owned
from rlhf_ray.training.paths import read_on_nodes, resolve, reward_base, vacant
from rlhf_ray.training.reward_ensemble import Row, together
from rlhf_ray.training.strength import PairStrength, measure, write_strength


def measure_strength(config: Config, console: Console) -> tuple[Path, list[PairStrength]]:
    """The strength of each pair of `data.preferences`, and the directory it is written to.

    Raises ValueError where the directory holds one already, or there is no model to start from.
    """
    with owned(config.dir):
        config = resolve(config)
        out, base = vacant(config, "strength", "a measurement already"), reward_base(config)
        found = _measured(config, base, console)
        write_strength(out, config, base, found)
    return out, found


def _measured(config: Config, base: str, console: Console) -> list[PairStrength]:
    found: list[PairStrength] = []
    latest: dict[int, Row] = {}
    with ray_session():
        plan = plan_here(config)
        check_visible(config.dir, read_on_nodes(config), plan, log=console.note)
        with console.phase("strength", 1) as line:
            for one in measure(config, base, plan=plan, log=console.note):
                if isinstance(one, list):
                    found = one
                    continue
                place, row = one
                latest[place] = row
                row = together(row, latest, config.strength.models)
                line.update(int(row["step"]), row, total=int(row["total"]))
    return found
