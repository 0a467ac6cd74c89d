"""SFT → reward model → PPO, preparing what is missing; alone it does the demonstration.

python jobs/ppo.py [--recipe jobs/recipes/reviews.yaml] [--section.field value …] [--resume]
"""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlhf_ray import cli
from rlhf_ray.config import Config
from rlhf_ray.observe.console import Console
from rlhf_ray.training.pipeline import read_run, run


def parse(base: Config | None = None) -> cli.Resumable:
    return cli.parse_resumable(
        sys.argv[1:], prog="jobs/ppo.py", description=__doc__ or "", base=base
    )


def main() -> int:
    # Ctrl-C, also where a shell started this in the background; SIGTERM is how `ray job stop` asks.
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.default_int_handler)
    command = parse()
    if command.resume and command.recipe is None:  # what the run began with; flags override it
        command = parse(read_run(command.config.dir))
    run(command.config, resume=command.resume, console=Console(command.config.run.name))
    return 0


if __name__ == "__main__":
    cli.run(main, after_interrupt="nothing is left behind; go on with --resume")
