"""The one thread that owns an engine: it steps it, and runs everybody else's calls between steps.

So requests batch continuously, a call never waits for a batch to end, and the heartbeat is the
thread's own: it stops when the engine wedges.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.generators.protocol import Completion, EngineDead, Generator, Request

IDLE_BEAT = 0.2  # seconds between beats of an idle engine


@dataclass
class _Shard:
    """Requests that were submitted together, answered together."""

    missing: set[int]
    epoch: int
    future: Future
    done: dict[int, Completion] = field(default_factory=dict)


class EngineThread:
    """Runs `make()` and steps the engine it returns until `close`.

    on_failure: called once with the exception that ended the engine, after every caller got it.
    """

    def __init__(
        self, make: Callable[[], Generator], *, on_failure: Callable[[BaseException], None]
    ) -> None:
        self._make, self._on_failure = make, on_failure
        self._commands: queue.SimpleQueue[tuple[Callable[[Generator], Any], Future] | None]
        self._commands = queue.SimpleQueue()
        self._shards: dict[int, _Shard] = {}
        self._epoch = 0
        self._failure: BaseException | None = None
        self._lock = threading.Lock()  # nothing is queued once the engine has ended
        self._beat = time.monotonic()
        self.tokens = 0
        self.started: Future = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[Generator], Any]) -> Any:
        """Run `function(engine)` between two steps and return what it returns."""
        return self._send(function).result()

    def generate(self, requests: Sequence[Request], *, epoch: int = 0) -> list[Completion]:
        """Complete `requests`; returns when all of them are done, in the order given.

        Raises CancelledError where their epoch is void by then.
        """
        shard = _Shard({request.rollout_id for request in requests}, epoch, Future())

        def submit(engine: Generator) -> None:
            if epoch < self._epoch:
                shard.future.cancel()
                return
            assert shard.missing.isdisjoint(self._shards), "a rollout is being generated already"
            engine.submit(requests)
            self._shards.update(dict.fromkeys(shard.missing, shard))

        self._send(submit).result()
        done = shard.future.result()
        return [done[request.rollout_id] for request in requests]

    def void(self, epoch: int) -> None:
        """Forget the requests of earlier epochs, also those that have yet to arrive."""

        def forget(engine: Generator) -> None:
            self._epoch = epoch
            gone = [key for key, shard in self._shards.items() if shard.epoch < epoch]
            engine.abort(gone)
            for rollout_id in gone:
                self._shards.pop(rollout_id).future.cancel()

        self.call(forget)

    def silent_for(self) -> float:
        """Seconds since the thread last came round."""
        return time.monotonic() - self._beat

    def in_flight(self) -> int:
        """Rollouts that are being generated or wait to be."""
        return len(self._shards)

    def close(self) -> None:
        """End the engine after the step that runs now."""
        self._commands.put(None)
        self._thread.join(timeout=10)

    def _send(self, function: Callable[[Generator], Any]) -> Future:
        future: Future = Future()
        with self._lock:
            if self._failure is not None:
                raise RuntimeError(f"the engine has ended: {self._failure}") from self._failure
            self._commands.put((function, future))
        return future

    def _run(self) -> None:
        try:
            engine = self._make()
            self.started.set_result(None)
            while self._serve(engine):
                self._step(engine)
            engine.close()
            self._end(EngineDead("it was closed"))
        except BaseException as error:  # whatever ends the engine ends its process
            self._end(error)
            self._on_failure(error)

    def _serve(self, engine: Generator) -> bool:
        """Run the commands that wait; block a little where there is nothing else to do."""
        block = not engine.has_work()
        while True:
            self._beat = time.monotonic()
            try:
                command = self._commands.get(block=block, timeout=IDLE_BEAT)
            except queue.Empty:
                return True
            if command is None:
                return False
            self._execute(engine, *command)
            block = False

    def _execute(
        self, engine: Generator, function: Callable[[Generator], Any], future: Future
    ) -> None:
        try:
            future.set_result(function(engine))
        except ValueError as error:  # a refused request: the engine itself is whole
            future.set_exception(error)
        except BaseException as error:
            future.set_exception(error)
            raise

    def _step(self, engine: Generator) -> None:
        if not engine.has_work():
            return
        for completion in engine.step():
            shard = self._shards.pop(completion.rollout_id, None)
            if shard is None:
                continue
            self.tokens += len(completion.response_token_ids)
            shard.done[completion.rollout_id] = completion
            shard.missing.discard(completion.rollout_id)
            if not shard.missing:
                shard.future.set_result(shard.done)

    def _end(self, error: BaseException) -> None:
        """Everybody who waits gets `error`."""
        with self._lock:
            self._failure = error
        if not self.started.done():
            self.started.set_exception(error)
        # A ValueError would tell a caller that its own request was refused: wrap it.
        refuses = isinstance(error, ValueError)
        of_callers = EngineDead(f"ValueError: {error}") if refuses else error
        for shard in self._shards.values():
            if not shard.future.done():
                shard.future.set_exception(of_callers)
        while not self._commands.empty():
            if (command := self._commands.get()) is not None:
                command[1].set_exception(of_callers)
