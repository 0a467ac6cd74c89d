"""What happened to a run, a line each: on the console, and with its time in `events.log`."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path


class Journal:
    """Call it with a line. note: shows it on the console."""

    def __init__(self, run_dir: Path, note: Callable[[str], None]) -> None:
        self._path, self._note = Path(run_dir) / "events.log", note

    def __call__(self, text: str) -> None:
        self._note(text)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{now} {text}\n")
