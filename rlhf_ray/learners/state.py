"""Sharded checkpoints: each rank writes what it holds, any number of ranks reads it.

    learner.json                   root: counters, KL coefficient, checksums of the indexes
    rank-00000.json                index of one rank's tensors: whole shape, first row, rows
    rank-00000.safetensors         these rows of parameters and Adam's moments, float32

Of sharded weights no rank holds another's rows, in writing or in reading; whole ones are written by
rank 0 alone. Nothing is pickled. Checksums are xxh3-64.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor

from rlhf_ray.files import Fingerprint, fingerprint, sync
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.optimizer import Optimizer
from rlhf_ray.learners.sharding import Slice

FORMAT = 1
ROOT = "learner.json"


def save(
    directory: str | Path,
    optimizers: Mapping[str, Optimizer],
    scalars: Mapping[str, Any],
    group: Group,
) -> dict[str, Fingerprint]:
    """Write the rows that this rank keeps, and on rank 0 the root. All ranks take part.

    Returns this rank's file of rows, by name.

    Args:
        optimizers: by role, such as `policy`.
        scalars: plain values for the root; `load` gives them back.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    mine = {role: found for role, found in optimizers.items() if found.weights.writes_slices}
    held = {key: (slice_, x) for key, slice_, x in _tensors(mine)}
    stem = f"rank-{group.rank:05d}"
    data = directory / f"{stem}.safetensors"
    written = _write_tensors(data, {key: x for key, (_, x) in held.items()})
    index = {
        "file": data.name,
        "xxh3": written.xxh3,
        "tensors": {
            key: {"shape": slice_.shape, "offset": slice_.offset, "rows": len(x)}
            for key, (slice_, x) in held.items()
        },
    }
    _write(directory / f"{stem}.json", index)
    group.barrier()
    if group.rank == 0:
        names = [f"rank-{rank:05d}.json" for rank in range(group.size)]
        steps = {role: optimizer.steps for role, optimizer in optimizers.items()}
        state = {
            "format": FORMAT,
            "indexes": {name: _checksum(directory / name) for name in names},
            "optimizer_steps": steps,
            "scalars": dict(scalars),
        }
        _write(directory / ROOT, {"xxh3": _digest(state), "state": state})
    group.barrier()
    return {data.name: written}


def load(
    directory: str | Path, optimizers: Mapping[str, Optimizer], group: Group
) -> dict[str, Any]:
    """Read this rank's rows back, whatever number of ranks wrote them; returns the scalars.

    Raises ValueError naming a file that is missing or damaged, or a tensor that the checkpoint
    lacks or holds in another shape. All ranks take part, and all of them raise.
    """
    directory = Path(directory)
    fault = _fault(directory, optimizers, group)
    worst = torch.tensor(float(fault is not None), device=group.device)
    if float(group.max(worst)):
        raise ValueError(fault or f"another rank found the checkpoint at {directory} damaged")
    state, indexes = _read(directory)
    for role, optimizer in optimizers.items():
        optimizer.steps = state["optimizer_steps"][role]
    for key, slice_, x in _tensors(optimizers):
        for index in indexes:
            _copy_rows(directory, index, key, slice_, x)
    for optimizer in optimizers.values():
        optimizer.weights.refresh()
    group.barrier()
    return state["scalars"]


def _fault(directory: Path, optimizers: Mapping[str, Optimizer], group: Group) -> str | None:
    """What is wrong with the files that this rank checks, or with what it looks for."""
    try:
        _, indexes = _read(directory)
        for index in indexes[group.rank :: group.size]:
            _verify_data(directory, index)
    except ValueError as error:
        return str(error)
    shapes = {key: entry["shape"] for index in indexes for key, entry in index["tensors"].items()}
    for key, slice_, _ in _tensors(optimizers):
        if shapes.get(key) != list(slice_.shape):
            return (
                f"checkpoint {directory} holds {key} as {shapes.get(key, 'nothing')}, and the "
                f"model wants {list(slice_.shape)}: resume with the model and critic that wrote it"
            )
    return None


def _tensors(optimizers: Mapping[str, Optimizer]) -> Iterator[tuple[str, Slice, Tensor]]:
    """(key, slice, this rank's rows) of every parameter and moment."""
    for role, optimizer in optimizers.items():
        for slice_, exp_avg, exp_avg_sq in optimizer.moments():
            yield f"{role}/parameter/{slice_.name}", slice_, slice_.local
            yield f"{role}/exp_avg/{slice_.name}", slice_, exp_avg
            yield f"{role}/exp_avg_sq/{slice_.name}", slice_, exp_avg_sq


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Fingerprint:
    """Write float32 tensors as safetensors does, to the disk: no other node has the pages."""
    digest, size = xxhash.xxh3_64(), 0
    try:
        with path.open("wb") as file:
            for part in _safetensors(tensors):
                size += file.write(part)
                digest.update(part)
        sync(path)
    except OSError as error:  # of a full disk, which does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
    return Fingerprint(size, digest.hexdigest())


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file's parts. A tensor leaves the GPU when its turn comes: the host never has all."""
    header, end = {}, 0
    for key, x in sorted(tensors.items()):
        start, end = end, end + x.nbytes
        header[key] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    yield len(head).to_bytes(8, "little")
    yield head
    for key in header:
        yield tensors[key].cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _copy_rows(
    directory: Path, index: Mapping[str, Any], key: str, slice_: Slice, x: Tensor
) -> None:
    """Fill the rows of `x` that this index's file holds."""
    entry = index["tensors"].get(key)
    if entry is None:
        return
    first = max(slice_.offset, entry["offset"])
    last = min(slice_.offset + len(x), entry["offset"] + entry["rows"])
    if first >= last:
        return
    with safe_open(directory / index["file"], framework="pt") as file:
        rows = file.get_slice(key)[first - entry["offset"] : last - entry["offset"]]
    x[first - slice_.offset : last - slice_.offset].copy_(rows)


def _read(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(root's state, the ranks' indexes). Raises ValueError naming a missing or damaged file."""
    root = _parse(directory / ROOT)
    if "state" not in root or root.get("xxh3") != _digest(root["state"]):
        raise ValueError(_damaged(directory / ROOT))
    state = root["state"]
    if state["format"] != FORMAT:
        raise ValueError(
            f"{directory / ROOT} has format {state['format']}, this code reads {FORMAT}: "
            f"resume with the version of rlhf_ray that wrote it"
        )
    for name, checksum in state["indexes"].items():
        if _checksum(directory / name) != checksum:
            raise ValueError(_damaged(directory / name))
    return state, [_parse(directory / name) for name in state["indexes"]]


def _verify_data(directory: Path, index: Mapping[str, Any]) -> None:
    file = directory / index["file"]
    if _checksum(file) != index["xxh3"]:
        raise ValueError(_damaged(file))


def _parse(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(_damaged(path)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(_damaged(path)) from error


def _checksum(path: Path) -> str | None:
    """xxh3-64 of a file; None where it is missing."""
    return fingerprint(path).xxh3 if path.is_file() else None


def _digest(state: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(state, sort_keys=True).encode())


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _damaged(path: Path) -> str:
    fault = "damaged" if path.exists() else "missing"
    return f"checkpoint file {path} is {fault}: use an older checkpoint"
