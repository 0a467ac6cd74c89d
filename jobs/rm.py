"""A reward model from the ranked lists in `data.preferences`, grown from the run's SFT model.

python jobs/rm.py --data.preferences FILE [--rm.base DIR] [--section.field value …]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlhf_ray import cli
from rlhf_ray.observe.console import Console
from rlhf_ray.training.phase import output_dir, show
from rlhf_ray.training.reward_model import train_reward_model


def main() -> int:
    config = cli.parse(sys.argv[1:], prog="jobs/rm.py", description=__doc__ or "").config
    base = config.rm.base or config.dir / "sft"
    if config.rm.base is None and not (config.dir / "sft" / "config.json").is_file():
        raise ValueError(
            f"a reward model grows from a model, and {base} holds none: run jobs/sft.py with the "
            f"same --run.name first, or give --rm.base DIR"
        )
    out = output_dir(config, "reward")
    last = show(Console(config.run.name), "rm", train_reward_model(config, base, out))
    for name, value in last.items():
        if name.startswith("heldout/"):
            print(f"{name.removeprefix('heldout/'):<20}{value:.4f}")
    print(f"reward model: {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
