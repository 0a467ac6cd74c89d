"""Who owes which rollouts: every shard is leased, committed and consumed once. Pure Python.

PENDING → LEASED → COMMITTED → SCORED → consumed. A shard is PENDING again when its lease is
handed back (its generator died, was ended for silence or a missed deadline, or was recalled), and
when its rows are too old or lost. A generator that drains finishes the shards that it holds. A
commit is idempotent, and one under a lease that is no longer current is refused.

Each call costs what it changes, not what is open: thousands of shards may be on their way.
"""

import enum
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.data.ids import HELDOUT, TRAIN, RolloutKey, Version


class ShardState(enum.StrEnum):
    """How far a shard has come."""

    PENDING = "pending"
    LEASED = "leased"
    COMMITTED = "committed"
    SCORED = "scored"


@dataclass(frozen=True, slots=True)
class BatchKey:
    """One iteration's rollouts, or one evaluation's."""

    split: int
    step: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to generate one shard."""

    lease_id: int
    batch: BatchKey
    shard: int
    keys: tuple[RolloutKey, ...]
    generator: str
    version: Version


@dataclass
class Shard:
    """Some prompts of a batch with all their samples, and what has become of them."""

    keys: tuple[RolloutKey, ...]
    state: ShardState = ShardState.PENDING
    lease: Lease | None = None
    scores: Any = None
    overdue: int = 0  # leases of it that missed their deadline

    @property
    def rows(self) -> int:
        """Rollouts of training; evaluations are not counted."""
        return sum(key.split == TRAIN for key in self.keys)


@dataclass
class Ledger:
    """All batches that are open.

    _pending: a heap of the indices of pending shards, for each batch that has any.
    _unscored: how many shards of each open batch are not scored.
    """

    incarnation: int = 0
    counts: Counter = field(default_factory=Counter)
    _batches: dict[BatchKey, list[Shard]] = field(default_factory=dict)
    _pending: dict[BatchKey, list[int]] = field(default_factory=dict)
    _unscored: dict[BatchKey, int] = field(default_factory=dict)
    _leases: dict[int, Lease] = field(default_factory=dict)
    _consumed: set[BatchKey] = field(default_factory=set)
    _next_lease: int = 0

    def open(self, batch: BatchKey, shards: Sequence[Sequence[RolloutKey]]) -> None:
        """Ask for a batch; AssertionError where it is open already."""
        assert batch not in self._batches, f"{batch} is open already"
        self._batches[batch] = [Shard(tuple(keys)) for keys in shards]
        self._unscored[batch] = len(shards)
        if shards:
            self._pending[batch] = list(range(len(shards)))

    def lease(self, generator: str, version: Version, *, max_staleness: int) -> Lease | None:
        """The most urgent pending shard that `version` may serve (see `may_serve`), or None."""
        if version.incarnation != self.incarnation:
            return None
        for batch in sorted(self._pending, key=_urgency):
            if not may_serve(version, batch, max_staleness):
                continue
            index = heapq.heappop(self._pending[batch])
            if not self._pending[batch]:
                del self._pending[batch]
            shard = self._batches[batch][index]
            lease = Lease(self._next_lease, batch, index, shard.keys, generator, version)
            self._next_lease += 1
            self._leases[lease.lease_id] = lease
            shard.state, shard.lease = ShardState.LEASED, lease
            return lease
        return None

    def commit(self, lease: Lease, oldest: Version) -> bool:
        """Take a finished shard, the oldest token of which was sampled under `oldest`.

        False, and counted, where the lease is no longer current; or where a row is older than the
        version that the lease was given to, so perhaps too stale: then the shard is pending again.
        """
        if self._leases.get(lease.lease_id) is not lease:
            self.counts["refused"] += 1
            return False
        if oldest < lease.version:
            self.counts["refused"] += 1
            self.release(lease)
            return False
        shard = self._batches[lease.batch][lease.shard]
        del self._leases[lease.lease_id]
        shard.state = ShardState.COMMITTED
        self.counts["committed"] += shard.rows
        return True

    def holds(self, lease: Lease) -> bool:
        """Whether the shard's rows are those committed under `lease`, not another's or none."""
        if lease.batch not in self._batches:
            return False
        shard = self._batches[lease.batch][lease.shard]
        return shard.lease is lease and shard.state is not ShardState.LEASED

    def score(self, batch: BatchKey, index: int, scores: Any) -> None:
        """Note the scores of a committed shard."""
        shard = self._batches[batch][index]
        assert shard.state is ShardState.COMMITTED, f"{batch} shard {index} is {shard.state}"
        shard.state, shard.scores = ShardState.SCORED, scores
        self._unscored[batch] -= 1

    def release(self, lease: Lease) -> None:
        """Hand a lease back: its shard is pending again. Nothing where it is no longer current."""
        if self._leases.pop(lease.lease_id, None) is None:
            return
        shard = self._batches[lease.batch][lease.shard]
        shard.state, shard.lease = ShardState.PENDING, None
        self._requeue(lease.batch, lease.shard)

    def lose(self, batch: BatchKey, index: int) -> None:
        """A committed shard's rows are gone (its node died): it is to be had again from its ids."""
        shard = self._batches[batch][index]
        if shard.state in (ShardState.COMMITTED, ShardState.SCORED):
            self.counts["committed"] -= shard.rows
            self._unscored[batch] += shard.state is ShardState.SCORED
            self._batches[batch][index] = Shard(shard.keys)
            self._requeue(batch, index)

    def overdue(self, lease: Lease) -> int:
        """Hand back a lease that missed its deadline; how many of its shard have so far."""
        shard = self._batches[lease.batch][lease.shard]
        shard.overdue += 1
        self.release(lease)
        return shard.overdue

    def is_ready(self, batch: BatchKey) -> bool:
        """Whether every shard of `batch` is scored."""
        return self._unscored[batch] == 0

    def unfinished(self, batch: BatchKey) -> Counter:
        """How many shards of `batch` are in each state."""
        return Counter(shard.state for shard in self._batches[batch])

    def pending(self) -> int:
        """Shards that wait for a generator."""
        return sum(map(len, self._pending.values()))

    def scores(self, batch: BatchKey) -> list[Any]:
        """What `score` noted of each shard of a ready batch, in order; it stays open."""
        assert self.is_ready(batch), f"{batch} is not ready: {self.unfinished(batch)}"
        return [shard.scores for shard in self._batches[batch]]

    def consume(self, batch: BatchKey) -> list[Shard]:
        """Close a ready batch and return its shards in order. Twice in one lineage is counted."""
        assert self.is_ready(batch), f"{batch} is not ready: {self.unfinished(batch)}"
        shards = self._batches.pop(batch)
        del self._unscored[batch]
        rows = sum(shard.rows for shard in shards)
        self.counts["consumed"] += rows
        self.counts["duplicated"] += rows if batch in self._consumed else 0
        self._consumed.add(batch)
        return shards

    def void(self) -> None:
        """Nobody will consume what is open: none of it counts as committed."""
        for shard in [shard for shards in self._batches.values() for shard in shards]:
            done = shard.state in (ShardState.COMMITTED, ShardState.SCORED)
            self.counts["committed"] -= shard.rows if done else 0
            self.counts["voided"] += shard.rows
        for open_ones in (self._batches, self._pending, self._unscored, self._leases):
            open_ones.clear()

    def reset(self, incarnation: int, step: int, surviving: Mapping[str, int]) -> None:
        """The learner went back to the checkpoint before `step`: what is open or newer is void.

        surviving: the counts of that checkpoint; what was committed or consumed since counts no
        more, nor what was committed then and not consumed: it is to be had again from its ids.
        """
        self.void()
        self._consumed = {batch for batch in self._consumed if batch.step < step}
        for name in ("committed", "consumed"):
            self.counts[name] = surviving.get("consumed", 0)
        for name in ("requeued", "refused", "voided", "duplicated"):
            self.counts[name] = max(self.counts[name], surviving.get(name, 0))
        self.incarnation = incarnation

    def _requeue(self, batch: BatchKey, index: int) -> None:
        heapq.heappush(self._pending.setdefault(batch, []), index)
        self.counts["requeued"] += self._batches[batch][index].rows


def _urgency(batch: BatchKey) -> tuple[bool, int, int]:
    """Evaluations first, for the loop waits for them alone; then what is consumed first."""
    return batch.split == TRAIN, batch.step, batch.split


def may_serve(version: Version, batch: BatchKey, max_staleness: int) -> bool:
    """Whether rollouts of `version` are fresh enough: step − version.step ≤ max_staleness.

    An evaluation is of one version and no other.
    """
    lag = batch.step - version.step
    return lag == 0 if batch.split == HELDOUT else lag <= max_staleness
