"""SFT → reward model → PPO, preparing what is missing; alone it does the demonstration.

python jobs/ppo.py [--recipe jobs/recipes/reviews.yaml] [--section.field value …] [--resume]
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlhf_ray import cli
from rlhf_ray.config import Config
from rlhf_ray.observe.console import Console
from rlhf_ray.observe.samples import before_after


def parse(base: Config | None = None) -> cli.Resumable:
    return cli.parse_resumable(
        sys.argv[1:], prog="jobs/ppo.py", description=__doc__ or "", base=base
    )


def finished(config: Config) -> dict[str, Any] | None:
    """summary.json of a run that has done all its iterations."""
    path = config.dir / "summary.json"
    if not path.is_file():
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    return summary if summary["iterations"] >= config.ppo.iterations else None


def main() -> int:
    command = parse()
    # Seconds of imports, which neither help nor a wrong flag has to wait for.
    from rlhf_ray.training.ownership import owned, replaced
    from rlhf_ray.training.pipeline import SIDE_BY_SIDE, read_run, run

    directory = command.config.dir
    if replaced(directory).is_dir():
        with owned(directory):  # its run is put back, to be found below
            pass
    begun = command.resume_if_begun and (directory / "config.yaml").is_file()
    resume = command.resume or begun
    if resume:
        base = read_run(directory)
        if command.recipe is None:  # what the run began with; flags override it
            command = parse(base)
    console = Console(command.config.run.name)
    if begun and (summary := finished(command.config)):
        samples = before_after(directory)[:SIDE_BY_SIDE]
        console.summary(summary, samples, report=str(directory / "report.html"))
        return 0
    run(command.config, resume=resume, console=console)
    return 0


if __name__ == "__main__":
    cli.run(main, after_interrupt="nothing is left behind")
