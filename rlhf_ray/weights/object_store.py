"""Weights by way of Ray's object store, in buckets with checksums.

Zero-copy on a node, Ray's own transfer between nodes; whoever has the manifest and the references
needs nobody's help.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from torch import Tensor

from rlhf_ray.data.ids import Version
from rlhf_ray.weights.buckets import Manifest, Offer, Probe, pack, unpack, verify

PULL_TIMEOUT = 600.0  # seconds


def offer(
    version: Version,
    named_tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: str,
    bucket_bytes: int,
    probes: Sequence[Probe] = (),
) -> Offer:
    """The version as buckets, each an object."""
    manifest, buckets = pack(
        version, named_tensors, dtype=dtype, bucket_bytes=bucket_bytes, probes=probes
    )
    return Offer(manifest, tuple(buckets))


def take(manifest: Manifest, refs: Sequence[ray.ObjectRef]) -> Callable[[Any], None]:
    """What loads the version into an engine, from views of its buckets.

    Raises ValueError for a damaged bucket; ObjectLostError for one that is gone; TimeoutError where
    they do not arrive.
    """
    buckets = fetch(manifest, refs)
    verify(manifest, buckets)
    return lambda engine: engine.load(manifest.version, unpack(manifest, buckets))


def fetch(manifest: Manifest, refs: Sequence[ray.ObjectRef]) -> list[Any]:
    """A version's objects. Raises TimeoutError where they do not arrive."""
    try:
        return ray.get(list(refs), timeout=PULL_TIMEOUT)
    except GetTimeoutError as error:
        raise TimeoutError(
            f"{manifest.bytes:,} bytes of version {manifest.version} did not arrive from the "
            f"learners' node in {PULL_TIMEOUT:.0f} s: look at the network between the nodes"
        ) from error
