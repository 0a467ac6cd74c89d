"""The ways a version goes from the learners to the generators: to add one, give it a row here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_ray.weights import cuda_ipc, object_store
from rlhf_ray.weights.buckets import Offer


@dataclass(frozen=True, slots=True)
class WeightPath:
    """Both ends of a way.

    offer(version, named_tensors, *, dtype, bucket_bytes, probes): what rank 0 gives away.
    take(manifest, refs, *, timeout): fetches its objects and returns a function that loads
    them into an engine.
    """

    offer: Callable[..., Offer]
    take: Callable[..., Callable[[Any], None]]


PATHS = {
    "object_store": WeightPath(object_store.offer, object_store.take),
    "cuda_ipc": WeightPath(cuda_ipc.offer, cuda_ipc.take),
}
