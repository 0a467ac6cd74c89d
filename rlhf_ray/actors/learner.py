"""One rank of the learner group: fetches rollouts, updates with the other ranks, packs versions."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.exceptions import ObjectLostError
from torch.distributed import TCPStore

from rlhf_ray.actors.presence import LIVENESS, Presence, present
from rlhf_ray.actors.tables import fetch, gone, without_singles
from rlhf_ray.algos.advantages import ESTIMATORS
from rlhf_ray.config import PPO, Dtype, WeightsBy
from rlhf_ray.data.ids import Version
from rlhf_ray.files import Fingerprint
from rlhf_ray.learners.build import build_learner
from rlhf_ray.learners.group import PATIENCE, Group, set_up_torch, this_device
from rlhf_ray.learners.ppo import PPOLearner
from rlhf_ray.models.loading import compute_dtype
from rlhf_ray.weights.buckets import Manifest, Offer, Probe
from rlhf_ray.weights.paths import PATHS


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """What a learner is made of; the same for every rank."""

    ppo: PPO
    policy_path: str
    critic_path: str | None
    dtype: Dtype
    weights_dtype: str
    temperature: float
    run_seed: int
    probes: tuple[tuple[int, ...], ...]
    weights_by: WeightsBy = "object_store"
    bucket_bytes: int = 64 << 20  # of an object: few calls, and no transfer of a whole model
    trust_remote_code: bool = False
    # Others of this GPU's processes work between updates: what torch keeps for later is theirs.
    shares_gpu: bool = False


class LearnerActor:
    """Thin shell around PPOLearner. What is not said to be rank 0's is called on all ranks."""

    def __init__(self, rank: int, world: int, spec: LearnerSpec) -> None:
        self._rank, self._world, self._spec = rank, world, spec
        self._meeting: TCPStore | None = None
        self._offer: Offer | None = None
        self._table: pa.Table | None = None
        self._fetch_seconds = 0.0

    @ray.method(concurrency_group=LIVENESS)
    def beat(self) -> Presence:
        """That this process lives; answered while it learns."""
        return present()

    @ray.method(concurrency_group=LIVENESS)
    def address(self) -> tuple[str, int] | None:
        """Host and port at which the ranks meet, taken from now on; None for one. Rank 0 alone."""
        if self._world == 1:
            return None
        self._meeting = self._meet(ray.util.get_node_ip_address(), 0, here=True)
        return self._meeting.host, self._meeting.port

    def start(self, address: tuple[str, int] | None) -> Presence:
        """Join the group and build the learner. address: rank 0's."""
        spec = self._spec
        device = this_device()
        dtype = compute_dtype(spec.dtype, device)
        # On a GPU the same bits each time cost speed: only exact mode asks for them.
        exact = dtype == torch.float32 and spec.ppo.max_staleness == 0
        on_gpu = device.type == "cuda"
        set_up_torch(deterministic=exact or not on_gpu, strict=exact and on_gpu)
        group = Group(device)
        if address is not None:
            store = self._meeting or self._meet(*address)
            group = Group.join(store, rank=self._rank, size=self._world, device=device)
        self._learner: PPOLearner = build_learner(
            spec.policy_path,
            settings=spec.ppo,
            seed=spec.run_seed,
            temperature=spec.temperature,
            dtype=dtype,
            group=group,
            reward_model=spec.critic_path,
            trust_remote_code=spec.trust_remote_code,
        )
        return present()

    def calibrate(self, mean: float, std: float) -> None:
        """How raw scores become rewards, for a critic that started as the reward model."""
        if self._spec.critic_path is not None:
            self._learner.calibrate(mean=mean, std=std)

    def fetch(self, shards: Sequence[tuple[ray.ObjectRef, ...]]) -> list[int]:
        """Take the rollouts of the next update; which shards are gone, where some are.

        A call of its own: a rank that lacked rows in the update would leave the others waiting.
        """
        began = time.monotonic()
        try:
            table = fetch(shards)
        except ObjectLostError:
            return gone(shards)
        if ESTIMATORS[self._spec.ppo.estimator].needs_group:
            table = without_singles(table)  # where a reward dropped the others
        self._table = table
        self._fetch_seconds = time.monotonic() - began
        return []

    def update(self, step: int) -> dict[str, float]:
        """One iteration on the rollouts that were fetched; metrics, the same on every rank."""
        assert self._table is not None, "rollouts are fetched before the update"
        table, self._table = self._table, None
        began = time.monotonic()
        stats = self._learner.update(step, table)
        self._release()
        seconds = {"time/fetch": self._fetch_seconds, "time/update": time.monotonic() - began}
        return stats | _component_means(table) | seconds

    def pack(self, version: Version) -> Manifest | None:
        """Gather the policy on rank 0 for `take_objects`, the next call; its manifest."""
        spec = self._spec
        found = self._learner.probes(spec.probes, dtype=spec.weights_dtype)
        probes = [Probe(tuple(ids), tuple(x)) for ids, x in found]
        tensors = self._learner.export(spec.weights_dtype)
        if self._rank != 0:
            for _ in tensors:  # the gathering is collective
                pass
            self._release()
            return None
        self._offer = None  # what the last one keeps goes before the next is made
        self._offer = PATHS[spec.weights_by].offer(
            version,
            tensors,
            dtype=spec.weights_dtype,
            bucket_bytes=spec.bucket_bytes,
            probes=probes,
        )
        self._release()
        return self._offer.manifest

    def take_objects(self) -> tuple[Any, ...] | Any:
        """What was packed, each an object of its own that outlives this process. Rank 0 alone."""
        assert self._offer is not None, "a version is packed before it is taken"
        objects, self._offer = self._offer.objects, replace(self._offer, objects=())
        return objects if len(objects) > 1 else objects[0]

    def save(self, directory: str) -> dict[str, Fingerprint]:
        """Write this rank's part of the state; its large files, by name."""
        return self._learner.save(Path(directory))

    def load(self, directory: str) -> None:
        """Read this rank's part of the state, whatever number of ranks wrote it."""
        self._learner.load(Path(directory))

    def save_policy(self, directory: str) -> None:
        """Rank 0 writes the policy as a plain transformers directory."""
        self._learner.save_policy(Path(directory))

    def _meet(self, host: str, port: int, *, here: bool = False) -> TCPStore:
        return TCPStore(
            host, port, self._world, is_master=here, timeout=PATIENCE, wait_for_workers=False
        )

    def _release(self) -> None:
        """Give the GPU's memory that no tensor lies in back, where others wait for it."""
        if self._spec.shares_gpu:
            torch.cuda.empty_cache()


def _component_means(table: pa.Table) -> dict[str, float]:
    """`score/<source>`: the mean raw score of each reward source."""
    names = [name for name in table.column_names if name.startswith("score/")]
    return {name: pc.mean(table.column(name)).as_py() for name in names}
