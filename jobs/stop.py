"""End a run at its next consistent point: a checkpoint is written and --resume goes on from it.

python jobs/stop.py --run NAME
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from rlhf_ray import cli
from rlhf_ray.actors.control import ask
from rlhf_ray.orchestration.session import join_session


@dataclass(frozen=True)
class Options:
    run: str = "demo"
    """Name of the run."""


def main() -> int:
    options = tyro.cli(Options, prog="jobs/stop.py", description=cli.described(__doc__))
    with join_session():
        ask(options.run, "stop")
    print(f"{options.run}: stops after the current iteration (if paused: after one more)")
    return 0


if __name__ == "__main__":
    cli.run(main)
