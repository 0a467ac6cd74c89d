"""Change the number of a run's generators while it goes on, from any machine of the cluster.

python jobs/scale.py --run NAME --generators 4 | +1 | -2
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ray
import tyro

from rlhf_ray import cli
from rlhf_ray.actors.control import find_control
from rlhf_ray.orchestration.session import join_session


@dataclass(frozen=True)
class Options:
    generators: str
    """How many there are to be; with a sign, how many more or fewer."""
    run: str = "demo"
    """Name of the run."""


def main() -> int:
    # A lone -2 would be taken for a flag.
    argv = re.sub(r"(--generators)\x00(-\d+)", r"\1=\2", "\x00".join(sys.argv[1:])).split("\x00")
    options = tyro.cli(Options, args=argv, prog="jobs/scale.py", description=__doc__)
    if not re.fullmatch(r"[+-]?\d+", options.generators):
        raise ValueError(f"--generators {options.generators}: give a number, as 4, +1 or -2")
    relative = options.generators[0] in "+-"
    with join_session():
        control = find_control(options.run)
        call = control.scale.remote(int(options.generators), relative=relative)
        print(f"{options.run}: {ray.get(call, timeout=30)} generators are wished for")
    return 0


if __name__ == "__main__":
    cli.run(main)
