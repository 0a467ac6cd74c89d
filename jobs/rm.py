"""A reward model from the ranked lists in `data.preferences`, grown from the run's SFT model.

python jobs/rm.py --data.preferences FILE [--rm.base DIR] [--section.field value …]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlhf_ray import cli
from rlhf_ray.data.faults import skipped
from rlhf_ray.observe.console import Console


def main() -> int:
    config = cli.parse(sys.argv[1:], prog="jobs/rm.py", description=__doc__ or "").config
    # Seconds of imports, which neither help nor a wrong flag has to wait for.
    from rlhf_ray.training.pipeline import train_phase

    out, last = train_phase(config, "rm", Console(config.run.name))
    for name, value in last.items():
        if name.startswith("heldout/"):
            print(f"{name.removeprefix('heldout/'):<20}{value:.4f}")
    if last.get("bad_rows"):
        print(skipped(last["bad_rows"], last.get("first_bad")))
    print(f"reward model: {out}, report: {config.dir / 'report.html'}")
    return 0


if __name__ == "__main__":
    cli.run(main)
