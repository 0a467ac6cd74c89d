"""Memory of every role over a long run: it must not grow, and nothing may spill.

python jobs/soak.py [--section.field value …]

The tiny demonstration, 300 iterations (flags as of jobs/ppo.py override). Resident memory is
sampled for each process; after the 50th iteration a line is fitted to each role's samples. The
last line is JSON: role → MB at the start of that window, at its end, growth of the line over it.
"""

import json
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import ray
from ray._private.internal_api import node_stats

from rlhf_ray import cli
from rlhf_ray.observe.console import Console
from rlhf_ray.observe.metrics import read_metrics
from rlhf_ray.training.pipeline import run

EVERY = 1.0
WARM = 50  # iterations that are not looked at
ROLES = ("Generator", "Reference", "Reward", "Learner", "Control")
DEFAULTS = (
    *("--model.hidden=64", "--model.layers=2", "--model.vocab=700"),
    *("--sft.epochs=0.2", "--sft.batch-tokens=8192", "--rm.epochs=0.2", "--rm.batch-lists=32"),
    *("--ppo.iterations=300", "--ppo.prompts=32", "--ppo.epochs=2", "--ppo.minibatches=2"),
    *("--rollout.max-response-tokens=16", "--rollout.shard-prompts=8", "--rollout.kv-cache-mb=64"),
    *("--data.max-prompt-tokens=48", "--evaluate.prompts=8", "--evaluate.every=50"),
    "--checkpoint.every=25",
)


class Sampler(threading.Thread):
    """Resident bytes of this process and of each actor below its Ray, while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self.spilled, self.stored = 0, 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample until `end`."""
        while not self._ended.wait(EVERY):
            now = time.time()
            for role, process in _processes():
                try:
                    self.samples[role].append((now, process.memory_info().rss))
                except psutil.NoSuchProcess:
                    continue
            self._look_at_the_store()

    def end(self) -> None:
        """Take no more samples."""
        self._ended.set()
        self.join()

    def _look_at_the_store(self) -> None:
        for node in ray.nodes() if ray.is_initialized() else ():
            where = node["NodeManagerAddress"], node["NodeManagerPort"]
            store = node_stats(*where, include_memory_info=False).store_stats
            self.spilled = max(self.spilled, store.spilled_bytes_total)
            self.stored = max(self.stored, store.object_store_bytes_used)


def _processes() -> list[tuple[str, psutil.Process]]:
    """(role, process) of this one and of its Ray's actors."""
    here = psutil.Process()
    found = [("driver", here)]
    for process in here.children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        for role in ROLES:
            if re.match(rf"ray::{role}\w*Actor", title):
                found.append((role.lower(), process))
        if "raylet/raylet" in title or "gcs_server" in title:
            found.append((Path(title.split()[0]).name, process))
    return found


def growth(samples: list[tuple[float, int]], since: float) -> dict[str, float]:
    """MB at both ends of the line through the samples after `since`, and their ratio less one."""
    times, sizes = np.array([s for s in samples if s[0] >= since], dtype=np.float64).T
    slope, level = np.polyfit(times - times[0], sizes, 1)
    first, last = level, level + slope * (times[-1] - times[0])
    return {"mb_first": first / 1e6, "mb_last": last / 1e6, "growth": last / first - 1}


def result(rows: list[dict[str, Any]], sampler: Sampler) -> dict[str, Any]:
    """Figures over the iterations after the first WARM."""
    since = next(row["time"] for row in rows if row["step"] == WARM)
    return {
        "iterations": rows[-1]["step"],
        "window_s": rows[-1]["time"] - since,
        "roles": {role: growth(found, since) for role, found in sorted(sampler.samples.items())},
        "spilled_bytes": sampler.spilled,
        "most_stored_mb": sampler.stored / 1e6,
    }


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="soak") as root:
        flags = [*DEFAULTS, f"--run.root={root}", "--run.name=soak", *sys.argv[1:]]
        config = cli.parse(flags, prog="jobs/soak.py", description=__doc__ or "").config
        if config.ppo.iterations <= WARM:
            raise ValueError(
                f"--ppo.iterations is {config.ppo.iterations}, and the first {WARM} are not looked "
                f"at: give more"
            )
        sampler = Sampler()
        sampler.start()
        run(config, resume=False, console=Console("soak", quiet_s=20))
        sampler.end()
        rows = [row for row in read_metrics(config.dir) if row["phase"] == "ppo"]
        print(json.dumps(result(rows, sampler)))
    return 0


if __name__ == "__main__":
    cli.run(main)
