"""Processes that call a user's function with a deadline; one that hangs or dies is replaced.

Each worker has a connection of its own, so that killing one at any moment harms no other. (Pools of
the standard library cannot kill a worker; in those that can, workers share a pipe and its locks.)
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

START_TIMEOUT_S = 240.0  # import of the user's module, which may load a model
_FAREWELL_S = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the function: the prompts and responses that are its arguments."""

    prompts: list[str]
    responses: list[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call gave: `items` (each a float, or the text of its fault), or else `fault`.

    hung: the fault is that it did not return in time.
    """

    items: list[float | str] | None = None
    fault: str | None = None
    hung: bool = False


class Worker:
    """One process, its connection, and the deadline of what it does now."""

    def __init__(self, target: str) -> None:
        self.connection, theirs = Pipe()
        path = os.pathsep.join([os.getcwd(), *filter(None, sys.path)])
        arguments = [str(theirs.fileno()), str(os.getpid()), target]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rlhf_ray.rewards.function_worker", *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is the parent's; its own children die with it
        )
        theirs.close()
        self.deadline = time.monotonic() + START_TIMEOUT_S

    def send(self, call: Call, *, timeout_s: float) -> bool:
        """Begin a call. False: the process has died since the last one, or was killed."""
        if self.connection.closed:
            return False
        self.deadline = time.monotonic() + timeout_s
        try:
            self.connection.send((call.prompts, call.responses))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self) -> tuple[str, Any] | None:
        """What the process says. None: it died."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None

    def kill(self) -> None:
        """End the process and those it started, now."""
        self.connection.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        """Let an idle process end by itself; one that does not is killed."""
        self.connection.close()
        try:
            self.process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def epitaph(self) -> str:
        """How the dead process ended."""
        code = self.process.wait()
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class FunctionPool:
    """`processes` workers for `target` (`module:function`). Used from one thread at a time.

    ValueError where the function cannot be imported: the value, the cause and the fix.
    """

    def __init__(self, target: str, *, processes: int, timeout_s: float) -> None:
        self._target, self._timeout_s = target, timeout_s
        self._workers: list[Worker] = []
        try:
            for _ in range(processes):
                self._workers.append(Worker(target))
            for worker in self._workers:
                self._await_ready(worker)
        except BaseException:  # also Ctrl-C: no process may stay
            self.kill()
            raise

    def run(self, calls: Sequence[Call], *, stop_at_fault: bool = False) -> list[Outcome | None]:
        """Outcomes in the order of `calls`. `stop_at_fault`: None for those not begun after one."""
        outcomes: list[Outcome | None] = [None] * len(calls)
        idle, begun, stop = list(range(len(self._workers))), 0, False
        busy: dict[int, int] = {}  # worker -> the call it makes
        try:
            while busy or (begun < len(calls) and not stop):
                while idle and begun < len(calls) and not stop:
                    slot, call = idle.pop(0), calls[begun]
                    busy[slot], begun = begun, begun + 1  # an interrupt may meet it as it begins
                    self._begin(slot, call)
                for slot in self._ended(busy):
                    outcomes[busy.pop(slot)] = outcome = self._outcome(slot)
                    stop |= stop_at_fault and (outcome.items is None or _faulty(outcome.items))
                    idle.append(slot)
        except BaseException:  # also Ctrl-C: an unread answer must not meet the next call
            for slot in busy:
                self._workers[slot].kill()  # `_begin` replaces it and awaits the new one
            raise
        return outcomes

    def pids(self) -> list[int]:
        """The processes, as they are now; one that an interrupt ended is replaced when called."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()

    def kill(self) -> None:
        """End all processes at once, whatever they do."""
        for worker in self._workers:
            worker.kill()

    def _begin(self, slot: int, call: Call) -> None:
        if not self._workers[slot].send(call, timeout_s=self._timeout_s):
            self._replace(slot)
            self._await_ready(self._workers[slot])
            if not self._workers[slot].send(call, timeout_s=self._timeout_s):
                raise ValueError(f"reward function {self._target!r} dies as soon as it is imported")

    def _ended(self, busy: dict[int, int]) -> list[int]:
        """Slots that answered, died or ran out of time."""
        by_connection = {self._workers[slot].connection: slot for slot in busy}
        left = min(self._workers[slot].deadline for slot in busy) - time.monotonic()
        ready = wait(list(by_connection), timeout=max(0.0, left))
        answered = [by_connection[c] for c in ready if isinstance(c, Connection)]
        now = time.monotonic()
        return answered or [slot for slot in busy if self._workers[slot].deadline <= now]

    def _outcome(self, slot: int) -> Outcome:
        worker = self._workers[slot]
        if not worker.connection.poll():
            self._replace(slot)
            self._await_ready(self._workers[slot])
            return Outcome(fault=f"did not return within {self._timeout_s:g} s", hung=True)
        answer = worker.receive()
        if answer is None:
            fault = f"ended its process ({worker.epitaph()})"
            self._replace(slot)
            self._await_ready(self._workers[slot])
            return Outcome(fault=fault)
        kind, content = answer
        return Outcome(items=content) if kind == "scores" else Outcome(fault=content)

    def _replace(self, slot: int) -> None:
        self._workers[slot].kill()
        self._workers[slot] = Worker(self._target)

    def _await_ready(self, worker: Worker) -> None:
        left = max(0.0, worker.deadline - time.monotonic())
        if not worker.connection.poll(left):
            fault = f"did not load within {START_TIMEOUT_S:g} s"
        else:
            answer = worker.receive()
            if answer is not None and answer[0] == "ready":
                return
            fault = answer[1] if answer else f"ended the process as it loaded ({worker.epitaph()})"
        raise ValueError(f"reward function {self._target!r} cannot be used: {fault}")


def _faulty(items: list[float | str]) -> bool:
    return any(isinstance(item, str) or not abs(item) < float("inf") for item in items)
