"""Weights by way of Ray's object store: the generator's end.

Zero-copy on a node, Ray's own transfer between nodes; whoever has the manifest and the references
needs nobody's help.
"""

from collections.abc import Iterator, Sequence

import ray
from torch import Tensor

from rlhf_ray.weights.buckets import Manifest, unpack, verify

PULL_TIMEOUT = 600.0  # seconds


def pull(manifest: Manifest, bucket_refs: Sequence[ray.ObjectRef]) -> Iterator[tuple[str, Tensor]]:
    """Fetch and verify all buckets, then give the tensors as views of them.

    Raises ValueError for a damaged bucket, before any tensor is given; ObjectLostError for one
    that is gone.
    """
    buckets = ray.get(list(bucket_refs), timeout=PULL_TIMEOUT)
    verify(manifest, buckets)
    return unpack(manifest, buckets)
