"""Rows end to end against the same rows one at a time, and attention against its formula."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
)

from rlhf_ray.models import attention
from rlhf_ray.models.attention import blocks_of, packed_attention
from rlhf_ray.models.packing import PackedRows, hidden_states, packs, response_rows, use_packing

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BERT = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
MODELS = {
    "llama": lambda: LlamaModel(LlamaConfig(**SHAPE)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**SHAPE)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)),
    "mistral, window of 6": lambda: MistralModel(MistralConfig(**SHAPE, sliding_window=6)),
    "bloom": lambda: BloomModel(BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4)),
    "bert": lambda: BertModel(BertConfig(**BERT)),
}
PADDED = ("bloom", "bert")  # their own attention; every position sees every other
LENGTHS = (3, 40, 9, 1, 300, 34, 9)


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def rows_of(lengths: tuple[int, ...]) -> PackedRows:
    generator = torch.Generator().manual_seed(sum(lengths))
    return PackedRows(torch.randint(1, 50, (sum(lengths),), generator=generator), lengths)


@pytest.mark.parametrize("name", MODELS)
def test_features_and_gradients_are_those_of_each_row_alone(name: str) -> None:
    model, rows = make(name), rows_of(LENGTHS)
    direction_ND = torch.randn(sum(LENGTHS), 32)

    def gradients(hidden_ND: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        (hidden_ND * direction_ND).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    alone = [model(input_ids=ids[None]) for ids in rows.ids_N.split(LENGTHS)]
    want_ND = torch.cat([out.last_hidden_state[0] for out in alone])
    want = gradients(want_ND)
    use_packing(model)
    assert packs(model) == (name not in PADDED)
    found_ND = hidden_states(model, rows)
    torch.testing.assert_close(found_ND, want_ND, rtol=1e-4, atol=1e-5)
    for found, wanted in zip(gradients(found_ND), want, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral, window of 6"])
def test_in_bfloat16_it_is_as_near_to_float32_as_padding_is(name: str) -> None:
    model, rows = make(name), rows_of(LENGTHS)
    direction_ND = torch.randn(sum(LENGTHS), 32)

    def found() -> list[torch.Tensor]:
        """Hidden states, and the gradients of each parameter end to end."""
        model.zero_grad()
        hidden_ND = hidden_states(model, rows)
        (hidden_ND * direction_ND.to(hidden_ND.dtype)).sum().backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return [hidden_ND.detach().float(), torch.cat(grads).float()]

    exact = found()
    model.bfloat16()
    padded = found()
    use_packing(model)
    assert packs(model)
    for packed, by_padding, right in zip(found(), padded, exact, strict=True):
        assert (packed - right).abs().mean() < 1.5 * (by_padding - right).abs().mean()


def test_few_shapes_of_bfloat16_products_occur() -> None:
    """Code is compiled for each; float32, which is reproduced bit for bit, keeps its shapes."""
    half, full = make("llama").bfloat16(), make("llama")
    seen: dict[str, set[int]] = {"half": set(), "full": set()}
    for name, model in (("half", half), ("full", full)):
        use_packing(model)
        model.layers[0].mlp.up_proj.register_forward_hook(
            lambda _, given, __, name=name: seen[name].add(given[0].shape[1])
        )
        for length in range(1, 300, 7):
            hidden_ND = hidden_states(model, rows_of((length, 5)))
            assert len(hidden_ND) == length + 5
    assert seen["half"] == {128, 256, 384}
    assert len(seen["full"]) == len(range(1, 300, 7))
    seen["half"].clear()
    hidden_states(half, rows_of((9, 9, 9)))
    assert seen["half"] == {27}


def oracle(q_HTD: np.ndarray, k_GTD: np.ndarray, v_GTD: np.ndarray, window: int) -> np.ndarray:
    out_HTD = np.zeros_like(q_HTD)
    share = len(q_HTD) // len(k_GTD)
    for h, q_TD in enumerate(q_HTD):
        for t, q_D in enumerate(q_TD):
            seen = slice(max(0, t - window + 1), t + 1)
            logits = k_GTD[h // share, seen] @ q_D / np.sqrt(len(q_D))
            weights = np.exp(logits - logits.max())
            out_HTD[h, t] = weights / weights.sum() @ v_GTD[h // share, seen]
    return out_HTD


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    groups=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([None, 1, 5, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    grouped=st.booleans(),
    longest=st.sampled_from([16, 512]),
    block_cost=st.sampled_from([0, 500, 32_768]),
    multiple_of=st.sampled_from([1, 16]),
    after=st.sampled_from([0, 5]),
)
def test_attention_equals_the_formula_row_by_row(
    lengths, groups, window, dtype, grouped, longest, block_cost, multiple_of, after
) -> None:
    torch.manual_seed(sum(lengths))
    total = sum(lengths) + after
    query = torch.randn(1, 4, total, 8, dtype=dtype)
    key, value = torch.randn(2, 1, groups, total, 8, dtype=dtype)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attention, "LONGEST", 0 if grouped else longest)
        patched.setattr(attention, "_takes_groups", lambda like: grouped)  # as on a GPU
        patched.setattr(attention, "BLOCK_COST", block_cost)
        blocks = blocks_of(lengths, CPU, multiple_of=multiple_of)
        out, _ = packed_attention(
            torch.nn.Module(), query, key, value, None, blocks=blocks, sliding_window=window
        )
    assert out.shape == query.transpose(1, 2).shape and not out[0, total - after :].any()
    ends = np.cumsum(lengths)
    for last, length in zip(ends, lengths, strict=True):
        row = slice(last - length, last)
        parts = [x[0, :, row].double().numpy() for x in (query, key, value)]
        want = oracle(*parts, window or total).transpose(1, 0, 2)
        tolerance = 1e-5 if dtype == torch.float32 else 0.04
        np.testing.assert_allclose(out[0, row].double(), want, atol=tolerance, rtol=tolerance)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=40))
def test_blocks_hold_every_token_once_and_are_padded_little(lengths) -> None:
    blocks = blocks_of(lengths, CPU)
    assert [b.tokens.start for b in blocks] == [0, *(b.tokens.stop for b in blocks[:-1])]
    assert blocks[-1].tokens.stop == sum(lengths)
    assert sum(b.rows for b in blocks) == len(lengths)
    first = 0
    for block in blocks:
        rows, first = lengths[first : first + block.rows], first + block.rows
        assert block.longest == max(rows)
        assert block.tokens.stop - block.tokens.start == sum(rows)
        alone = sum(length**2 for length in rows)
        assert block.rows * block.longest**2 <= 2 * alone + attention.BLOCK_COST
        if block.places_n is None:
            assert set(rows) == {block.longest}
        else:
            places = block.places_n.tolist()
            assert len(set(places)) == sum(rows) and max(places) < block.rows * block.longest


def test_padding_is_taken_away_on_either_side() -> None:
    ids = torch.tensor([[0, 0, 7, 8], [5, 0, 0, 0], [0, 4, 0, 0]])
    rows = PackedRows.of_padded(ids, torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]]))
    assert rows.ids_N.tolist() == [7, 8, 5, 0, 4] and rows.lengths == (2, 2, 1)
    ids_BL, mask_BL = rows.padded(9)
    assert ids_BL.tolist() == [[7, 8], [5, 0], [4, 9]]
    assert mask_BL.tolist() == [[True, True], [True, True], [True, False]]


def test_a_response_is_predicted_by_the_positions_before_its_tokens() -> None:
    prompts = [np.array(row, np.int32) for row in ([5], [6, 7, 8], [9, 4])]
    responses = [np.array(row, np.int32) for row in ([1, 2, 3], [4], [5, 6])]
    rows, index_N, targets_N = response_rows(prompts, responses)
    assert rows.ids_N.tolist() == [5, 1, 2, 6, 7, 8, 9, 4, 5] and rows.lengths == (3, 3, 3)
    assert index_N.tolist() == [0, 1, 2, 5, 7, 8]
    assert targets_N.tolist() == [1, 2, 3, 4, 5, 6]
    assert rows.ids_N.dtype == index_N.dtype == targets_N.dtype == torch.int64


def test_no_response_is_a_pass_over_one_token() -> None:
    rows, index_N, targets_N = response_rows([], [])
    assert rows.lengths == (1,) and index_N.tolist() == targets_N.tolist() == []
    assert index_N.dtype == targets_N.dtype == torch.int64


def test_a_model_that_packing_would_change_stays_padded() -> None:
    model = make("llama")
    # What no attention can undo: a layer that mixes neighbouring positions.
    model.layers[0].mlp.register_forward_hook(lambda _, __, out: out + out.roll(1, dims=1))
    use_packing(model)
    assert not packs(model)


def test_a_saved_config_does_not_name_it(tmp_path) -> None:
    model = make("gpt2")
    use_packing(model)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
