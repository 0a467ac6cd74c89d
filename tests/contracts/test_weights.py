"""A version survives the way into buckets and back, whole, or says that it did not."""

import pickle
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.ids import Version
from rlhf_ray.weights import buckets as weights
from rlhf_ray.weights.buckets import Bucket, Manifest, Probe, pack, unpack, verify
from rlhf_ray.weights.paths import PATHS

VERSION = Version(2, 7)
SHAPES = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=12)


def made(shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"t{i}": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}


def packed(tensors, dtype: str = "float32", bucket_bytes: int = 256, probes=()):
    return pack(VERSION, tensors.items(), dtype=dtype, bucket_bytes=bucket_bytes, probes=probes)


def stored(buckets: list[Bucket], *, writeable: bool = False) -> list[Bucket]:
    """As an object store gives them: other memory, read-only."""
    copies = [tuple(array.copy() for array in bucket) for bucket in buckets]
    for array in chain(*copies):
        array.flags.writeable = writeable
    return copies


@given(SHAPES, st.sampled_from(["float32", "bfloat16"]), st.integers(1, 2000))
def test_round_trip_is_exact(shapes, dtype, bucket_bytes):
    tensors = made(shapes)
    manifest, buckets = packed(tensors, dtype, bucket_bytes)
    verify(manifest, buckets := stored(buckets))
    back = list(unpack(pickle.loads(pickle.dumps(manifest)), buckets))
    assert [name for name, _ in back] == list(tensors)
    for name, tensor in back:
        assert tensor.dtype == getattr(torch, dtype)
        assert torch.equal(tensor, tensors[name].to(tensor.dtype))


@given(SHAPES, st.integers(1, 2000))
def test_a_bucket_is_no_larger_than_asked_unless_for_one_tensor(shapes, bucket_bytes):
    manifest, buckets = packed(made(shapes), "float32", bucket_bytes)
    arrays = list(chain(*buckets))
    assert manifest.bytes == sum(array.nbytes for array in arrays)
    assert all(array.dtype == np.uint8 and array.ndim == 1 for array in arrays)
    for bucket in buckets:
        held = [array.nbytes for array in bucket if array.nbytes]
        assert sum(held) <= bucket_bytes or len(held) == 1


def test_weights_that_are_on_no_gpu_are_not_offered_by_cuda_ipc():
    with pytest.raises(ValueError, match="t0 lies on cpu"):
        PATHS["cuda_ipc"].offer(VERSION, made([(3, 5)]).items(), dtype="float32", bucket_bytes=64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_copied_that_is_already_as_it_is_given_away(dtype):
    tensors = {name: t.to(getattr(torch, dtype)) for name, t in made([(3, 5), (7,)]).items()}
    manifest, buckets = packed(tensors, dtype)
    for name, tensor in unpack(manifest, buckets):
        assert tensor.data_ptr() == tensors[name].data_ptr()


def test_an_object_store_gets_every_tensor_out_of_band():
    """As Ray stores it: what is pickled is headers alone, bytes go from memory to memory."""
    tensors = made([(3, 5), (7,)])
    manifest, buckets = packed(tensors)
    parts: list[pickle.PickleBuffer] = []
    headers = pickle.dumps(buckets, protocol=5, buffer_callback=parts.append)
    assert [len(part.raw()) for part in parts] == [60, 28]
    there = pickle.loads(headers, buffers=[bytes(part.raw()) for part in parts])
    verify(manifest, there)
    for name, tensor in unpack(manifest, there):
        assert torch.equal(tensor, tensors[name])


def test_bfloat16_is_rounded_once_from_what_was_given():
    tensor = torch.tensor([1.00390625, 3.0e38, -1e-40, float("inf")])
    manifest, buckets = packed({"w": tensor}, "bfloat16")
    assert torch.equal(dict(unpack(manifest, buckets))["w"], tensor.bfloat16())


def test_a_tied_tensor_is_held_once_under_both_names():
    tensors = made([(4, 4), (2,)])
    tied = {"embed": tensors["t0"], "head": tensors["t0"], "bias": tensors["t1"]}
    manifest, buckets = packed(tied, bucket_bytes=1 << 20)
    assert manifest.bytes == 64 + 8
    back = dict(unpack(manifest, buckets))
    assert back["embed"].data_ptr() == back["head"].data_ptr()
    assert torch.equal(back["bias"], tensors["t1"])


def test_equal_tensors_of_their_own_stay_apart():
    manifest, buckets = pack(
        VERSION,
        ((f"t{i}", torch.full((3,), float(i))) for i in range(4)),
        dtype="float32",
        bucket_bytes=1 << 10,
    )
    assert [tensor[0].item() for _, tensor in unpack(manifest, buckets)] == [0.0, 1.0, 2.0, 3.0]


def test_a_view_with_strides_is_packed_in_order():
    given = {"w": torch.arange(12.0).view(3, 4).t()[1:], "b": torch.arange(9.0)[::2]}
    back = dict(unpack(*packed(given)))
    assert all(torch.equal(back[name], tensor) for name, tensor in given.items())


@given(st.data())
def test_any_damage_is_found_and_its_bucket_named(data):
    manifest, buckets = packed(made([(5, 7), (64,), (3,), (200,)]))
    assert len(buckets) > 2
    buckets = stored(buckets, writeable=True)
    i = data.draw(st.integers(0, len(buckets) - 1))
    array = data.draw(st.sampled_from(buckets[i]))
    array[data.draw(st.integers(0, len(array) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=rf"bucket {i} of version 2\.7.*pull the version again"):
        verify(manifest, buckets)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda buckets: buckets[:-1], "has 4 buckets, 3 came"),
        (lambda buckets: [*buckets, buckets[0]], "has 4 buckets, 5 came"),
        (lambda buckets: [(buckets[0][0][:-1],), *buckets[1:]], "bucket 0 .*139 of 140 bytes"),
        (lambda buckets: [buckets[0], buckets[2], buckets[1], buckets[3]], "bucket 1 "),
    ],
    ids=["missing", "too-many", "cut", "swapped"],
)
def test_a_set_of_buckets_that_is_not_the_versions_is_refused(spoil, message):
    manifest, buckets = packed(made([(5, 7), (63,), (64,), (200,)]))
    with pytest.raises(ValueError, match=message):
        verify(manifest, spoil(buckets))


def test_the_manifest_says_what_was_packed():
    probe = Probe((1, 2, 3), (-0.5, -1.5))
    manifest, _ = packed(made([(2, 3)]), "bfloat16", probes=[probe])
    assert isinstance(manifest, Manifest)
    assert (manifest.version, manifest.dtype, manifest.probes) == (VERSION, "bfloat16", (probe,))
    assert manifest.tensors == (weights.TensorSpec("t0", (2, 3), 0, 0),)
    assert manifest.sizes == (12,)
    assert hash(manifest) == hash(pickle.loads(pickle.dumps(manifest)))
