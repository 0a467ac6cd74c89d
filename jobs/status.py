"""What a run is doing: every actor with its state, version, node, work and last error.

python jobs/status.py --run NAME [--watch SECONDS] [--json]
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ray
import tyro
from rich.console import Console
from rich.table import Table

from rlhf_ray import cli
from rlhf_ray.actors.control import Report, find_control
from rlhf_ray.orchestration.session import join_session

COLUMNS = ("name", "role", "state", "version", "node", "pid", "work", "tokens", "last_error")
SHOWN = ("step", "of", "score/mean", "kl/mean_k1", "samples_per_s", "generators/restarts")


@dataclass(frozen=True)
class Options:
    run: str = "demo"
    """Name of the run."""
    watch: float | None = None
    """Renew every so many seconds, until Ctrl-C."""
    json: bool = False
    """One JSON object instead of a table."""


def show(report: Report, console: Console, *, as_json: bool) -> None:
    """Print one report."""
    if as_json:
        console.print(json.dumps(asdict(report), default=str), soft_wrap=True, highlight=False)
        return
    facts = [f"{k} {v:.4g}" for k in SHOWN if (v := report.summary.get(k)) is not None]
    seconds = {k[5:]: v for k, v in report.summary.items() if k.startswith("time/")}
    console.print("  ".join(facts) or "starting")
    console.print("seconds: " + "  ".join(f"{k} {v:.2f}" for k, v in seconds.items()))
    table = Table(*COLUMNS)
    for actor in report.actors:
        table.add_row(*(str(actor.get(name, ""))[:40] for name in COLUMNS))
    console.print(table)


def main() -> int:
    options = tyro.cli(Options, prog="jobs/status.py", description=__doc__)
    console = Console()
    with join_session():
        control = find_control(options.run)
        while True:
            report = ray.get(control.status.remote(), timeout=30)
            if options.watch:
                console.clear()
            show(report, console, as_json=options.json)
            if not options.watch:
                return 0
            time.sleep(options.watch)


if __name__ == "__main__":
    cli.run(main)
