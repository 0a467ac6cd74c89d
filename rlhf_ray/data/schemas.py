"""The Arrow tables that flow between actors: one row a rollout, no nulls, joined by `rollout_id`.

Lists are `list<int32>` and `list<float32>`; ids are int64; the schema's version is in its metadata.
Ship `pa.Table`, never a sliced `RecordBatch`: pickling that drags its parent's whole buffers along.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

VERSION = b"1"
_METADATA = {b"rlhf_ray.schema": VERSION}

ROLLOUT = pa.schema(
    [
        pa.field("rollout_id", pa.int64(), nullable=False),
        pa.field("prompt_id", pa.int64(), nullable=False),
        pa.field("sample_index", pa.int64(), nullable=False),
        pa.field("prompt_token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response_token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("behaviour_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        # Flat triples (first position, incarnation, step): the version each span was sampled under.
        pa.field("version_spans", pa.list_(pa.int32()), nullable=False),
        pa.field("generator", pa.string(), nullable=False),
    ],
    metadata=_METADATA,
)

EOS, LENGTH = "eos", "length"  # the finish reasons


def rollout_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows (dicts with every column of ROLLOUT) as one contiguous table, in the order given.

    Raises ValueError where a row lacks a value.
    """
    table = pa.Table.from_pylist(list(rows), schema=ROLLOUT)
    check(table, ROLLOUT.names)
    return table


def ref_columns(rollout_ids: pa.Array, ref_logprobs: Sequence[np.ndarray]) -> pa.Table:
    """What the reference scorer returns: `rollout_id`, `ref_logprobs` (float32, one a token)."""
    return pa.table(
        {
            "rollout_id": rollout_ids,
            "ref_logprobs": list_column(ref_logprobs, pa.float32()),
        }
    ).replace_schema_metadata(_METADATA)


def score_columns(rollout_ids: pa.Array, columns: Mapping[str, np.ndarray]) -> pa.Table:
    """What a reward scorer returns: `rollout_id`, `score`, `score_valid`, `score/<component>`.

    float32; masks (bool) become uint8.
    """
    dtypes = {name: np.uint8 if x.dtype == bool else np.float32 for name, x in columns.items()}
    arrays = {name: pa.array(x.astype(dtypes[name])) for name, x in columns.items()}
    return pa.table({"rollout_id": rollout_ids, **arrays}).replace_schema_metadata(_METADATA)


def list_column(parts: Sequence[np.ndarray], value_type: pa.DataType) -> pa.ListArray:
    """Ragged rows as one list column: the values once, contiguous, and int32 offsets."""
    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    dtype = value_type.to_pandas_dtype()
    values = np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=value_type))


def check(table: pa.Table, required: Sequence[str]) -> None:
    """Raise ValueError unless `table` has this schema version, the columns, and no nulls."""
    version = (table.schema.metadata or {}).get(b"rlhf_ray.schema")
    if version != VERSION:
        raise ValueError(
            f"table has schema version {version!r}, this code reads {VERSION!r}: "
            f"the actors of a run must all run the same version of rlhf_ray"
        )
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise ValueError(f"table lacks the columns {missing}; it has {table.column_names}")
    nulls = [name for name in required if table.column(name).null_count]
    if nulls:
        raise ValueError(f"columns {nulls} hold nulls; a rollout table has none")


def join(rollouts: pa.Table, *others: pa.Table) -> pa.Table:
    """`rollouts` with the new columns of `others`, matched by `rollout_id`, sorted by it.

    Raises ValueError where the ids differ or repeat, or where a column is there already.
    """
    order = np.argsort(ids := rollouts.column("rollout_id").to_numpy(), kind="stable")
    ids = ids[order]
    if len(ids) > 1 and (np.diff(ids) == 0).any():
        raise ValueError(f"rollout ids repeat: {ids[1:][np.diff(ids) == 0][:5].tolist()}")
    result = rollouts.take(order)
    for other in others:
        other_ids = other.column("rollout_id").to_numpy()
        other_order = np.argsort(other_ids, kind="stable")
        if not np.array_equal(other_ids[other_order], ids):
            raise ValueError("the scorer's rollout ids are not those of the rollouts it was given")
        matched = other.take(other_order)
        for name in matched.column_names:
            if name == "rollout_id":
                continue
            if name in result.column_names:
                raise ValueError(f"two tables bring the column {name!r}; each column has one maker")
            result = result.append_column(name, matched.column(name))
    return result


def views(table: pa.Table, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`(values, cu_seqlens)` of a list column, without a copy where the column is one chunk.

    values: int32 or float32, all rows end to end, aliasing the table's memory: READ-ONLY (it may be
    shared with other processes), so copy it at `.to(device)` and never write. cu_seqlens: int32
    [rows + 1], starting at 0. Honours slices.
    """
    column = table.column(name)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], type=column.type)
    offsets = array.offsets.to_numpy(zero_copy_only=True)
    values = array.flatten().to_numpy(zero_copy_only=True)
    return _alias(values), torch.from_numpy(offsets - offsets[0])


def rows_of(table: pa.Table, name: str) -> list[np.ndarray]:
    """A list column's rows, as views of its memory: read-only."""
    values, offsets = views(table, name)
    return np.split(values.numpy(), offsets[1:-1].numpy()) if table.num_rows else []


def _alias(values: np.ndarray) -> torch.Tensor:
    """A tensor on `values`' own memory; torch warns of read-only arrays, which is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)
