"""Responses of a policy to prompts, several each, as JSON lines: for MetaRM, or to calibrate on.

python jobs/sample.py --policy runs/demo/policy --data.prompts FILE --out samples.jsonl --samples 4
python jobs/rm.py … --rm.meta.samples samples.jsonl
python jobs/score.py --model runs/demo/reward --calibrate samples.jsonl
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from rlhf_ray import cli
from rlhf_ray.config import Config
from rlhf_ray.observe.console import Console
from rlhf_ray.recipes import read_recipe
from rlhf_ray.training.paths import absolute
from rlhf_ray.training.sampling import sample_to


@dataclass(frozen=True)
class Options:
    config: Annotated[Config, tyro.conf.arg(name="")]
    policy: str
    """The language model that responds, by path or name."""
    out: Path
    """Where the samples go, .jsonl: `prompt` and `responses`."""
    recipe: Path | None = None
    """A YAML file with the sections below; flags override it."""
    prompts: int = 256
    """The first so many prompts of `data.prompts`, those set apart left out."""
    samples: int = 4
    """Responses to each."""


def main() -> int:
    recipe = cli.recipe_path(sys.argv[1:])
    config = read_recipe(recipe) if recipe else Config()
    options = tyro.cli(
        Options,
        default=Options(config, tyro.MISSING, tyro.MISSING, recipe),
        prog="jobs/sample.py",
        description=cli.described(__doc__),
    )
    for flag, count in (("--prompts", options.prompts), ("--samples", options.samples)):
        if count < 1:
            raise ValueError(f"{flag} is {count}, which leaves nothing to write: give at least 1")
    written = sample_to(
        absolute(options.config),
        options.policy,
        options.out,
        prompts=options.prompts,
        samples=options.samples,
        console=Console(options.config.run.name),
    )
    print(f"{written} responses: {options.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
