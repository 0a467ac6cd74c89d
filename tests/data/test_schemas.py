import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data import schemas

TOKENS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=8)
FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=8)


@st.composite
def rollouts(draw):
    ids = draw(st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=6))
    rows = [
        {
            "rollout_id": i,
            "prompt_id": draw(st.integers(0, 9)),
            "sample_index": draw(st.integers(0, 9)),
            "prompt_token_ids": draw(TOKENS),
            "response_token_ids": draw(TOKENS),
            "behaviour_logprobs": draw(FLOATS),
            "finish_reason": draw(st.sampled_from([schemas.EOS, schemas.LENGTH])),
            "version_spans": draw(TOKENS),
            "generator": draw(st.text(max_size=4)),
        }
        for i in ids
    ]
    return rows


def row(rollout_id, **changes):
    return {
        "rollout_id": rollout_id,
        "prompt_id": 0,
        "sample_index": 0,
        "prompt_token_ids": [1, 2],
        "response_token_ids": [3, 4, 5],
        "behaviour_logprobs": [-0.5, -1.0, -1.5],
        "finish_reason": "eos",
        "version_spans": [0, 0, 0],
        "generator": "g0",
    } | changes


def ragged(*rows, dtype=np.int32):
    column = schemas.list_column(
        [np.array(r, dtype=dtype) for r in rows], pa.from_numpy_dtype(dtype)
    )
    return pa.table({"x": column})


@given(rollouts())
def test_round_trip_is_exact_through_ipc_and_pickle(rows):
    table = schemas.rollout_table(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for copy in (
        pa.ipc.open_stream(sink.getvalue()).read_all(),
        pickle.loads(pickle.dumps(table, protocol=5)),
    ):
        assert copy.equals(table, check_metadata=True)
        assert copy.to_pylist() == rows
        schemas.check(copy, schemas.ROLLOUT.names)


def test_views_alias_the_arrow_buffer():
    table = schemas.rollout_table([row(1), row(2, response_token_ids=[7])])
    for name in ("response_token_ids", "behaviour_logprobs"):
        values, cu_seqlens = schemas.views(table, name)
        buffer = table.column(name).chunk(0).values.buffers()[1]
        assert values.data_ptr() == buffer.address
        assert cu_seqlens.dtype == torch.int32
    assert schemas.views(table, "response_token_ids")[0].dtype == torch.int32
    assert schemas.views(table, "behaviour_logprobs")[0].dtype == torch.float32


def test_views_of_a_slice_alias_its_part_alone():
    table = ragged([1, 2], [3], [4, 5, 6], [7])
    values, cu_seqlens = schemas.views(table.slice(1, 2), "x")
    assert values.tolist() == [3, 4, 5, 6]
    assert cu_seqlens.tolist() == [0, 1, 4]
    buffer = table.column("x").chunk(0).values.buffers()[1]
    assert values.data_ptr() == buffer.address + 2 * 4


def test_views_survive_a_read_from_a_memory_map(tmp_path):
    table = ragged([1, 2], [], [3])
    with pa.OSFile(str(tmp_path / "t"), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_table(table)
    with pa.memory_map(str(tmp_path / "t")) as source:
        mapped = pa.ipc.open_file(source).read_all()
        values, cu_seqlens = schemas.views(mapped, "x")
        assert values.data_ptr() == mapped.column("x").chunk(0).values.buffers()[1].address
        assert (values.tolist(), cu_seqlens.tolist()) == ([1, 2, 3], [0, 2, 2, 3])


@given(st.lists(st.lists(st.integers(-5, 5), max_size=4), max_size=8), st.data())
def test_views_equal_the_rows_however_the_table_is_chunked_and_sliced(rows, data):
    cut = data.draw(st.integers(0, len(rows)))
    table = pa.concat_tables([ragged(*rows[:cut]), ragged(*rows[cut:])])
    start = data.draw(st.integers(0, len(rows)))
    length = data.draw(st.integers(0, len(rows) - start))
    values, cu_seqlens = schemas.views(table.slice(start, length), "x")
    wanted = rows[start : start + length]
    assert values.tolist() == [x for r in wanted for x in r]
    assert cu_seqlens.tolist() == [sum(map(len, wanted[:i])) for i in range(len(wanted) + 1)]


def test_views_of_nothing():
    for table in (
        schemas.ROLLOUT.empty_table(),
        schemas.rollout_table([]),
        pa.table({"response_token_ids": pa.chunked_array([], pa.list_(pa.int32()))}),
    ):
        values, cu_seqlens = schemas.views(table, "response_token_ids")
        assert values.numel() == 0
        assert cu_seqlens.tolist() == [0]


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), max_size=4), max_size=5))
def test_list_column_keeps_rows_and_their_type(rows):
    column = schemas.list_column([np.array(r) for r in rows], pa.float32())
    assert column.type == pa.list_(pa.float32())
    assert column.to_pylist() == rows


@given(rollouts(), st.randoms(use_true_random=False))
def test_join_matches_by_id_in_any_order(rows, random):
    table = schemas.rollout_table(rows)
    shuffled = random.sample(rows, len(rows))
    ids = pa.array([r["rollout_id"] for r in shuffled], pa.int64())
    reference = schemas.ref_columns(
        ids, [np.full(len(r["response_token_ids"]), r["rollout_id"] % 97) for r in shuffled]
    )
    scores = np.array([r["rollout_id"] % 89 for r in shuffled], dtype=np.float64)
    scored = schemas.score_columns(ids, {"score": scores, "score/x": -scores})
    joined = schemas.join(table, reference, scored)
    schemas.check(joined, [*schemas.ROLLOUT.names, "ref_logprobs", "score", "score/x"])
    assert joined.schema.field("score").type == pa.float32()
    found = joined.to_pylist()
    assert [r["rollout_id"] for r in found] == sorted(r["rollout_id"] for r in rows)
    for r in found:
        assert r["score"] == r["rollout_id"] % 89 == -r["score/x"]
        assert r["ref_logprobs"] == [r["rollout_id"] % 97] * len(r["response_token_ids"])
    original = sorted(rows, key=lambda r: r["rollout_id"])
    assert joined.select(schemas.ROLLOUT.names).to_pylist() == original


def scores_for(*ids, name="score"):
    return schemas.score_columns(pa.array(ids, pa.int64()), {name: np.zeros(len(ids))})


def test_join_refuses_what_does_not_match():
    table = schemas.rollout_table([row(1), row(2)])
    for other in (scores_for(1), scores_for(1, 3), scores_for(1, 1), scores_for(1, 2, 2)):
        with pytest.raises(ValueError, match="not those of the rollouts"):
            schemas.join(table, other)
    with pytest.raises(ValueError, match=r"repeat: \[1\]"):
        schemas.join(schemas.rollout_table([row(1), row(1)]), scores_for(1, 1))


def test_join_refuses_a_column_that_is_there():
    table = schemas.rollout_table([row(1), row(2)])
    with pytest.raises(ValueError, match="'score'"):
        schemas.join(table, scores_for(1, 2), scores_for(1, 2))


def test_check_names_what_is_wrong():
    table = schemas.rollout_table([row(1)])
    with pytest.raises(ValueError, match=r"lacks the columns \['score'\]"):
        schemas.check(table, ["rollout_id", "score"])
    with pytest.raises(ValueError, match="schema version None"):
        schemas.check(table.replace_schema_metadata(None), ["rollout_id"])
    hollow = table.append_column("score", pa.array([None], pa.float32()))
    with pytest.raises(ValueError, match=r"\['score'\] hold nulls"):
        schemas.check(hollow, ["score"])
    with pytest.raises(ValueError, match=r"\['prompt_id'\] hold nulls"):
        schemas.rollout_table([row(1, prompt_id=None)])
