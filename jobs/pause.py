"""Hold a run before its next iteration, or let it go on. Its actors stay up meanwhile.

python jobs/pause.py --run NAME
python jobs/pause.py --run NAME --go-on
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
    go_on: bool = False
    """Let a run go on that was held."""


def main() -> int:
    options = tyro.cli(Options, prog="jobs/pause.py", description=cli.described(__doc__))
    with join_session():
        ask(options.run, "pause", not options.go_on)
    print(f"{options.run}: {'goes on' if options.go_on else 'held before its next iteration'}")
    return 0


if __name__ == "__main__":
    cli.run(main)
