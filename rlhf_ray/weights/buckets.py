"""A policy version as buckets of bytes and a manifest that says what is where.

A bucket holds its tensors' bytes one after another, each a 1-D uint8 array: an object store writes
them into one block of its memory, which is the only copy, and maps it; `unpack` gives views.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from rlhf_ray.data.ids import Version

Bucket = tuple[np.ndarray, ...]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies: the `place`-th of its bucket."""

    name: str
    shape: tuple[int, ...]
    bucket: int
    place: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Tokens, and the log-prob of each after the first, at temperature 1, in float32."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that a generator needs to load and to verify a version. sizes: of the buckets, bytes."""

    version: Version
    dtype: str
    tensors: tuple[TensorSpec, ...]
    sizes: tuple[int, ...]
    checksums: tuple[int, ...]
    probes: tuple[Probe, ...]

    @property
    def bytes(self) -> int:
        """Size of all buckets."""
        return sum(self.sizes)


@dataclass(frozen=True, slots=True)
class Published:
    """A version that generators can pull: who has this needs nobody's help to load it.

    manifest, buckets: references to objects of the store. bytes: of the buckets.
    """

    version: Version
    manifest: Any
    buckets: tuple[Any, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A version as rank 0 gives it away.

    Attributes:
        objects: what goes through the object store, one for each of the manifest's sizes.
        kept: what must live here until the next version is loaded.
    """

    manifest: Manifest
    objects: tuple[Any, ...]
    kept: Any = None


def pack(
    version: Version,
    named_tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: str,
    bucket_bytes: int,
    probes: Sequence[Probe] = (),
) -> tuple[Manifest, list[Bucket]]:
    """The tensors' bytes in buckets of at most `bucket_bytes`, in the order given.

    Of what is contiguous, in `dtype` and on the CPU they are VIEWS: store them before it changes.
    A tensor given twice in a row, under two names, is there once. One larger than `bucket_bytes`
    has a bucket of its own.
    """
    buckets: list[list[np.ndarray]] = []
    sizes: list[int] = []
    specs: list[TensorSpec] = []
    previous: Tensor | None = None
    for name, tensor in named_tensors:
        if tensor is previous:
            specs.append(replace(specs[-1], name=name))
            continue
        previous = tensor
        array = _bytes(tensor, DTYPES[dtype])
        if not buckets or sizes[-1] + array.nbytes > bucket_bytes:
            buckets.append([])
            sizes.append(0)
        specs.append(TensorSpec(name, tuple(tensor.shape), len(buckets) - 1, len(buckets[-1])))
        buckets[-1].append(array)
        sizes[-1] += array.nbytes
    packed = [tuple(bucket) for bucket in buckets]
    manifest = Manifest(
        version=version,
        dtype=dtype,
        tensors=tuple(specs),
        sizes=tuple(sizes),
        checksums=tuple(map(_checksum, packed)),
        probes=tuple(probes),
    )
    return manifest, packed


def verify(manifest: Manifest, buckets: Sequence[Bucket]) -> None:
    """Raise ValueError, naming it, for a bucket that is missing or not what was published."""
    if len(buckets) != len(manifest.sizes):
        raise ValueError(
            f"version {manifest.version} has {len(manifest.sizes)} buckets, {len(buckets)} came"
        )
    for i, (bucket, size, checksum) in enumerate(
        zip(buckets, manifest.sizes, manifest.checksums, strict=True)
    ):
        came = sum(array.nbytes for array in bucket)
        if came != size or _checksum(bucket) != checksum:
            raise ValueError(
                f"bucket {i} of version {manifest.version} is not what was published "
                f"({came} of {size} bytes): pull the version again"
            )


def unpack(manifest: Manifest, buckets: Sequence[Bucket]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) in the order packed; tensors are views of the buckets: READ-ONLY."""
    dtype = DTYPES[manifest.dtype]
    with warnings.catch_warnings():  # read-only arrays are what is meant here
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = [[_flat(array, dtype) for array in bucket] for bucket in buckets]
    for spec in manifest.tensors:
        yield spec.name, flat[spec.bucket][spec.place].view(spec.shape)


def _bytes(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    """A tensor's own memory, or that of a copy which is contiguous, in `dtype` and on the CPU."""
    flat = tensor.detach().to("cpu", dtype).reshape(-1).contiguous()
    return flat.view(torch.uint8).numpy() if len(flat) else np.empty(0, np.uint8)


def _flat(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The array's own memory as `dtype`."""
    return torch.from_numpy(array).view(dtype) if len(array) else torch.empty(0, dtype=dtype)


def _checksum(bucket: Bucket) -> int:
    """xxh3 of the bytes one after another."""
    found = xxhash.xxh3_64()
    for array in bucket:
        found.update(array.data)
    return found.intdigest()
