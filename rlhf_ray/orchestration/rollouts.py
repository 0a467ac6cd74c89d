"""Rollouts on request: opens batches, has what is committed scored, hands over what is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import ObjectLostError

from rlhf_ray.actors.generator import Order, ShardMeta
from rlhf_ray.data.ids import CALIBRATION, HELDOUT, TRAIN, RolloutKey
from rlhf_ray.data.prompts import Prompt, batch_of_step
from rlhf_ray.orchestration.ledger import BatchKey, Lease, Ledger
from rlhf_ray.orchestration.reactor import Reactor
from rlhf_ray.orchestration.scorers import ScorerPools


@dataclass
class Batch:
    """References to one batch's scored shards: (rollouts, ref columns, score columns) each.

    rows: written, those that a reward drops included. tokens: of responses. mixed: responses that
    were written under more than one version. generate_seconds: from the request to the last commit.
    wait_seconds: of the driver in `take`.
    """

    shards: list[tuple[Any, Any, Any]]
    rows: int
    tokens: int
    mixed: int
    generate_seconds: float
    wait_seconds: float


@dataclass
class _Progress:
    """What is known of a batch on its way."""

    opened: float
    committed: float | None = None
    metas: dict[int, ShardMeta] = field(default_factory=dict)  # by shard: one may be done again


@dataclass(frozen=True, slots=True)
class BatchShape:
    """samples: responses to a prompt. shard_prompts: prompts leased at a time."""

    prompts: int
    samples: int
    shard_prompts: int
    run_seed: int


class RolloutService:
    """What the loop asks for rollouts; the generator pool and the scorers do the work.

    deliver: hands scored shards to the learners; returns which of them are gone, if any.
    """

    def __init__(
        self,
        reactor: Reactor,
        ledger: Ledger,
        scorers: ScorerPools,
        *,
        train: Sequence[Prompt],
        heldout: Sequence[Prompt],
        shape: BatchShape,
        timeout: float,
        deliver: Callable[[list[tuple[Any, Any, Any]]], list[int]],
        log: Callable[[str], None],
    ) -> None:
        self._deliver, self._log = deliver, log
        self._reactor, self._ledger, self._scorers = reactor, ledger, scorers
        self._prompts = {TRAIN: train, HELDOUT: heldout, CALIBRATION: train}
        self._shape, self._timeout = shape, timeout
        self._progress: dict[BatchKey, _Progress] = {}
        self._requested = -1

    def start_at(self, step: int) -> None:
        """The next step to be asked for is `step`; what was asked for before is void."""
        self._requested = step - 1
        self._progress.clear()

    def request(self, until: int) -> None:
        """Open the batches of all steps up to `until`."""
        for step in range(self._requested + 1, until + 1):
            shape = self._shape
            ids = batch_of_step(len(self._prompts[TRAIN]), shape.prompts, shape.run_seed, step)
            self._open(BatchKey(TRAIN, step), ids, shape.samples)
            self._requested = step

    def take(self, step: int) -> Batch:
        """This step's rollouts, scored and with the learners; all else is served meanwhile."""
        return self._take(BatchKey(TRAIN, step), self._deliver)

    def sample_once(self, split: int, step: int, prompts: int) -> Batch:
        """One response to each of the first `prompts` prompts of a split, under version `step`."""
        key = BatchKey(split, step)
        self._open(key, range(min(prompts, len(self._prompts[split]))), 1)
        return self._take(key, lambda shards: [])

    def order_of(self, lease: Lease) -> Order:
        """What a lease is for, with its prompts."""
        prompts = (self._prompts[key.split][key.prompt_id] for key in lease.keys)
        return Order(
            lease.keys,
            tuple(prompt.token_ids for prompt in prompts),
            lease.version.incarnation,
        )

    def on_commit(self, lease: Lease, table: Any, meta: ShardMeta) -> None:
        """A shard is committed: have it scored while others are still being generated."""
        progress = self._progress[lease.batch]
        progress.metas[lease.shard] = meta
        progress.committed = self._reactor.clock()
        self._scorers.score(
            table,
            what=f"shard {lease.shard} of step {lease.batch.step}",
            timeout=self._timeout,
            then=lambda columns, error: self._on_scored(lease, table, columns, error),
        )

    def _on_scored(
        self, lease: Lease, table: Any, columns: tuple[Any, Any], error: Exception | None
    ) -> None:
        if not self._ledger.holds(lease):
            return  # voided by a return to a checkpoint, or lost and leased anew
        if isinstance(error, ObjectLostError):
            self._lose(lease.batch, [lease.shard])
        elif error is not None:
            raise error
        else:
            self._ledger.score(lease.batch, lease.shard, (table, *columns))

    def _open(self, key: BatchKey, prompt_ids: Sequence[int], samples: int) -> None:
        size = self._shape.shard_prompts
        ids = list(prompt_ids)
        shards = [
            [
                RolloutKey(key.split, key.step, p, s)
                for p in ids[i : i + size]
                for s in range(samples)
            ]
            for i in range(0, len(ids), size)
        ]
        self._ledger.open(key, shards)
        self._progress[key] = _Progress(self._reactor.clock())

    def _take(
        self, key: BatchKey, deliver: Callable[[list[tuple[Any, Any, Any]]], list[int]]
    ) -> Batch:
        """Consume a batch once it is all scored and delivered; what is gone is generated again."""
        began = self._reactor.clock()
        self._reactor.pump_until(lambda: self._ledger.is_ready(key))
        while gone := deliver(self._ledger.scores(key)):
            self._lose(key, gone)
            self._reactor.pump_until(lambda: self._ledger.is_ready(key))
        progress = self._progress.pop(key)
        return Batch(
            shards=[shard.scores for shard in self._ledger.consume(key)],
            rows=sum(meta.rows for meta in progress.metas.values()),
            tokens=sum(meta.tokens for meta in progress.metas.values()),
            mixed=sum(meta.mixed for meta in progress.metas.values()),
            generate_seconds=(progress.committed or began) - progress.opened,
            wait_seconds=self._reactor.clock() - began,
        )

    def _lose(self, key: BatchKey, shards: Sequence[int]) -> None:
        for index in shards:
            self._ledger.lose(key, index)
        names = ", ".join(map(str, shards))
        self._log(f"shards {names} of step {key.step} were lost with their node: generated again")
