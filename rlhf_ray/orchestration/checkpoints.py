"""Checkpoints on disk: complete or absent. Written aside, synced, renamed; a damaged one is named.

```
checkpoints/step-000010/
  meta.json          what the driver must know to go on: step, incarnation, counts
  manifest.json      size and xxh3 of every file, written last
  learner/…          what the learner group wrote (see learners/state.py)
```
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.files import Fingerprint, fingerprint, sync

_NAME = re.compile(r"step-(\d{6,})")
# Writes the learners' part to a directory; the fingerprints of files that are large, by name.
Fill = Callable[[Path], Mapping[str, Fingerprint]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint. `meta["step"]` is the next step to do."""

    path: Path
    meta: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run, below `directory`: the last `keep`, and the best beside them.

    The best is the one whose `meta["score"]` is the highest; None: not known.
    """

    def __init__(self, directory: Path, *, keep: int, log: Callable[[str], None]) -> None:
        if keep < 1:
            raise ValueError(
                f"checkpoint.keep is {keep}: without a checkpoint there is nothing to resume from; "
                f"set --checkpoint.keep 1 or more"
            )
        self._directory, self._keep, self._log = directory, keep, log

    def write(self, step: int, meta: dict[str, Any], fill: Fill) -> Path:
        """Make the checkpoint of `step`.

        What `fill` tells of its files is not read back: gigabytes, which the driver never sees.
        Raises OSError, with the earlier checkpoints whole, where the disk is full or read-only. A
        call of another's that is late, heard of while `fill` waits, is raised as what it is.
        """
        final = self._directory / f"step-{step:06d}"
        aside = self._directory / f".step-{step:06d}.partial"
        self._clear_leftovers()
        try:
            (aside / "learner").mkdir(parents=True)
            written = fill(aside / "learner")
            (aside / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
            manifest = json.dumps(_manifest(aside, written), indent=1)
            (aside / "manifest.json").write_text(manifest, encoding="utf-8")
            _sync(aside)
            if final.exists():  # of a lineage that did not survive
                os.rename(final, final.with_name(f".{final.name}.replaced"))
            os.rename(aside, final)
            sync(self._directory)
        except OSError as error:
            self._clear_leftovers()
            if isinstance(error, TimeoutError) and error.errno is None:  # no file system said so
                raise
            raise OSError(
                f"checkpoint {final} could not be written: {error.strerror or error}; the earlier "
                f"ones are whole. Free space or mend the directory, then go on with --resume"
            ) from error
        self._clear_leftovers()
        self._prune(step)
        return final

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where none has been written yet.

        Damaged ones are named in the log, passed over. Raises ValueError where all are: to begin
        again would give up the steps that they stood for, and the record of those. Raises OSError
        for one that cannot be read: were it passed over, the next to be written would remove it.
        """
        faults: dict[Path, str] = {}
        for path in sorted(self._paths(), key=_step, reverse=True):
            fault = self._fault(path)
            if fault is None:
                for damaged, why in faults.items():
                    self._log(f"checkpoint {damaged} is damaged ({why}): using the one before it")
                return Checkpoint(path, _meta(path))
            faults[path] = fault
        if faults:
            raise ValueError(self._none_whole(faults))
        return None

    def best(self) -> Checkpoint | None:
        """The one with the highest score, where any has one; the later of equals."""
        found = [Checkpoint(path, _meta(path)) for path in sorted(self._paths(), key=_step)]
        scored = [checkpoint for checkpoint in found if checkpoint.meta.get("score") is not None]
        return max(reversed(scored), key=lambda c: c.meta["score"], default=None)

    def _paths(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return [p for p in self._directory.iterdir() if _NAME.fullmatch(p.name)]

    def _none_whole(self, faults: dict[Path, str]) -> str:
        """What to say of checkpoints that are all damaged, the newest first."""
        names = ", ".join(path.name for path in faults)
        newest, fault = next(iter(faults.items()))
        return (
            f"{self._directory} holds no whole checkpoint to go on from, all are damaged: {names} "
            f"(of {newest.name}: {fault}). Put a whole copy of one back and go on with --resume, "
            f"or begin the run anew with --run.overwrite, which discards it"
        )

    def _fault(self, path: Path) -> str | None:
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            if not isinstance(manifest, dict) or "meta.json" not in manifest:
                return "manifest.json lists no meta.json"
            for name, expected in manifest.items():
                if asdict(fingerprint(path / name)) != expected:
                    return f"{name} is not what was written"
        except (FileNotFoundError, ValueError) as error:
            return str(error)
        except OSError as error:  # of a disk or a mount: it may be whole
            raise _unreadable(path, error) from error
        return None

    def _prune(self, step: int) -> None:
        """Leave the last `keep` up to `step`, and the best; newer ones are of a void lineage."""
        for path in self._paths():
            if _step(path) > step:  # or damaged
                self._remove(path)
        best = self.best()
        for path in sorted(self._paths(), key=_step)[: -self._keep]:
            if best is None or path != best.path:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Take its name away first: half removed, it would pass for one that is damaged."""
        aside = path.with_name(f".{path.name}.removed")
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)  # what is left goes with the next leftovers

    def _clear_leftovers(self) -> None:
        """Remove what writes that were cut short left aside."""
        for path in self._directory.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None, f"{path} is no checkpoint"
    return int(found[1])


def _meta(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; nothing where it is damaged."""
    try:
        return json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    except OSError as error:  # it may be the best, which is not to be removed
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> OSError:
    return OSError(
        f"checkpoint {path} cannot be read ({error}): mend that, or move it elsewhere to go on "
        f"without it"
    )


def _files(directory: Path) -> Iterator[Path]:
    return (p for p in sorted(directory.rglob("*")) if p.is_file())


def _manifest(directory: Path, written: Mapping[str, Fingerprint]) -> dict[str, dict[str, Any]]:
    """The fingerprint of every file. written: what is known of those in learner/."""
    known = {directory / "learner" / name: found for name, found in written.items()}
    return {
        str(path.relative_to(directory)): asdict(known.get(path) or fingerprint(path))
        for path in _files(directory)
    }


def _sync(directory: Path) -> None:
    """Have every file and directory below `directory` on the disk before it gets its name."""
    for path in _files(directory):
        sync(path)
    for path in (directory, *(p for p in directory.rglob("*") if p.is_dir())):
        sync(path)
