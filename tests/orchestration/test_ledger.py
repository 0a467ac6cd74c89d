"""The ledger, whatever the order of events: every rollout is consumed exactly once."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rlhf_ray.data.ids import CALIBRATION, HELDOUT, TRAIN, RolloutKey, Version
from rlhf_ray.orchestration.ledger import BatchKey, Lease, Ledger, ShardState, may_serve

K = 2
SHARDS, SAMPLES = 3, 2


def shards_of(batch: BatchKey) -> list[list[RolloutKey]]:
    return [
        [RolloutKey(batch.split, batch.step, prompt, s) for s in range(SAMPLES)]
        for prompt in range(SHARDS)
    ]


def test_what_nobody_will_consume_does_not_count_as_committed() -> None:
    ledger, version = Ledger(), Version(0, 0)
    for step in (0, 1):
        keys = [[RolloutKey(TRAIN, step, prompt, 0)] for prompt in range(2)]
        ledger.open(BatchKey(TRAIN, step), keys)
    leases = [ledger.lease("a", version, max_staleness=1) for _ in range(4)]
    for lease in leases[:3]:
        ledger.commit(lease, version)
    for shard in (0, 1):
        ledger.score(BatchKey(TRAIN, 0), shard, None)
    ledger.consume(BatchKey(TRAIN, 0))
    ledger.void()
    assert ledger.counts["committed"] == ledger.counts["consumed"] == 2
    assert ledger.counts["voided"] == 2 and not ledger.pending()
    assert not ledger.commit(leases[3], version) and not ledger.holds(leases[2])


class AnyOrder(RuleBasedStateMachine):
    """Events in any order, against sets of what was asked for, is held and was consumed."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.step, self.version = 0, Version(0, 0)
        self.opened: dict[BatchKey, list[list[RolloutKey]]] = {}
        self.leases: list[Lease] = []
        self.current: set[int] = set()
        self.committed: dict[tuple[BatchKey, int], Lease] = {}
        self.consumed: Counter = Counter()
        self.missed: Counter = Counter()
        self.consumed_at_step: dict[int, int] = {0: 0}

    @rule(split=st.sampled_from([TRAIN, HELDOUT]), ahead=st.integers(0, K))
    def open(self, split: int, ahead: int) -> None:
        batch = BatchKey(split, self.step + (ahead if split == TRAIN else 0))
        if batch not in self.opened and not self.consumed[shards_of(batch)[0][0]]:
            self.opened[batch] = shards_of(batch)
            self.ledger.open(batch, self.opened[batch])

    @rule(name=st.sampled_from("ab"), behind=st.integers(0, 1))
    def lease(self, name: str, behind: int) -> None:
        version = Version(self.version.incarnation, max(0, self.version.step - behind))
        found = self.ledger.lease(name, version, max_staleness=K)
        free = [
            batch
            for batch in self.opened
            for index in range(SHARDS)
            if self.is_pending(batch, index) and may_serve(version, batch, K)
        ]
        assert (found is None) == (not free)
        if found is not None:
            assert self.is_pending(found.batch, found.shard)
            assert list(found.keys) == self.opened[found.batch][found.shard]
            assert found.batch.split != TRAIN or all(b.split == TRAIN for b in free)
            assert found.batch.step == min(b.step for b in free if b.split == found.batch.split)
            self.leases.append(found)
            self.current.add(found.lease_id)

    @rule(shards=st.integers(1, SHARDS))
    def finish(self, shards: int) -> None:
        """Some shards from lease to scores, so that batches come to be ready."""
        for _ in range(shards):
            found = self.ledger.lease("c", self.version, max_staleness=K)
            if found is not None:
                self.leases.append(found)
                assert self.ledger.commit(found, self.version)
                self.ledger.score(found.batch, found.shard, scores=found.lease_id)
                self.committed[found.batch, found.shard] = found

    def is_pending(self, batch: BatchKey, index: int) -> bool:
        held = any(
            (lease.batch, lease.shard) == (batch, index)
            for lease in self.leases
            if lease.lease_id in self.current
        )
        return not held and (batch, index) not in self.committed

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), older=st.booleans())
    def commit(self, data: st.DataObject, older: bool) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        oldest = Version(lease.version.incarnation, lease.version.step - older)
        refused = self.ledger.counts["refused"]
        taken = self.ledger.commit(lease, oldest)
        assert taken == (lease.lease_id in self.current and not older)
        assert self.ledger.counts["refused"] == refused + (not taken)
        self.current.discard(lease.lease_id)
        if taken:
            self.committed[lease.batch, lease.shard] = lease

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.ledger.release(lease)
        self.current.discard(lease.lease_id)

    @precondition(lambda self: self.current)
    @rule(data=st.data())
    def overdue(self, data: st.DataObject) -> None:
        """A generator misses a deadline; its shard remembers, until it is generated anew."""
        held = [lease for lease in self.leases if lease.lease_id in self.current]
        lease = data.draw(st.sampled_from(held))
        self.missed[lease.batch, lease.shard] += 1
        assert self.ledger.overdue(lease) == self.missed[lease.batch, lease.shard]
        self.current.discard(lease.lease_id)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), lost=st.booleans())
    def score(self, data: st.DataObject, lost: bool) -> None:
        """A scorer answers for some lease, perhaps for one that is long void."""
        lease = data.draw(st.sampled_from(self.leases))
        place = (lease.batch, lease.shard)
        assert self.ledger.holds(lease) == (self.committed.get(place) is lease)
        if not self.ledger.holds(lease):
            return
        if lost:
            self.ledger.lose(*place)
            del self.committed[place], self.missed[place]
        elif self.state(*place) is ShardState.COMMITTED:
            self.ledger.score(*place, scores=lease.lease_id)

    def state(self, batch: BatchKey, index: int) -> ShardState:
        return self.ledger._batches[batch][index].state

    @precondition(lambda self: self.opened)
    @rule()
    def consume(self) -> None:
        """Score what is committed, then take the batch that is due, if it is ready."""
        batch = min(self.opened, key=lambda b: (b.step, b.split))
        for place, lease in self.committed.items():
            if self.state(*place) is ShardState.COMMITTED:
                self.ledger.score(*place, scores=lease.lease_id)
        scored = [self.state(batch, i) is ShardState.SCORED for i in range(SHARDS)]
        assert self.ledger.is_ready(batch) == all(scored)
        if not all(scored):
            return
        for index, shard in enumerate(self.ledger.consume(batch)):
            assert shard.scores == self.committed.pop((batch, index)).lease_id
            self.consumed.update(shard.keys)
        del self.opened[batch]
        if batch.split == TRAIN:
            before = self.consumed_at_step[self.step]
            self.consumed_at_step |= dict.fromkeys(range(self.step, batch.step + 1), before)
            self.step = batch.step + 1
            self.version = Version(self.version.incarnation, self.step)
            self.consumed_at_step[self.step] = self.ledger.counts["consumed"]

    @precondition(lambda self: len(self.leases) > 8 * self.version.incarnation + 8)
    @rule(back=st.integers(0, 2))
    def reset(self, back: int) -> None:
        """The learner goes back: what it had consumed since is asked for again."""
        self.step = max(0, self.step - back)
        self.version = Version(self.version.incarnation + 1, self.step)
        # At that checkpoint, with K ≥ 1, more was committed than consumed.
        consumed = self.consumed_at_step[self.step]
        surviving = {"consumed": consumed, "committed": consumed + SAMPLES}
        self.ledger.reset(self.version.incarnation, self.step, surviving)
        self.opened.clear()
        self.committed.clear()
        self.current.clear()
        self.missed.clear()
        for key in [key for key in self.consumed if key.step >= self.step]:
            del self.consumed[key]

    @invariant()
    def each_once(self) -> None:
        assert all(times == 1 for times in self.consumed.values())
        assert self.ledger.counts["duplicated"] == 0

    @invariant()
    def counts_add_up(self) -> None:
        train = sum(key.split == TRAIN for key in self.consumed)
        waiting = SAMPLES * sum(batch.split == TRAIN for batch, _ in self.committed)
        assert self.ledger.counts["consumed"] == train
        assert self.ledger.counts["committed"] == train + waiting

    @invariant()
    def states_add_up(self) -> None:
        found: Counter = Counter()
        for batch in self.opened:
            found += self.ledger.unfinished(batch)
        held = len(self.current)
        assert found[ShardState.LEASED] == held
        assert found[ShardState.COMMITTED] + found[ShardState.SCORED] == len(self.committed)
        assert found[ShardState.PENDING] == self.ledger.pending()
        assert found.total() == SHARDS * len(self.opened)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

FIRST, START = BatchKey(TRAIN, 0), Version(0, 0)


def ledger_with(*batches: BatchKey) -> Ledger:
    ledger = Ledger()
    for batch in batches:
        ledger.open(batch, shards_of(batch))
    return ledger


def lease_from(ledger: Ledger, *, version: Version = START, k: int = 0) -> Lease | None:
    return ledger.lease("a", version, max_staleness=k)


def test_a_commit_is_taken_once() -> None:
    ledger = ledger_with(FIRST)
    lease = lease_from(ledger)
    assert ledger.commit(lease, Version(0, 0))
    assert not ledger.commit(lease, Version(0, 0))
    assert ledger.counts == {"committed": SAMPLES, "refused": 1}


def test_a_version_of_another_incarnation_gets_nothing() -> None:
    ledger = ledger_with(FIRST)
    assert lease_from(ledger, version=Version(1, 0)) is None
    ledger.reset(1, 0, {})
    ledger.open(FIRST, shards_of(FIRST))
    assert lease_from(ledger, version=Version(0, 5)) is None
    assert lease_from(ledger, version=Version(1, 0)) is not None


def test_scores_of_a_void_lineage_do_not_reach_the_batch_that_was_opened_again() -> None:
    ledger = ledger_with(FIRST)
    old = lease_from(ledger)
    ledger.commit(old, Version(0, 0))
    ledger.reset(1, 0, {})
    ledger.open(FIRST, shards_of(FIRST))
    new = lease_from(ledger, version=Version(1, 0))
    ledger.commit(new, Version(1, 0))
    assert (ledger.holds(old), ledger.holds(new)) == (False, True)


def test_evaluations_are_leased_before_training_however_late_they_are_asked_for() -> None:
    ledger = ledger_with(FIRST, BatchKey(TRAIN, 1), BatchKey(HELDOUT, 0))
    order = [lease_from(ledger, k=1).batch for _ in range(SHARDS * 3)]
    assert (
        order == [BatchKey(HELDOUT, 0)] * SHARDS + [FIRST] * SHARDS + [BatchKey(TRAIN, 1)] * SHARDS
    )


def test_a_shard_that_came_back_is_leased_first() -> None:
    ledger = ledger_with(FIRST)
    first, second = lease_from(ledger), lease_from(ledger)
    ledger.release(second)
    ledger.release(first)
    assert [lease_from(ledger).shard for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("split", "step", "version", "k", "fresh"),
    [
        (TRAIN, 3, 3, 0, True),
        (TRAIN, 3, 2, 0, False),
        (TRAIN, 3, 2, 1, True),
        (TRAIN, 3, 0, 2, False),
        (HELDOUT, 3, 3, 2, True),
        (HELDOUT, 3, 2, 2, False),
        (CALIBRATION, 0, 0, 0, True),
    ],
)
def test_the_bound_on_staleness(split: int, step: int, version: int, k: int, fresh: bool) -> None:
    assert may_serve(Version(0, version), BatchKey(split, step), k) == fresh


def test_evaluations_are_not_counted_as_rollouts() -> None:
    batch = BatchKey(HELDOUT, 0)
    ledger = ledger_with(batch)
    while lease := lease_from(ledger):
        assert ledger.commit(lease, Version(0, 0))
        ledger.score(batch, lease.shard, None)
    ledger.consume(batch)
    assert not +ledger.counts


def test_our_own_mistakes_are_asserted() -> None:
    ledger = ledger_with(FIRST)
    with pytest.raises(AssertionError, match="is open already"):
        ledger.open(FIRST, [])
    with pytest.raises(AssertionError, match="is not ready"):
        ledger.consume(FIRST)
    with pytest.raises(AssertionError, match="shard 0 is pending"):
        ledger.score(FIRST, 0, None)
