"""Peak memory of a set of processes, as proportional set size: shared pages are counted once."""

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

GROWTH = 0.01  # of resident memory, below which shares are not counted again


def process_tree(pid: int | None = None) -> set[int]:
    """A process (this one by default) and all that descend from it."""
    try:
        root = psutil.Process(pid or os.getpid())
        return {root.pid, *(child.pid for child in root.children(recursive=True))}
    except psutil.NoSuchProcess:
        return set()


def ray_session(session_dir: str) -> set[int]:
    """Processes of one Ray session on this node: those that name its directory, and their trees.

    Needed where the session is not this process's child: under `ray job submit`.
    """
    name = Path(session_dir).name
    children: defaultdict[int, list[int]] = defaultdict(list)
    found: list[int] = []
    for process in psutil.process_iter(["ppid", "cmdline"]):
        children[process.info["ppid"]].append(process.pid)
        if any(name in part for part in process.info["cmdline"] or ()):
            found.append(process.pid)
    pids: set[int] = set()
    while found:
        pid = found.pop()
        if pid not in pids:
            pids.add(pid)
            found += children[pid]
    return pids


def pss_mb(pids: Iterable[int]) -> float:
    """Sum of the proportional set sizes in MB (10⁶ bytes); one that has ended counts nothing."""
    total_kb = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kb * 1024 / 1e6


def rss_pages(pids: Iterable[int]) -> int:
    """Sum of resident pages, shared ones once for each process: cheap, the kernel keeps it."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return total


class PssSampler:
    """Samples in a thread while it is open.

        with PssSampler() as memory:
            ...
        print(memory.peak_mb)

    Args:
        pids_fn: whom to count, asked again at each sample; this process's tree by default.
        interval: seconds between looks. The kernel takes about 10 ms a GB to count shares, so it is
            asked only where resident memory has grown since.
    """

    def __init__(
        self, pids_fn: Callable[[], Iterable[int]] = process_tree, interval: float = 2.0
    ) -> None:
        self.peak_mb = 0.0
        self._highest = 0
        self._pids_fn = pids_fn
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pss-sampler", daemon=True)

    def __enter__(self) -> "PssSampler":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()  # it takes a last sample

    def _run(self) -> None:
        while True:
            self._look()
            if self._stop.wait(self._interval):
                self._look()
                return

    def _look(self) -> None:
        pids = set(self._pids_fn())
        pages = rss_pages(pids)
        if pages > self._highest:
            self._highest = int(pages * (1 + GROWTH))
            self.peak_mb = max(self.peak_mb, pss_mb(pids))
