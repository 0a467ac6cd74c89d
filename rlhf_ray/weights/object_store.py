"""Weights by way of Ray's object store: the generator's end.

Zero-copy on a node, Ray's own transfer between nodes; whoever has the manifest and the references
needs nobody's help.
"""

from collections.abc import Iterator, Sequence

import ray
from ray.exceptions import GetTimeoutError
from torch import Tensor

from rlhf_ray.weights.buckets import Manifest, unpack, verify

PULL_TIMEOUT = 600.0  # seconds


def pull(manifest: Manifest, bucket_refs: Sequence[ray.ObjectRef]) -> Iterator[tuple[str, Tensor]]:
    """Fetch and verify all buckets, then give the tensors as views of them.

    Raises ValueError for a damaged bucket, before any tensor is given; ObjectLostError for one
    that is gone; TimeoutError where they do not arrive.
    """
    try:
        buckets = ray.get(list(bucket_refs), timeout=PULL_TIMEOUT)
    except GetTimeoutError as error:
        raise TimeoutError(
            f"{manifest.bytes:,} bytes of version {manifest.version} did not arrive from the "
            f"learners' node in {PULL_TIMEOUT:.0f} s: look at the network between the nodes"
        ) from error
    verify(manifest, buckets)
    return unpack(manifest, buckets)
