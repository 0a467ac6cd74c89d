"""The writer of a run's numbers: metrics.jsonl, TensorBoard and gauges `rlhf_*`, from one call.

metrics.jsonl is the record; TensorBoard files are derived from it and made anew after a rewind.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rlhf_ray.files import write_text
from rlhf_ray.observe.keys import KEYS, PHASES, Phase, row_of
from rlhf_ray.observe.samples import rewind_samples
from rlhf_ray.observe.trackers import Tracker

if TYPE_CHECKING:
    from rlhf_ray.observe.gauges import Gauges

__all__ = ["KEYS", "PHASES", "Phase", "RunLog", "read_metrics"]

Row = dict[str, Any]


class RunLog:
    """Appends to a run's metrics. One process holds it: the driver.

    Args:
        run_dir: the run's directory; made if it is not there.
        gauges: where Ray is up, `Gauges(run)`: each write sets them too.
        tracker: gets the rows too, and is closed with this.
    """

    def __init__(
        self, run_dir: Path, *, gauges: "Gauges | None" = None, tracker: Tracker | None = None
    ) -> None:
        self._dir = Path(run_dir)
        self._dir.mkdir(parents=True, exist_ok=True)
        self._path = self._dir / "metrics.jsonl"
        self.gauges, self._tracker = gauges, tracker
        self._boards: dict[str, EventFileWriter] = {}
        _drop_torn_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._make_boards(read_metrics(self._dir))  # a killed process may have left less there

    def write(self, phase: Phase, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row. A value that is not finite is written as null.

        Raises:
            ValueError: a phase or a key without a row in `KEYS`; nothing has been written then.
        """
        if phase not in PHASES:
            raise ValueError(f"there is no phase {phase!r}: it is one of {', '.join(PHASES)}")
        for name in metrics:
            row_of(name)
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        row: Row = {"phase": phase, "step": int(step), "time": round(time.time(), 3)}
        row |= {name: finite.get(name) for name in values}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        self._to_board(row)
        if self.gauges:
            self.gauges.row(phase, step, values)
        if self._tracker:
            self._tracker.log(phase, step, finite)

    def rewind(self, phase: Phase, step: int) -> int:
        """Forget what came after a checkpoint: rows of `phase` with a later step, and sample files.

        Returns the number of rows that were dropped. Rows of other phases stay.
        """
        rows = list(read_metrics(self._dir))
        kept = [row for row in rows if row["phase"] != phase or row["step"] <= step]
        if phase == "ppo":
            rewind_samples(self._dir, step)
        if len(kept) == len(rows):
            return 0
        self._close_files()
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._make_boards(kept)
        return len(rows) - len(kept)

    def sync(self) -> None:
        """Return when every row is on the disk: before a checkpoint is, to which they belong."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close everything; TensorBoard's writer holds rows back until it is flushed or closed."""
        self._close_files()
        if self._tracker:
            self._tracker.close()

    def _close_files(self) -> None:
        self._file.close()
        for board in self._boards.values():
            board.close()
        self._boards.clear()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _make_boards(self, rows: Iterable[Row]) -> None:
        shutil.rmtree(self._dir / "tb", ignore_errors=True)
        for row in rows:
            self._to_board(row)

    def _to_board(self, row: Row) -> None:
        phase = row["phase"]
        if phase not in self._boards:
            self._boards[phase] = EventFileWriter(str(self._dir / "tb" / phase))
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name not in ("phase", "step", "time") and value is not None
        ]
        event = Event(wall_time=row["time"], step=row["step"], summary=Summary(value=values))
        self._boards[phase].add_event(event)


def read_metrics(run_dir: Path) -> Iterator[Row]:
    """Rows of metrics.jsonl in the order written; none where there is no file.

    A last line without its newline was cut off by a kill, and is left out.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError as fault:
                raise ValueError(f"{path}, line {number}: not JSON ({fault})") from fault


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
