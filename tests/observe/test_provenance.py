"""provenance.json holds what a run was made of."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import xxhash

from rlhf_ray.observe.provenance import config_hash, git_commit, lock_hash, write_provenance


def test_it_holds_hashes_versions_and_hardware(tmp_path: Path) -> None:
    data = tmp_path / "prompts.txt"
    data.write_text("一行\n")
    config = {"ppo": {"iterations": 3}, "run": {"seed": 1}}
    write_provenance(tmp_path / "run", config, data_files=[data], threads={"learner": 2})
    found = json.loads((tmp_path / "run" / "provenance.json").read_text())
    expected = xxhash.xxh3_128(data.read_bytes()).hexdigest()
    assert found["data"] == {str(data): {"bytes": 7, "xxh3": expected}}
    assert found["config_sha256"] == config_hash({"run": {"seed": 1}, "ppo": {"iterations": 3}})
    assert found["packages"]["torch"].startswith("2.") and found["packages"]["ray"]
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["memory_gb"] > 0
    assert found["threads"] == {"learner": 2}
    assert found["command"]


def test_a_directory_is_known_by_its_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    for name in ("config.json", "part/weights.safetensors", ".cache/lock", "part/.hidden"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
    found = write_provenance(tmp_path / "run", {}, data_files=[model])["data"]
    names = ("config.json", "part/weights.safetensors")
    assert list(found) == [str(model / name) for name in names]
    assert found[str(model / names[1])]["xxh3"] == xxhash.xxh3_128(names[1].encode()).hexdigest()


def test_a_resumed_run_keeps_its_earlier_starts(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_provenance(tmp_path, {"seed": seed})
    found = json.loads((tmp_path / "provenance.json").read_text())
    starts = [*found["earlier_starts"], found]
    assert [start["config_sha256"] for start in starts] == [
        config_hash({"seed": s}) for s in (1, 2, 3)
    ]
    assert all("earlier_starts" not in start for start in found["earlier_starts"])


def test_the_lock_is_known_by_its_content(tmp_path: Path) -> None:
    assert lock_hash(tmp_path) is None
    for name in ("cpu.lock", "gpu.lock"):
        (tmp_path / name).write_text(name)
    found = lock_hash(tmp_path)
    assert found is not None
    assert found["sha256"] == hashlib.sha256(found["name"].encode()).hexdigest()


def test_the_commit_is_gits_own_or_the_one_sent_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*command: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *command], check=True, capture_output=True
        )
        return done.stdout.decode().strip()

    monkeypatch.delenv("RLHF_RAY_COMMIT", raising=False)
    assert git_commit(tmp_path) is None
    monkeypatch.setenv("RLHF_RAY_COMMIT", "sent")
    assert git_commit(tmp_path) == "sent"
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    git("tag", "v1")
    head = git("rev-parse", "HEAD")
    assert git_commit(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == head + "+changes"


def test_a_missing_data_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_provenance(tmp_path, {}, data_files=[tmp_path / "absent.txt"])
