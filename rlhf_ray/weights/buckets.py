"""A policy version as flat buckets of bytes and a manifest that says what is where.

Buckets are 1-D uint8 arrays, so an object store maps them without a copy; a tensor lies whole in
one bucket; `unpack` gives views, not copies.
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

ALIGNMENT = 64  # bytes; a view of any dtype needs its own size, a vector load the cache line
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies. offset and nbytes in bytes of its bucket."""

    name: str
    shape: tuple[int, ...]
    bucket: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Tokens, and the log-prob of each after the first, at temperature 1, in float32."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that a generator needs to load and to verify a version."""

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
) -> tuple[Manifest, list[np.ndarray]]:
    """Copy tensors into buckets of about `bucket_bytes`, in the order given.

    A tensor given twice in a row, under two names, is copied once: both names point at its bytes.
    One larger than `bucket_bytes` has a bucket of its own.
    """
    buckets: list[_Bucket] = []
    specs: list[TensorSpec] = []
    previous: Tensor | None = None
    for name, tensor in named_tensors:
        if tensor is previous:
            specs.append(replace(specs[-1], name=name))
            continue
        previous = tensor
        nbytes = tensor.numel() * DTYPES[dtype].itemsize
        if not buckets or not buckets[-1].has_room(nbytes):
            buckets.append(_Bucket(max(bucket_bytes, nbytes)))
        offset = buckets[-1].append(tensor.detach(), DTYPES[dtype])
        specs.append(TensorSpec(name, tuple(tensor.shape), len(buckets) - 1, offset, nbytes))
    arrays = [bucket.array() for bucket in buckets]
    manifest = Manifest(
        version=version,
        dtype=dtype,
        tensors=tuple(specs),
        sizes=tuple(len(array) for array in arrays),
        checksums=tuple(_checksum(array) for array in arrays),
        probes=tuple(probes),
    )
    return manifest, arrays


def verify(manifest: Manifest, buckets: Sequence[np.ndarray]) -> None:
    """Raise ValueError, naming it, for a bucket that is missing or not what was published."""
    if len(buckets) != len(manifest.sizes):
        raise ValueError(
            f"version {manifest.version} has {len(manifest.sizes)} buckets, {len(buckets)} came"
        )
    for i, (bucket, size, checksum) in enumerate(
        zip(buckets, manifest.sizes, manifest.checksums, strict=True)
    ):
        if len(bucket) != size or _checksum(bucket) != checksum:
            raise ValueError(
                f"bucket {i} of version {manifest.version} is not what was published "
                f"({len(bucket)} of {size} bytes): pull the version again"
            )


def unpack(manifest: Manifest, buckets: Sequence[np.ndarray]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) in the order packed; tensors are views of the buckets: READ-ONLY."""
    dtype = DTYPES[manifest.dtype]
    flat = [_flat(bucket, dtype) for bucket in buckets]
    for spec in manifest.tensors:
        first = spec.offset // dtype.itemsize
        values = flat[spec.bucket][first : first + spec.nbytes // dtype.itemsize]
        yield spec.name, values.view(spec.shape)


def _flat(bucket: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The bucket's own memory as `dtype`."""
    if not len(bucket):
        return torch.empty(0, dtype=dtype)
    with warnings.catch_warnings():  # read-only arrays are what is meant here
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(bucket).view(dtype)


class _Bucket:
    """A growing run of bytes of a fixed capacity."""

    def __init__(self, capacity: int) -> None:
        self._bytes = torch.empty(capacity, dtype=torch.uint8)
        self._used = 0

    def has_room(self, nbytes: int) -> bool:
        return _aligned(self._used) + nbytes <= len(self._bytes)

    def append(self, tensor: Tensor, dtype: torch.dtype) -> int:
        """Copy `tensor`, cast to `dtype`; its offset."""
        offset = _aligned(self._used)
        self._used = offset + tensor.numel() * dtype.itemsize
        self._bytes[offset : self._used].view(dtype).copy_(tensor.reshape(-1))
        return offset

    def array(self) -> np.ndarray:
        return self._bytes[: self._used].numpy()


def _checksum(bucket: np.ndarray) -> int:
    return xxhash.xxh3_64_intdigest(bucket.data)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
