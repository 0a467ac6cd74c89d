"""The generator pool: reconciles what is there with what is wished, and keeps every generator fed.

A generator is known here by its handle alone (see `Handle`), so the pool runs over Ray actors and over
a simulation alike. It follows `lifecycle`, hands out the ledger's leases, and never waits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray.exceptions import RayError

from rlhf_ray.actors.generator import Order, ShardMeta, Vitals
from rlhf_ray.data.ids import RolloutKey, Version
from rlhf_ray.orchestration.ledger import Lease, Ledger
from rlhf_ray.orchestration.lifecycle import Event, Life, RestartBudget, State
from rlhf_ray.orchestration.reactor import Outcome, Reactor

BEAT_EVERY = 1.0
ABORT_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Published:
    """A version that generators can pull: who has this needs nobody's help to load it."""

    version: Version
    manifest: Any
    buckets: tuple[Any, ...]
    bytes: int


class Handle(Protocol):
    """One generator, as the pool sees it; every call returns a reference at once."""

    def ready(self) -> Any: ...
    def beat(self) -> Any: ...
    def load(self, published: Published) -> Any: ...
    def generate(self, order: Order) -> tuple[Any, Any]: ...
    def abort(self, keys: Sequence[RolloutKey]) -> Any: ...
    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Deadlines in seconds; depth: shards that one generator holds at most."""

    max_staleness: int
    depth: int
    start_timeout: float
    shard_timeout: float
    heartbeat_timeout: float


@dataclass
class Member:
    """One generator: its life, its handle, and what is under way with it."""

    life: Life
    handle: Handle
    leases: dict[int, Lease] = field(default_factory=dict)
    beating: bool = False
    loading: Version | None = None
    vitals: Vitals | None = None


class GeneratorPool:
    """All generators of a run.

    spawn: makes a generator and returns its handle. order_of: the prompts of some rollouts.
    on_commit(lease, table reference, meta): a shard was committed.
    """

    def __init__(
        self,
        reactor: Reactor,
        ledger: Ledger,
        *,
        spawn: Callable[[str], Handle],
        order_of: Callable[[tuple[RolloutKey, ...]], Order],
        on_commit: Callable[[Lease, Any, ShardMeta], None],
        settings: PoolSettings,
        log: Callable[[str], None],
    ) -> None:
        self._reactor, self._ledger = reactor, ledger
        self._spawn, self._order_of, self._on_commit = spawn, order_of, on_commit
        self._settings, self._log = settings, log
        self._members: dict[str, Member] = {}
        self._published: Published | None = None
        self._budget = RestartBudget()
        self._not_before = 0.0
        self._born = 0
        self._served = False
        self.wanted = 0
        self.restarts = 0
        reactor.every(BEAT_EVERY, self._listen)
        reactor.every(0.1, self.reconcile)

    # What others ask of the pool

    def scale(self, wanted: int) -> None:
        """Wish for this many generators; made and drained as the driver goes."""
        if wanted != self.wanted:
            self.wanted = wanted
            self.reconcile(self._reactor.clock())

    def publish(self, published: Published) -> None:
        """There is a new version: everyone is to load it."""
        self._published = published
        for member in self._members.values():
            if member.life.state in (State.SERVING, State.STALE):
                member.life.happen(Event.OUTDATED)
                self._load(member)

    def dispatch(self) -> None:
        """Give pending shards to serving generators, the least busy first."""
        while idle := [m for m in self._members.values() if self._has_room(m)]:
            member = min(idle, key=lambda m: len(m.leases))
            lease = self._ledger.lease(
                member.life.name,
                member.life.version,
                deadline=self._reactor.clock() + self._settings.shard_timeout,
                max_staleness=self._settings.max_staleness,
            )
            if lease is None:
                return
            self._order(member, lease)

    def members(self) -> list[Member]:
        """Everyone who is not dead."""
        return list(self._members.values())

    def serving(self) -> int:
        """How many hold the current version."""
        return sum(m.life.state is State.SERVING for m in self._members.values())

    def shutdown(self) -> None:
        """Kill all generators."""
        for member in list(self._members.values()):
            self._remove(member)

    # Reconciliation

    def reconcile(self, now: float) -> None:
        """Make what is missing, drain what is too much, remove what is drained, silent or late."""
        for lease in self._ledger.expired(now):
            if member := self._members.get(lease.generator):
                self._condemn(member, f"shard not finished in {self._settings.shard_timeout:.0f} s")
        for member in list(self._members.values()):
            if member.life.is_silent(
                now,
                start_timeout=self._settings.start_timeout,
                heartbeat_timeout=self._settings.heartbeat_timeout,
            ):
                self._condemn(member, f"silent for {now - member.life.last_heard:.0f} s")
            elif member.life.state is State.DRAINING and not member.leases:
                member.life.happen(Event.DRAINED)
                self._remove(member)
        counted = [m for m in self._members.values() if m.life.state is not State.DRAINING]
        for member in counted[self.wanted :]:
            member.life.happen(Event.DRAIN)
        if now >= self._not_before:
            for _ in range(self.wanted - len(counted)):
                self._make(now)
        self.dispatch()

    def _make(self, now: float) -> None:
        name = f"generator-{self._born}"
        self._born += 1
        member = Member(Life(name, now), self._spawn(name))
        self._members[name] = member
        self._reactor.when(
            member.handle.ready(),
            lambda outcome: self._on_ready(member, outcome),
            who=name,
            what="start",
            timeout=self._settings.start_timeout,
        )

    def _on_ready(self, member: Member, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._died(member, outcome.error)
            return
        member.vitals = outcome.value
        member.life.heard(self._reactor.clock())
        if member.life.state is State.STARTING:
            member.life.happen(Event.READY)
            self._load(member)

    # Versions

    def _load(self, member: Member) -> None:
        """Start loading the current version, unless a load is under way: its end looks again."""
        published = self._published
        if published is None or member.loading is not None:
            return
        member.loading = published.version
        self._reactor.when(
            member.handle.load(published),
            lambda outcome: self._on_loaded(member, outcome),
            who=member.life.name,
            what=f"load version {published.version}",
            timeout=self._settings.start_timeout,
        )

    def _on_loaded(self, member: Member, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._died(member, outcome.error)
            return
        member.loading, member.life.version = None, outcome.value
        if member.life.state is not State.STALE:
            return
        if outcome.value == self._published.version:
            member.life.happen(Event.LOADED)
            self._served = True
            self.dispatch()
        else:
            self._load(member)

    # Shards

    def _has_room(self, member: Member) -> bool:
        return member.life.state is State.SERVING and len(member.leases) < self._settings.depth

    def _order(self, member: Member, lease: Lease) -> None:
        member.leases[lease.lease_id] = lease
        table, meta = member.handle.generate(self._order_of(self._ledger.keys(lease)))
        self._reactor.when(
            meta,
            lambda outcome: self._on_shard(member, lease, table, outcome),
            who=member.life.name,
            what=f"shard {lease.shard} of step {lease.batch.step}",
            timeout=self._settings.shard_timeout + ABORT_TIMEOUT,
        )

    def _on_shard(self, member: Member, lease: Lease, table: Any, outcome: Outcome) -> None:
        member.leases.pop(lease.lease_id, None)
        if isinstance(outcome.error, ValueError):
            raise outcome.error
        if outcome.error is not None:
            self._ledger.release(lease)
            self._died(member, outcome.error)
            return
        member.life.heard(self._reactor.clock())
        if self._ledger.commit(lease, outcome.value.oldest.incarnation, table):
            self._on_commit(lease, table, outcome.value)
        self.dispatch()

    # Health

    def _listen(self, now: float) -> None:
        for member in self._members.values():
            if member.beating or member.life.state in (State.STARTING, State.SUSPECT):
                continue
            member.beating = True
            self._reactor.when(
                member.handle.beat(),
                lambda outcome, member=member: self._on_beat(member, outcome),
                who=member.life.name,
                what="heartbeat",
                timeout=self._settings.heartbeat_timeout * 2,
            )

    def _on_beat(self, member: Member, outcome: Outcome) -> None:
        member.beating = False
        if isinstance(outcome.error, TimeoutError):
            return  # `is_silent` judges
        if outcome.error is not None:
            self._died(member, outcome.error)
            return
        member.vitals = outcome.value
        if outcome.value.silent_s < self._settings.heartbeat_timeout:
            member.life.heard(self._reactor.clock())

    def _condemn(self, member: Member, why: str) -> None:
        member.life.happen(Event.SILENT)
        self._died(member, TimeoutError(f"{member.life.name}: {why}"))

    def _died(self, member: Member, error: Exception) -> None:
        """Take its leases back and forget it; another is made when the budget allows."""
        if member.life.state is State.DEAD:
            return
        draining = member.life.state is State.DRAINING
        member.life.last_error = str(error)
        member.life.happen(Event.DIED)
        self._remove(member)
        if draining:
            return
        if not self._served and not isinstance(error, (TimeoutError, RayError)):
            raise RuntimeError(f"no generator could be started: {error}") from error
        self.restarts += 1
        again = self._budget.died(self._reactor.clock())
        self._log(f"{member.life.name} died ({_first_line(error)}); its shards go to others")
        if again is not None:
            self._not_before = again
            return
        self.wanted = max(0, self.wanted - 1)
        self._log(f"{self._budget.deaths} deaths in a row: going on with {self.wanted} generators")
        if self.wanted == 0:
            raise RuntimeError(f"every generator has died, the last of: {error}") from error

    def _remove(self, member: Member) -> None:
        for lease in list(member.leases.values()):
            self._ledger.release(lease)
        member.leases.clear()
        self._members.pop(member.life.name, None)
        self._reactor.forget(member.life.name)
        member.handle.kill()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
