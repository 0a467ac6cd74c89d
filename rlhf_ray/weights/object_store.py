"""Weights by way of Ray's object store, in buckets with checksums.

Zero-copy on a node, Ray's own transfer between nodes; whoever has the manifest and the references
needs nobody's help.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
)
from torch import Tensor

from rlhf_ray.data.ids import Version
from rlhf_ray.weights.buckets import Manifest, Offer, Probe, pack, unpack, verify


class VersionGone(LookupError):
    """A version's objects went with the learners that made them."""


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


def take(
    manifest: Manifest, refs: Sequence[ray.ObjectRef], *, timeout: float
) -> Callable[[Any], None]:
    """A function that loads the version into an engine, from views of its buckets.

    Raises ValueError for a damaged bucket, and what `fetch` raises.
    """
    buckets = fetch(manifest, refs, timeout=timeout)
    verify(manifest, buckets)
    return lambda engine: engine.load(manifest.version, unpack(manifest, buckets))


def fetch(manifest: Manifest, refs: Sequence[ray.ObjectRef], *, timeout: float) -> list[Any]:
    """A version's objects. Raises VersionGone; TimeoutError where they do not arrive in time."""
    try:
        return ray.get(list(refs), timeout=timeout)
    except (ObjectLostError, RayActorError, OutOfMemoryError) as error:
        raise VersionGone(f"version {manifest.version} is gone: {error}") from error
    except GetTimeoutError as error:
        raise TimeoutError(
            f"{manifest.bytes:,} bytes of version {manifest.version} did not arrive from the "
            f"learners' node in {timeout:.0f} s: look at the network between the nodes, or give "
            f"it more time with --cluster.start-timeout-s"
        ) from error
