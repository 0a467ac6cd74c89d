"""Supervised fine-tuning: a language model learns the texts in `data.texts`.

python jobs/sft.py --data.texts FILE [--recipe jobs/recipes/reviews.yaml] [--section.field value …]
Without texts it does the demonstration's.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlhf_ray import cli
from rlhf_ray.data.faults import skipped
from rlhf_ray.observe.console import Console


def main() -> int:
    config = cli.parse(sys.argv[1:], prog="jobs/sft.py", description=__doc__ or "").config
    # Seconds of imports, which neither help nor a wrong flag has to wait for.
    from rlhf_ray.training.pipeline import train_phase

    out, last = train_phase(config, "sft", Console(config.run.name))
    if "heldout/perplexity" in last:
        print(f"held-out perplexity a token: {last['heldout/perplexity']:.2f}")
    if last.get("bad_rows"):
        print(skipped(last["bad_rows"], last.get("first_bad")))
    print(f"model: {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
