"""Change the number of a run's generators while it goes on, from any machine of the cluster.

python jobs/scale.py --run NAME --generators 4 | +1 | -2
python jobs/scale.py --run NAME --generators auto --min 1 --max 8     the run decides by itself
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from rlhf_ray import cli
from rlhf_ray.actors.control import ask
from rlhf_ray.orchestration.autoscale import Limits
from rlhf_ray.orchestration.session import join_session

AUTO = "auto"


@dataclass(frozen=True)
class Options:
    generators: str
    """How many there are to be; with a sign, how many more or fewer; `auto`: as many as it takes
    for learners not to wait, between `min` and `max`."""
    run: str = "demo"
    """Name of the run."""
    min: int = 1
    """With auto: the fewest."""
    max: int = 8
    """With auto: the most."""


def parse(argv: Sequence[str]) -> Options:
    """The options. ValueError for a number that is none, or bounds that make no sense."""
    # A lone -2 would be taken for a flag.
    joined = re.sub(r"(--generators)\x00(-\d+)", r"\1=\2", "\x00".join(argv)).split("\x00")
    options = tyro.cli(
        Options, args=joined, prog="jobs/scale.py", description=cli.described(__doc__)
    )
    if options.generators == AUTO:
        Limits(options.min, options.max)
    elif not re.fullmatch(r"[+-]?\d+", options.generators):
        raise ValueError(
            f"--generators {options.generators}: give a number, as 4, +1 or -2, or auto"
        )
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    with join_session():
        if options.generators == AUTO:
            ask(options.run, "scale_by_itself", options.min, options.max)
            print(f"{options.run}: decides itself between {options.min} and {options.max}")
            return 0
        relative = options.generators[0] in "+-"
        wished = ask(options.run, "scale", int(options.generators), relative=relative)
        print(f"{options.run}: {wished} generators are wished for")
    return 0


if __name__ == "__main__":
    cli.run(main)
