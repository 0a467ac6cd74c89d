"""What a run is doing: its iteration, where the time goes, what is waited for, and every actor.

python jobs/status.py --run NAME [--watch SECONDS] [--json]
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_ray import cli
from rlhf_ray.actors.control import Report, Standing, Wish, ask
from rlhf_ray.observe.keys import TIMES
from rlhf_ray.orchestration.session import join_session

METRICS = ("score/mean", "kl/mean_k1", "samples_per_s", "generators/restarts", "rollouts/requeued")
SILENT_AFTER = 10.0  # seconds without a report after which that is said
WAITS_FROM = 1.0  # seconds from which a wait is shown


@dataclass(frozen=True)
class Options:
    run: str = "demo"
    """Name of the run."""
    watch: float | None = None
    """Renew every so many seconds, until Ctrl-C."""
    json: bool = False
    """One JSON object instead of a table."""


def lines(report: Report, wish: Wish, now: float) -> Iterator[str]:
    """What is said above the table."""
    row = report.iteration
    facts = [f"{name} {row[name]:.4g}" for name in METRICS if row.get(name) is not None]
    done = f"iteration {row['step']} of {row['of']} is done" if "step" in row else "starting"
    yield "  ".join([done, *facts])
    yield from _time(row)
    asked = f"auto, {wish.auto[0]} to {wish.auto[1]}" if wish.auto else str(report.wanted)
    yield f"generators wished for: {asked}" + (f" (now {report.wanted})" if wish.auto else "")
    if report.decision:
        yield f"autoscaling: {report.decision}"
    if wish.paused or wish.stop:
        yield "stops after this iteration" if wish.stop else "paused before the next iteration"
    for who, what, seconds in report.waits:
        if seconds >= WAITS_FROM:
            yield f"waits for {who}: {what}, {seconds:.0f} s"
    if report.at and now - report.at > SILENT_AFTER:
        yield f"THE DRIVER HAS NOT REPORTED FOR {now - report.at:.0f} s"


def _time(row: dict[str, float]) -> Iterator[str]:
    """Where the last iteration's seconds went, the longest first."""
    parts = {name: row[f"time/{name}"] for name in TIMES if row.get(f"time/{name}")}
    if parts:
        longest = sorted(parts.items(), key=lambda part: -part[1])
        shown = "  ".join(f"{name} {seconds:.2f}" for name, seconds in longest)
        yield f"seconds of the last iteration, {row['time/step']:.2f}: {shown}"


def table(actors: list[Standing]) -> Table:
    """A row an actor."""
    names = [field.name for field in fields(Standing)]
    made = Table(*(name.replace("_", " ") for name in names))
    for actor in actors:
        values = (getattr(actor, name) for name in names)
        made.add_row(*(Text("" if value is None else str(value)[:60]) for value in values))
    return made


def as_json(report: Report, wish: Wish, control: Standing) -> str:
    """Everything as one JSON object."""
    rows = [asdict(actor) for actor in [control, *report.actors]]
    return json.dumps({**asdict(report), "actors": rows, "wish": asdict(wish)}, default=str)


def show(options: Options, console: Console) -> None:
    """Ask once and print."""
    report, wish, control = ask(options.run, "status")
    if options.watch:
        console.clear()
    if options.json:
        console.print(as_json(report, wish, control), soft_wrap=True, highlight=False, markup=False)
        return
    for line in lines(report, wish, time.time()):
        console.print(line, markup=False, highlight=False)
    console.print(table([control, *report.actors]))


def main() -> int:
    options = tyro.cli(Options, prog="jobs/status.py", description=cli.described(__doc__))
    console = Console()
    with join_session():
        show(options, console)
        while options.watch:
            time.sleep(options.watch)
            show(options, console)
    return 0


if __name__ == "__main__":
    cli.run(main)
