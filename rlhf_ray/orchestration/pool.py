"""The generator pool: reconciles what is there with what is wished, and keeps every generator fed.

A generator is known here by its handle alone (see `Handle`), so the pool runs over Ray actors and
over a simulation alike. It follows `lifecycle`, hands out the ledger's leases, and never waits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.exceptions import RayError

from rlhf_ray.actors.control import Standing
from rlhf_ray.actors.generator import Order, ShardMeta
from rlhf_ray.data.ids import Version
from rlhf_ray.orchestration.ledger import Lease, Ledger
from rlhf_ray.orchestration.lifecycle import Event, Life, RestartBudget, State
from rlhf_ray.orchestration.members import Handle, Idleness, Member, Places
from rlhf_ray.orchestration.reactor import Late, Outcome, Reactor, first_line
from rlhf_ray.weights.buckets import Published
from rlhf_ray.weights.object_store import VersionGone

BEAT_EVERY = 1.0
RECONCILE_EVERY = 0.1
MOST_DEPTH = 48
MOST_OVERDUE = 4  # generators that were late with one shard: it would be too much for any


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Deadlines in seconds; depth: shards that one generator holds at most (up to MOST_DEPTH)."""

    max_staleness: int
    depth: int
    start_timeout: float
    shard_timeout: float
    heartbeat_timeout: float


class Unplaced(RuntimeError):
    """There was no room for a generator in time."""


class GeneratorPool:
    """All generators of a run.

    spawn: makes a generator and returns its handle. order_of: what it is to generate for a lease.
    on_commit(lease, table reference, meta): a shard was committed. on_gone(version): nobody can
    load the current version any more.
    """

    def __init__(
        self,
        reactor: Reactor,
        ledger: Ledger,
        *,
        spawn: Callable[[str], Handle],
        order_of: Callable[[Lease], Order],
        on_commit: Callable[[Lease, Any, ShardMeta], None],
        on_gone: Callable[[Version], None],
        settings: PoolSettings,
        log: Callable[[str], None],
    ) -> None:
        self._reactor, self._ledger = reactor, ledger
        self._spawn, self._order_of = spawn, order_of
        self._on_commit, self._on_gone = on_commit, on_gone
        self._settings, self._log = settings, log
        self._members: dict[str, Member] = {}
        self._published: Published | None = None
        self._roomy: dict[
            str, Member
        ] = {}  # candidates: all with room for a shard; `dispatch` drops the others
        self._places = Places()
        self._depth = min(settings.depth, MOST_DEPTH)
        self._born = 0
        self._served = self._resting = False
        self.wanted = 0
        self.restarts = 0
        self.idleness = Idleness()
        reactor.every(BEAT_EVERY, self._listen)
        reactor.every(RECONCILE_EVERY, self.reconcile)
        reactor.every(0.0, lambda now: self.dispatch())

    # What others ask of the pool

    def scale(self, wanted: int) -> None:
        """Wish for this many generators; made and drained as the driver goes.

        Places that were given up are tried again, also where the number is the same.
        """
        self.wanted = wanted
        self._places.reset()
        self.reconcile(self._reactor.clock())

    def publish(self, published: Published) -> None:
        """There is a new version: everyone is to load it.

        One of another incarnation voids what is under way: the same rollouts are asked for again.
        """
        before, self._published, self._resting = self._published, published, False
        voided = before is not None and before.version.incarnation != published.version.incarnation
        for member in self._members.values():
            if voided:
                self._recall(member)
            if member.life.state in (State.SERVING, State.STALE):
                member.life.happen(Event.OUTDATED)
                self._load(member)

    def rest(self) -> None:
        """Return when everyone has given its GPU's memory up, or left the pool.

        One that starts is waited for first, and none is made before the next version.
        """
        self._resting = True
        self._reactor.pump_until(lambda: all(map(_is_settled, self._members.values())))
        awake = dict(self._members)

        def settled(name: str, outcome: Outcome) -> None:
            awake.pop(name).resting = False  # a fault shows in its heartbeats too

        for name, member in list(awake.items()):
            member.resting = True
            self._reactor.when(
                member.handle.rest(),
                partial(settled, name),
                who=name,
                what="sleep",
                timeout=self._settings.start_timeout,
            )
        # One that has left is forgotten by the reactor: it never settles.
        self._reactor.pump_until(lambda: awake.keys().isdisjoint(self._members))

    def dispatch(self) -> None:
        """Give pending shards to serving generators, the least busy first."""
        if not self._ledger.pending():
            return
        for held in range(self._depth):
            for name, member in list(self._roomy.items()):
                if not self._has_room(member):
                    del self._roomy[name]
                elif len(member.leases) == held and not self._feed(member):
                    return

    def members(self) -> list[Member]:
        """Everyone who is not dead."""
        return list(self._members.values())

    def serving(self) -> int:
        """How many hold the current version."""
        return sum(m.life.state is State.SERVING for m in self._members.values())

    def published_bytes(self) -> int:
        """Size of the version that generators are to hold; 0 before the first."""
        return self._published.bytes if self._published else 0

    def loaded(self) -> int:
        """How many hold a version, be it the current one or the one before."""
        return sum(m.life.version is not None for m in self._members.values())

    def standing(self) -> list[Standing]:
        """Every generator, and the places of those that are to be made later."""
        rows = [member.standing() for member in self._members.values()]
        return rows + self._places.standing(self._reactor.clock())

    def shutdown(self) -> None:
        """Kill all generators."""
        for member in list(self._members.values()):
            self._remove(member)

    # Reconciliation

    def reconcile(self, now: float) -> None:
        """Make what is missing, drain what is too much, remove what is drained or silent."""
        self.idleness.sample(self._members.values())
        for member in list(self._members.values()):
            if member.life.state is State.DRAINING and not member.leases:
                member.life.happen(Event.DRAINED)
                self._remove(member)
            elif member.life.is_silent(now, after=self._settings.heartbeat_timeout):
                self._condemn(member, f"silent for {now - member.life.last_heard:.0f} s")
        counted = [m for m in self._members.values() if m.life.state is not State.DRAINING]
        target = self.wanted - self._places.given_up
        for member in counted[target:]:
            member.life.happen(Event.DRAIN)
        if self._resting:  # places keep what they know of those that died in them
            return
        for budget in self._places.take(target - len(counted), now):
            self._make(now, budget)

    def _make(self, now: float, budget: RestartBudget) -> None:
        name = f"generator-{self._born}"
        self._born += 1
        member = Member(Life(name, now), self._spawn(name), budget)
        self._members[name] = member
        self._reactor.when(
            member.handle.ready(),
            partial(self._on_ready, member),
            who=name,
            what="start",
            timeout=self._settings.start_timeout,
        )

    def _on_ready(self, member: Member, outcome: Outcome) -> None:
        if outcome.error is not None:
            # Only after a timeout: the group of one that died looks unplaced too, for Ray is
            # placing it again.
            lacking = member.handle.lacking() if isinstance(outcome.error, Late) else ""
            self._died(member, Unplaced(lacking) if lacking else outcome.error)
            return
        member.vitals = outcome.value
        member.life.heard(self._reactor.clock())
        if member.life.state is State.STARTING:
            member.life.happen(Event.READY)
            self._load(member)

    # Versions

    def _load(self, member: Member) -> None:
        """Load the current version, unless a load or a recall is under way: its end looks again."""
        published = self._published
        if published is None or member.loading is not None or member.recalled:
            return
        member.loading = published.version
        self._reactor.when(
            member.handle.load(published),
            partial(self._on_loaded, member),
            who=member.life.name,
            what=f"load version {published.version}",
            timeout=self._settings.start_timeout,
        )

    def _on_loaded(self, member: Member, outcome: Outcome) -> None:
        assert self._published is not None, "nothing is loaded before it is published"
        if isinstance(outcome.error, VersionGone):
            gone, member.loading = member.loading, None
            if gone == self._published.version:
                self._log(f"{member.life.name}: version {gone} is gone; it waits for the next")
                self._on_gone(gone)
            elif member.life.state is State.STALE:
                self._load(member)
            return
        if outcome.error is not None:
            self._died(member, outcome.error)
            return
        first = member.life.version is None
        member.loading, member.life.version = None, outcome.value
        if member.life.state is not State.STALE:
            return
        if outcome.value != self._published.version:
            self._load(member)
            return
        member.life.loaded(self._reactor.clock())
        self._roomy[member.life.name] = member
        if first and self._served:
            seconds = self._reactor.clock() - member.life.born
            self._log(f"{member.life.name} serves, {seconds:.1f} s after it was asked for")
        self._served = True

    def _recall(self, member: Member) -> None:
        """Have it forget all that it works on; it loads nothing before that is done."""
        if not member.leases:
            return
        assert self._published is not None, "nothing is voided before it is published"
        self._take_back(member)
        member.recalled = True
        self._reactor.when(
            member.handle.void(self._published.version.incarnation),
            partial(self._on_recalled, member),
            who=member.life.name,
            what="void",
            timeout=self._settings.start_timeout,  # it may stand behind a load
        )

    def _on_recalled(self, member: Member, outcome: Outcome) -> None:
        member.recalled = False
        if outcome.error is not None:
            self._died(member, outcome.error)
        elif member.life.state is State.STALE:
            self._load(member)

    # Shards

    def _has_room(self, member: Member) -> bool:
        return member.life.state is State.SERVING and len(member.leases) < self._depth

    def _feed(self, member: Member) -> bool:
        """Give one more shard to `member`; False where none is left that it may serve."""
        version = member.life.version
        assert version is not None, f"{member.life.name} serves no version"
        lease = self._ledger.lease(
            member.life.name, version, max_staleness=self._settings.max_staleness
        )
        if lease is None:
            return False
        self._order(member, lease)
        return True

    def _order(self, member: Member, lease: Lease) -> None:
        member.leases[lease.lease_id] = lease
        table, meta = member.handle.generate(self._order_of(lease))
        self._reactor.when(
            meta,
            partial(self._on_shard, member, lease, table),
            who=member.life.name,
            what=f"shard {lease.shard} of step {lease.batch.step}",
            timeout=self._settings.shard_timeout,
        )

    def _on_shard(self, member: Member, lease: Lease, table: Any, outcome: Outcome) -> None:
        if member.leases.pop(lease.lease_id, None) is None:
            return  # taken back meanwhile
        self._roomy[member.life.name] = member
        if isinstance(outcome.error, ValueError):
            raise outcome.error
        if isinstance(outcome.error, Late):
            self._on_overdue(member, lease)
            return
        if outcome.error is not None:
            self._ledger.release(lease)
            self._died(member, outcome.error)
            return
        member.life.heard(self._reactor.clock())
        if self._ledger.commit(lease, outcome.value.oldest):
            member.done += 1
            self._on_commit(lease, table, outcome.value)

    def _on_overdue(self, member: Member, lease: Lease) -> None:
        """End the generator that is late; TimeoutError where the shard is late every time."""
        limit = self._settings.shard_timeout
        if (times := self._ledger.overdue(lease)) >= MOST_OVERDUE:
            raise TimeoutError(
                f"shard {lease.shard} of step {lease.batch.step} was not finished in {limit:g} s, "
                f"{times} times: give it longer (--cluster.shard-timeout-s), or make shards "
                f"smaller (--rollout.shard-prompts) or fewer at a time (--rollout.max-in-flight)"
            )
        self._condemn(member, f"shard not finished in {limit:.0f} s")

    # Health

    def _listen(self, now: float) -> None:
        for member in self._members.values():
            if member.beating or member.life.state in (State.STARTING, State.SUSPECT):
                continue
            member.beating = True
            self._reactor.when(
                member.handle.beat(),
                partial(self._on_beat, member),
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
        silent = 0.0 if member.engine_waits else outcome.value.silent_s
        member.life.heard(self._reactor.clock() - silent)

    def _condemn(self, member: Member, why: str) -> None:
        draining = member.life.state is State.DRAINING
        member.life.happen(Event.SILENT)
        self._died(member, TimeoutError(why), draining=draining)

    def _died(self, member: Member, error: Exception, *, draining: bool = False) -> None:
        """Take its leases back and forget it; another is made when the budget allows."""
        if member.life.state is State.DEAD:
            return
        draining = draining or member.life.state is State.DRAINING
        member.life.happen(Event.DIED)
        self._remove(member)
        if draining:
            return
        if not self._served and not isinstance(error, (TimeoutError, RayError)):
            raise ValueError(f"no generator could be started: {error}") from error
        now = self._reactor.clock()
        self.restarts += 1
        self._log(f"{member.life.name} died ({first_line(error)}); its shards go to others")
        member.budget.last_error = first_line(error)
        if self._places.vacate(member.budget, now, served=member.life.served(now)):
            return
        left = self.wanted - self._places.given_up
        self._log(f"{member.budget.deaths} deaths in a row: going on with {left} generators")
        if left <= 0:
            last = first_line(error)
            raise RuntimeError(f"every generator has died, the last of: {last}") from error

    def _remove(self, member: Member) -> None:
        self._take_back(member)
        self._members.pop(member.life.name, None)
        self._reactor.forget(member.life.name)
        member.handle.kill()

    def _take_back(self, member: Member) -> None:
        for lease in member.leases.values():
            self._ledger.release(lease)
        member.leases.clear()


def _is_settled(member: Member) -> bool:
    """Whether it holds a version, and none is on its way, which would wake its engine."""
    return member.life.version is not None and member.loading is None and not member.recalled
