"""Simulated time and simulated generators, to drive the real pool, ledger and reactor without Ray.

```
  Reactor ──wait(refs, timeout)──▶ World: the next event, no later than that ──▶ refs that are ready
  GeneratorPool ──ready, beat, load, generate, void, kill──▶ SimGenerator ──▶ events of the World
```
A response's length is long-tailed and follows from its rollout's id, as it does with real sampling
seeds; who dies, wedges or answers late follows from the seed and the generator's name.
"""

import heapq
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError

from rlhf_ray.actors.generator import Order, ShardMeta, Vitals
from rlhf_ray.data.ids import RolloutKey, Version, rollout_id, stable_hash
from rlhf_ray.weights.buckets import Published

NEVER = math.inf
_NORMAL = NormalDist()


class SimRef:
    """What a simulated remote call returns at once."""

    __slots__ = ("error", "fulfilled", "value")

    def __init__(self) -> None:
        self.fulfilled = False
        self.value: Any = None
        self.error: Exception | None = None


class World:
    """The clock and what is to happen. `host_seconds`: CPU seconds spent in simulating it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.host_seconds = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._fulfilled: list[SimRef] = []

    def clock(self) -> float:
        """Simulated seconds."""
        return self.now

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Run `call` so many simulated seconds from now; never, where that is infinite."""
        if seconds < NEVER:
            self._order += 1
            heapq.heappush(self._events, (self.now + seconds, self._order, call))

    def fulfil(self, ref: SimRef, value: Any = None, error: Exception | None = None) -> None:
        """Give `ref` its value or its error; nothing where it has one."""
        if not ref.fulfilled:
            ref.fulfilled, ref.value, ref.error = True, value, error
            self._fulfilled.append(ref)

    def later(self, seconds: float, value: Any = None, error: Exception | None = None) -> SimRef:
        """A reference that is fulfilled so many seconds from now."""
        ref = SimRef()
        self.after(seconds, lambda: self.fulfil(ref, value, error))
        return ref

    def wait(self, refs: Sequence[SimRef], timeout: float) -> list[SimRef]:
        """The refs of `refs` that are fulfilled; time passes up to the first, or by `timeout`."""
        began = time.thread_time()
        until = self.now + timeout
        waited = set(refs)
        while not (ready := self._ready_of(waited)) and self.now < until:
            self._happen(until)
        self.host_seconds += time.thread_time() - began
        return ready

    def away(self, seconds: float) -> None:
        """Time passes, and nobody looks."""
        until = self.now + seconds
        while self.now < until:
            self._happen(until)

    def get(self, ref: SimRef) -> Any:
        """The value of a fulfilled reference; raises its error as Ray does."""
        assert ref.fulfilled, "get before wait said that it is ready"
        if isinstance(ref.error, RayError):
            raise ref.error
        if ref.error is not None:
            raise RayTaskError("simulated", "", ref.error)
        return ref.value

    def _happen(self, until: float) -> None:
        """The next event, or `until` where none is before."""
        if self._events and self._events[0][0] <= until:
            self.now, _, call = heapq.heappop(self._events)
            call()
        else:
            self.now = until

    def _ready_of(self, waited: set[SimRef]) -> list[SimRef]:
        """What is fulfilled and waited for; what was abandoned is forgotten, so memory is flat."""
        ready = [ref for ref in self._fulfilled if ref in waited]
        self._fulfilled.clear()
        return ready


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast everything is, in seconds. Lengths are log-normal tokens, cut at `longest`."""

    start: float = 8.0
    load: float = 0.5
    token: float = 0.02
    median_length: float = 200.0
    sigma: float = 0.8
    longest: int = 1024
    beat: float = 0.002
    score: float = 0.5


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong. mean_life: seconds between the faults of one generator.

    A fault is a death, an engine that wedges (its process answers), a process that is stopped, or
    the loss of a shard in hand, of which nobody is told. slow_beat: share of heartbeats that take
    `slow_beat_s`. bad_start: share of starts that fail.
    """

    mean_life: float = NEVER
    slow_beat: float = 0.0
    slow_beat_s: float = 5.0
    bad_start: float = 0.0
    lost_scores: float = 0.0


def response_length(run_seed: int, key: RolloutKey, pace: Pace) -> int:
    """Tokens of one response: exp(N(ln median, σ²)), at least 1, at most `longest`."""
    uniform = (stable_hash(run_seed, rollout_id(key)) + 0.5) / 2**63
    length = pace.median_length * math.exp(pace.sigma * _NORMAL.inv_cdf(uniform))
    return max(1, min(pace.longest, round(length)))


@dataclass(slots=True)
class _Work:
    """One shard on its way. `finish` moves when the engine pauses to load."""

    ref: SimRef
    order: Order
    finish: float
    oldest: Version
    tokens: int


class SimGenerator:
    """A generator as the pool's `Handle`, and what is to be known of it afterwards.

    working: seconds with a shard in hand.
    """

    def __init__(self, world: World, name: str, pace: Pace, faults: Faults, seed: int) -> None:
        self.name = name
        self._world, self._pace, self._faults, self._seed = world, pace, faults, seed
        self._random = random.Random(stable_hash(seed, name))
        self._refs: set[SimRef] = set()
        self._work: list[_Work] = []
        self._dead, self._stopped_at, self._wedged_at = False, NEVER, NEVER
        self._loads_since = NEVER
        self._marked = world.now
        self.ready_at, self.ended_at = NEVER, NEVER
        self.version: Version | None = None
        self.working = 0.0

    # What the pool calls

    def ready(self) -> SimRef:
        """Fulfilled when it has started, or with the error that it died of."""
        bad = self._random.random() < self._faults.bad_start
        return self._call(
            self._random.uniform(0.7, 1.5) * self._pace.start, self._die if bad else self._start
        )

    def beat(self) -> SimRef:
        """Vitals, unless the process is stopped."""
        slow = self._random.random() < self._faults.slow_beat
        return self._call(self._faults.slow_beat_s if slow else self._pace.beat, self._vitals)

    def load(self, published: Published) -> SimRef:
        """Take up a version between two steps; what is on its way is later by that much."""
        self._loads_since = self._world.now

        def loaded() -> Version:
            self.version, self._loads_since = published.version, NEVER
            return published.version

        seconds = self._random.uniform(0.8, 1.5) * self._pace.load
        self.working -= seconds if self._work else 0.0
        for work in self._work:
            work.finish += seconds
        return self._call(seconds, loaded)

    def generate(self, order: Order) -> tuple[SimRef, SimRef]:
        """(table, meta), once the longest response of the shard is done."""
        began = time.thread_time()
        assert self.version is not None, f"{self.name} has work and no weights"
        lengths = [response_length(self._seed, key, self._pace) for key in order.keys]
        ref, now = SimRef(), self._world.now
        finish = now + max(lengths) * self._pace.token
        self._mark()
        work = _Work(ref, order, finish, self.version, sum(lengths))
        self._work.append(work)
        self._refs.add(ref)
        self._world.after(finish - now, lambda: self._finish(work))
        self._world.host_seconds += time.thread_time() - began
        return SimRef(), ref

    def void(self, incarnation: int) -> SimRef:
        """Forget what was ordered before."""
        self._mark()
        self._work = [work for work in self._work if work.order.incarnation >= incarnation]
        return self._call(self._pace.beat, lambda: None)

    def rest(self) -> SimRef:
        """It has no GPU to give up."""
        return self._call(self._pace.beat, lambda: None)

    def lacking(self) -> str:
        """It has room."""
        return ""

    def kill(self) -> None:
        """End it; nobody waits for it any more."""
        self._end()

    # What happens to it

    def _call(self, seconds: float, answer: Callable[[], Any]) -> SimRef:
        """A reference to what `answer` says then; never fulfilled by a process that is stopped."""
        ref = SimRef()
        self._refs.add(ref)

        def reply() -> None:
            if not self._dead and self._stopped_at == NEVER:
                self._refs.discard(ref)
                self._world.fulfil(ref, answer())

        if self._dead:
            self._world.fulfil(ref, error=RayActorError())
        else:
            self._world.after(seconds, reply)
        return ref

    def _start(self) -> Vitals:
        self.ready_at = self._marked = self._world.now
        if self._faults.mean_life < NEVER:
            life = self._random.expovariate(1 / self._faults.mean_life)
            faults = [self._die, self._wedge, self._stop, self._forget]
            self._world.after(life, self._random.choice(faults))
        return self._vitals()

    def _vitals(self) -> Vitals:
        silent = max(0.0, self._world.now - min(self._wedged_at, self._loads_since))
        return Vitals(silent, len(self._work), 0, self.version, 0, "simulated")

    def _finish(self, work: _Work) -> None:
        if self._dead or min(self._stopped_at, self._wedged_at) < NEVER or work not in self._work:
            return
        if work.finish > self._world.now + 1e-9:
            self._world.after(work.finish - self._world.now, lambda: self._finish(work))
            return
        self._mark()
        self._work.remove(work)
        self._refs.discard(work.ref)
        meta = ShardMeta(len(work.order.keys), work.tokens, work.oldest)
        self._world.fulfil(work.ref, meta)

    def _die(self) -> None:
        refs, self._refs = self._refs, set()
        self._end()
        for ref in refs:
            self._world.fulfil(ref, error=RayActorError())

    def _wedge(self) -> None:
        self._mark()
        self._wedged_at = self._world.now

    def _forget(self) -> None:
        self._mark()
        del self._work[:1]

    def _stop(self) -> None:
        self._mark()
        self._stopped_at = self._world.now

    def _end(self) -> None:
        if not self._dead:
            self._mark()
            self._dead, self.ended_at = True, self._world.now
            self._work.clear()
            self._refs.clear()

    def _mark(self) -> None:
        """Add up the time since the last change, in which it worked or not."""
        works = self._work and min(self._stopped_at, self._wedged_at) == NEVER and not self._dead
        self.working += self._world.now - self._marked if works else 0.0
        self._marked = self._world.now

    def measure(self) -> tuple[float, float]:
        """(seconds of work, seconds since it was ready), up to now or its end."""
        self._mark()
        return self.working, max(0.0, min(self._world.now, self.ended_at) - self.ready_at)
