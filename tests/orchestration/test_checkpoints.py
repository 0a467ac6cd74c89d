"""Checkpoints are complete or absent, whatever befalls the write or the disk."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import xxhash

from rlhf_ray.files import Fingerprint, fingerprint
from rlhf_ray.learners import state
from rlhf_ray.learners.group import Group
from rlhf_ray.orchestration.checkpoints import CheckpointStore, Fill
from rlhf_ray.orchestration.reactor import Late
from tests.running.disks import small_disk


def fill(value: int, size: int = 64) -> Fill:
    def write(directory: Path) -> dict[str, Fingerprint]:
        (directory / "rank-0").mkdir()
        weights = directory / "rank-0" / "weights.bin"
        weights.write_bytes(bytes([value]) * size)
        (directory / "progress.json").write_text(json.dumps({"value": value}))
        return {"rank-0/weights.bin": fingerprint(weights)}

    return write


class Disk:
    """A store, what it logged, and a way to write small checkpoints to it."""

    def __init__(self, root: Path, keep: int = 2) -> None:
        self.directory, self.log = root / "checkpoints", []
        self.store = CheckpointStore(self.directory, keep=keep, log=self.log.append)

    def write(self, step: int, size: int = 64) -> Path:
        return self.store.write(step, {"step": step}, fill(step % 256, size))

    def score(self, step: int, score: float | None) -> Path:
        return self.store.write(step, {"step": step, "score": score}, fill(step % 256))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_what_was_written_is_found(disk: Disk) -> None:
    disk.store.write(5, {"step": 5, "counts": {"consumed": 40}}, fill(7))
    found = disk.store.latest()
    assert found is not None and found.meta == {"step": 5, "counts": {"consumed": 40}}
    assert (found.path / "learner" / "rank-0" / "weights.bin").read_bytes() == bytes([7]) * 64
    assert disk.names() == ["step-000005"] and disk.log == []


def test_all_of_it_is_on_the_disk_before_it_has_its_name(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(file: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)

    def renamed(*args: str | Path) -> None:
        seen.append("renamed")
        rename(*args)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    disk.write(5)
    before = set(seen[: seen.index("renamed")])
    assert {"weights.bin", "rank-0", "progress.json", "learner", "meta.json", "manifest.json"} <= (
        before
    )
    assert seen[-1] == "checkpoints", "its name is on the disk as well"


def test_what_its_writer_says_of_a_file_is_believed_and_the_file_not_read(disk: Disk) -> None:
    """A disk that keeps something else than it was given is found out when it is read."""

    def write(directory: Path) -> dict[str, Fingerprint]:
        (directory / "weights.bin").write_bytes(b"half")
        return {"weights.bin": Fingerprint(5, xxhash.xxh3_64_hexdigest(b"whole"))}

    disk.write(5)
    disk.store.write(10, {"step": 10}, write)
    found = disk.store.latest()
    assert found is not None and found.meta["step"] == 5
    assert "step-000010 is damaged (learner/weights.bin is not what was written)" in disk.log[0]


def test_a_new_run_has_none(disk: Disk) -> None:
    assert disk.store.latest() is None


def test_the_last_ones_are_kept_by_number_not_by_name(tmp_path: Path) -> None:
    disk = Disk(tmp_path, keep=2)
    for step in (5, 10, 999_999, 1_000_000):
        disk.write(step)
    assert disk.names() == ["step-1000000", "step-999999"]
    found = disk.store.latest()
    assert found is not None and found.meta["step"] == 1_000_000


def test_one_that_is_removed_half_way_is_not_taken_for_damaged(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def killed(path: Path, **_: object) -> None:
        if path.name == ".step-000004.removed":
            (path / "meta.json").unlink()
        else:
            remove(path, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", killed)
    for step in (4, 8, 12):
        disk.write(step)
    assert disk.names() == [".step-000004.removed", "step-000008", "step-000012"]
    monkeypatch.undo()
    disk.write(16)
    assert disk.names() == ["step-000012", "step-000016"] and disk.log == []


def test_the_best_stays_beside_the_last_ones(disk: Disk) -> None:
    for step, score in ((4, 0.5), (8, 1.5), (12, None), (16, 1.0), (20, 1.25), (24, None)):
        disk.score(step, score)
    assert disk.names() == ["step-000008", "step-000020", "step-000024"]
    best, latest = disk.store.best(), disk.store.latest()
    assert best is not None and best.meta == {"step": 8, "score": 1.5}
    assert latest is not None and latest.meta["step"] == 24
    disk.score(28, 1.5)
    assert disk.names() == ["step-000024", "step-000028"], "of equals the later is the best"


def test_without_scores_the_last_ones_are_kept(disk: Disk) -> None:
    for step in (4, 8, 12):
        disk.score(step, None)
    assert disk.store.best() is None
    assert disk.names() == ["step-000008", "step-000012"]


def test_a_best_one_of_a_void_lineage_goes(disk: Disk) -> None:
    for step, score in ((4, 0.5), (8, 0.4), (12, 9.0), (16, 0.1), (20, 0.2)):
        disk.score(step, score)
    assert disk.names() == ["step-000012", "step-000016", "step-000020"]
    disk.score(8, 0.3)
    assert disk.names() == ["step-000008"]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda p: (p / "learner/rank-0/weights.bin").write_bytes(b"x" * 64), "weights.bin"),
        (lambda p: os.truncate(p / "learner/rank-0/weights.bin", 63), "weights.bin"),
        (lambda p: (p / "learner/progress.json").unlink(), "progress.json"),
        (lambda p: (p / "meta.json").write_text('{"step": 9}'), "meta.json"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json"),
        (lambda p: os.truncate(p / "manifest.json", 20), "damaged"),
        (lambda p: (p / "manifest.json").write_text("{}"), "manifest.json"),
        (lambda p: shutil.rmtree(p / "learner"), "learner"),
    ],
    ids=["flipped", "cut", "gone", "meta", "no-manifest", "manifest-cut", "manifest-empty", "all"],
)
def test_a_damaged_one_is_named_and_the_one_before_it_used(
    disk: Disk, damage: Callable[[Path], object], fault: str
) -> None:
    disk.write(5)
    damage(disk.write(10))
    found = disk.store.latest()
    assert found is not None and found.meta["step"] == 5
    (line,) = disk.log
    assert "step-000010 is damaged" in line and fault in line


@pytest.mark.parametrize("steps", [(10,), (5, 10)])
def test_where_none_is_whole_nobody_begins_again_unasked(
    disk: Disk, steps: tuple[int, ...]
) -> None:
    for step in steps:
        path = disk.write(step) / "learner/rank-0/weights.bin"
        path.write_bytes(b"x" + path.read_bytes()[1:])
    there = disk.names()
    with pytest.raises(ValueError) as caught:
        disk.store.latest()
    said = str(caught.value)
    assert f"{disk.directory} holds no whole checkpoint" in said and "--run.overwrite" in said
    assert f"all are damaged: {', '.join(reversed(there))} (of step-000010: learner/rank" in said
    assert disk.names() == there and disk.log == [], "there is none before them to be used"


def test_one_that_cannot_be_read_is_not_passed_over(disk: Disk) -> None:
    """As a mount that is away for a moment: by a link to itself, which nobody can open."""
    disk.write(5)
    weights = disk.write(10) / "learner/rank-0/weights.bin"
    weights.rename(weights.with_suffix(".kept"))
    weights.symlink_to(weights.name)
    with pytest.raises(OSError, match=r"step-000010 cannot be read .*move it elsewhere"):
        disk.store.latest()
    weights.unlink()
    weights.with_suffix(".kept").rename(weights)
    found = disk.store.latest()
    assert found is not None and found.meta["step"] == 10


def test_the_best_is_not_removed_because_it_cannot_be_read(disk: Disk) -> None:
    meta = disk.score(5, 2.0) / "meta.json"
    disk.score(10, 1.0)
    disk.score(15, 1.0)
    meta.rename(meta.with_suffix(".kept"))
    meta.symlink_to(meta.name)
    with pytest.raises(OSError, match=r"step-000005 cannot be read"):
        disk.score(20, 1.0)
    meta.unlink()
    meta.with_suffix(".kept").rename(meta)
    disk.score(25, 1.0)
    assert disk.names() == ["step-000005", "step-000020", "step-000025"]


def test_a_run_killed_before_its_first_one_was_complete_has_none(disk: Disk) -> None:
    (disk.directory / ".step-000005.partial" / "learner").mkdir(parents=True)
    assert disk.store.latest() is None and disk.log == []


def test_going_on_from_before_a_damaged_one_keeps_what_is_whole(tmp_path: Path) -> None:
    disk = Disk(tmp_path, keep=1)
    (disk.write(20) / "meta.json").unlink()
    disk.write(12)
    found = disk.store.latest()
    assert found is not None and found.meta["step"] == 12
    assert disk.names() == ["step-000012"]


def test_a_step_that_is_done_again_replaces_its_checkpoint(disk: Disk) -> None:
    disk.write(5)
    disk.store.write(5, {"step": 5, "incarnation": 1}, fill(9))
    found = disk.store.latest()
    assert found is not None and found.meta["incarnation"] == 1
    assert disk.names() == ["step-000005"]


def test_killed_in_the_middle_of_writing(disk: Disk) -> None:
    disk.write(5)
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from rlhf_ray.orchestration.checkpoints import CheckpointStore

        def fill(directory):
            (directory / "weights.bin").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        CheckpointStore(Path(sys.argv[1]), keep=2, log=print).write(10, {"step": 10}, fill)
        """
    )
    done = subprocess.run([sys.executable, "-c", program, str(disk.directory)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert disk.names() == [".step-000010.partial", "step-000005"]
    found = disk.store.latest()
    assert found is not None and found.meta["step"] == 5
    disk.write(15)
    assert disk.names() == ["step-000005", "step-000015"], "what was cut short is cleared away"


def test_a_fill_that_fails_otherwise_leaves_the_earlier_one(disk: Disk) -> None:
    def lose(directory: Path) -> None:
        raise RuntimeError("the learner group was lost in `save`")

    disk.write(5)
    with pytest.raises(RuntimeError, match="lost in `save`"):
        disk.store.write(10, {"step": 10}, lose)
    found = disk.store.latest()
    assert found is not None and found.meta["step"] == 5


def test_anothers_late_call_is_not_taken_for_a_fault_of_the_disk(disk: Disk) -> None:
    def hear(directory: Path) -> None:
        raise late

    late = Late("reward-0 did not finish `shard 3 of step 9` in 600 s")
    disk.write(5)
    with pytest.raises(Late) as caught:
        disk.store.write(10, {"step": 10}, hear)
    assert caught.value is late
    assert disk.names() == ["step-000005"], "the part that was written is given back"


def test_a_disk_that_does_not_answer_in_time(disk: Disk) -> None:
    def write(directory: Path) -> None:
        raise OSError(errno.ETIMEDOUT, "Connection timed out")  # a TimeoutError, of the disk

    with pytest.raises(OSError, match="step-000010 could not be written: Connection timed out"):
        disk.store.write(10, {"step": 10}, write)


@pytest.fixture
def tight_disk(tmp_path: Path) -> Iterator[Disk]:
    """On a file system of its own."""
    with small_disk(tmp_path / "small", "256k") as place:
        yield Disk(place)


def test_a_full_disk(tight_disk: Disk) -> None:
    tight_disk.write(5, size=50_000)
    with pytest.raises(OSError, match="No space left on device") as caught:
        tight_disk.write(10, size=500_000)
    assert "step-000010 could not be written" in str(caught.value)
    assert "--resume" in str(caught.value)
    assert tight_disk.names() == ["step-000005"], "the part that was written is given back"
    found = tight_disk.store.latest()
    assert found is not None and found.meta["step"] == 5


def test_a_disk_that_became_read_only(tight_disk: Disk) -> None:
    tight_disk.write(5)
    root = str(tight_disk.directory.parent)
    subprocess.run(["mount", "-o", "remount,ro", root], check=True)
    with pytest.raises(OSError, match=r"Read-only file system; the earlier ones are whole"):
        tight_disk.write(10)
    found = tight_disk.store.latest()
    assert found is not None and found.meta["step"] == 5


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the directory should be")
    with pytest.raises(OSError, match=r"step-000005 could not be written: Not a directory"):
        Disk(tmp_path).write(5)


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.keep is 0.*--checkpoint\.keep 1"):
        Disk(tmp_path, keep=0)


def test_a_learner_state_of_another_format_is_refused(tmp_path: Path) -> None:
    found = {"format": 2, "indexes": {}}
    digest = xxhash.xxh3_64_hexdigest(json.dumps(found, sort_keys=True).encode())
    (tmp_path / state.ROOT).write_text(json.dumps({"state": found, "xxh3": digest}))
    with pytest.raises(ValueError, match="has format 2, this code reads 1: resume with"):
        state.load(tmp_path, {}, Group(torch.device("cpu")))
