"""What every generator backend must do; for vLLM, also what is known to go wrong in it.

Prompts are longer than two of vLLM's cache blocks (32 tokens), so that stale prefixes show.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from rlhf_ray.data.ids import Version
from rlhf_ray.data.schemas import EOS, LENGTH
from rlhf_ray.generators.protocol import Completion, EngineDead, Request, Sampling
from rlhf_ray.generators.registry import BACKENDS
from tests.contracts import actions, models, oracle
from tests.contracts.engines import THREADS, EngineProcess

TEMPERATURE, MAX_TOKENS, AT_ONCE = 0.7, 24, 128
ENDS = (models.EOS, 7)
SAMPLING = Sampling(TEMPERATURE, MAX_TOKENS, ENDS)
# BLOOM alone: vLLM's ALiBi and transformers' differ by this much with the same weights.
TOLERANCE = dict.fromkeys(models.CONFIGS, 0.0001) | {"bloom": 2e-3}


@dataclass
class Bench:
    """An engine, and two sets of weights: directories for the engine, models for the oracle."""

    engine: EngineProcess
    shape: str
    paths: tuple[str, str]
    models: tuple[PreTrainedModel, PreTrainedModel]
    step: int = 0

    def version(self) -> Version:
        """A version that was not loaded before."""
        self.step += 1
        return Version(1, self.step)

    def load(self, which: int) -> Version:
        version = self.version()
        self.engine.call(actions.load, version, self.paths[which])
        return version

    def close_to(self, which: int, requests: Sequence[Request], done: actions.Completions) -> None:
        """Every behaviour log-prob is the model's, teacher-forced, at logits / temperature."""
        for request in requests:
            completion = done[request.rollout_id]
            response = completion.response_token_ids.tolist()
            logprobs_RV = oracle.distributions(
                self.models[which], request.prompt_token_ids, response, TEMPERATURE
            )
            self.assert_close(completion.behaviour_logprobs, oracle.chosen(logprobs_RV, response))

    def scores_close_to(self, which: int, sequences: Sequence[Sequence[int]]) -> None:
        """`token_logprobs` are the model's, at temperature 1."""
        self.assert_scores(which, sequences, self.engine.call(actions.token_logprobs, sequences))

    def assert_scores(
        self, which: int, sequences: Sequence[Sequence[int]], found: Sequence[np.ndarray]
    ) -> None:
        for sequence, logprobs in zip(sequences, found, strict=True):
            assert logprobs.dtype == np.float32
            assert logprobs.shape == (len(sequence) - 1,)
            if len(sequence) > 1:
                logp_RV = oracle.distributions(self.models[which], sequence[:1], sequence[1:], 1.0)
                self.assert_close(logprobs, oracle.chosen(logp_RV, sequence[1:]))

    def assert_close(self, logprobs: np.ndarray, expected_R: torch.Tensor) -> None:
        np.testing.assert_allclose(logprobs, expected_R, rtol=0, atol=TOLERANCE[self.shape])


def make_bench(shape: str, backend: str, directory: Path, *, kv_cache_mb: int = 128) -> Bench:
    paths = (directory / "first", directory / "second")
    made = tuple(models.make(shape, path, seed=i) for i, path in enumerate(paths))
    engine = EngineProcess(
        backend,
        str(paths[0]),
        sampling=SAMPLING,
        version=Version(0, 0),
        max_model_len=models.POSITIONS,
        max_num_seqs=AT_ONCE,
        kv_cache_mb=kv_cache_mb,
    )
    return Bench(engine, shape, (str(paths[0]), str(paths[1])), made)


@pytest.fixture(scope="module", params=BACKENDS)
def bench(request, tmp_path_factory) -> Iterator[Bench]:
    bench = make_bench("qwen2", request.param, tmp_path_factory.mktemp("qwen2"))
    yield bench
    bench.engine.close()


def some_requests(
    n: int, *, first_id: int = 0, shortest: int = 66, longest: int = 80, seed: int = 0
) -> list[Request]:
    """Requests with random prompts; sampling seeds use all of their 63 bits."""
    rng = np.random.default_rng((seed, first_id, n))
    lengths = rng.integers(shortest, longest, n)
    prompts = [rng.integers(3, models.VOCAB, length).tolist() for length in lengths]
    return [Request(first_id + i, prompt, a_seed(rng)) for i, prompt in enumerate(prompts)]


def a_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 62, (1 << 63) - 1))


def tokens(done: actions.Completions, ids: Sequence[int] | None = None) -> dict[int, list[int]]:
    return {i: done[i].response_token_ids.tolist() for i in (done if ids is None else ids)}


def test_logprobs_are_of_the_distribution_sampled_from(bench):
    version = bench.load(0)
    requests = [*some_requests(12), *some_requests(12, first_id=100, shortest=1, longest=9)]
    done = bench.engine.call(actions.generate, requests)
    bench.close_to(0, requests, done)
    for completion in done.values():
        assert completion.version_spans == (0, version.incarnation, version.step)
        assert completion.response_token_ids.dtype == np.int32
        assert completion.behaviour_logprobs.dtype == np.float32


def test_a_response_ends_with_the_first_token_that_ends_one_or_at_the_limit(bench):
    done = bench.engine.call(actions.generate, some_requests(100, shortest=1, longest=9))
    assert {completion.finish_reason for completion in done.values()} == {EOS, LENGTH}
    lasts = {completion.response_token_ids[-1] for completion in done.values()}
    assert lasts > set(ENDS), "either of them was met"
    for completion in done.values():
        *earlier, last = completion.response_token_ids.tolist()
        assert not set(earlier) & set(ENDS)
        assert (completion.finish_reason == EOS) == (last in ENDS)
        assert len(completion.behaviour_logprobs) == len(completion.response_token_ids)
        assert completion.finish_reason == EOS or len(earlier) + 1 == MAX_TOKENS


def test_every_prompt_of_a_step_that_is_too_large_is_still_prefilled_whole(bench):
    """More seeded prompt tokens than a step takes, several blocks each; and more than `AT_ONCE`."""
    bench.load(0)
    requests = some_requests(AT_ONCE + 20)
    assert sum(len(request.prompt_token_ids) for request in requests[:AT_ONCE]) > 8192
    done = bench.engine.call(actions.generate, requests)
    assert done.keys() == {request.rollout_id for request in requests}
    bench.close_to(0, requests[::12], done)


def test_tokens_come_as_often_as_their_probability_says(bench):
    """Σ (log p(sampled) + entropy) has mean 0 and a variance that the oracle knows."""
    bench.load(0)
    requests = some_requests(60, shortest=4, longest=12)
    done = bench.engine.call(actions.generate, requests)
    excess, variance = 0.0, 0.0
    for request in requests:
        response = done[request.rollout_id].response_token_ids.tolist()
        logp_RV = oracle.distributions(
            bench.models[0], request.prompt_token_ids, response, TEMPERATURE
        )
        mean_R = (logp_RV.exp() * logp_RV).sum(1)
        excess += float((oracle.chosen(logp_RV, response) - mean_R).sum())
        variance += float(((logp_RV.exp() * logp_RV**2).sum(1) - mean_R**2).sum())
    assert abs(excess) < 4 * variance**0.5


def test_a_rollout_depends_on_its_own_seed_alone(bench):
    bench.load(0)
    requests = some_requests(6)
    others = [some_requests(15, first_id=1000 * (i + 1), shortest=1) for i in range(3)]
    alone = tokens(bench.engine.call(actions.generate, requests))
    batches = [others[0], [*others[1], *requests[::-1]], others[2]]
    among = bench.engine.call(actions.generate_staggered, batches)
    assert tokens(among, list(alone)) == alone
    rng = np.random.default_rng(0)
    group = [Request(i, requests[0].prompt_token_ids, a_seed(rng)) for i in range(8)]
    responses = tokens(bench.engine.call(actions.generate, group)).values()
    assert len({tuple(response) for response in responses}) > 4  # a likely one may come twice


def test_after_a_load_nothing_comes_from_the_old_weights(bench):
    """The prompts' keys and values are cached when the weights change, and change back."""
    requests = some_requests(8)
    for which in (0, 1, 0):
        version = bench.load(which)
        for _ in range(2):
            done = bench.engine.call(actions.generate, requests)
            bench.close_to(which, requests, done)
        spans = {completion.version_spans for completion in done.values()}
        assert spans == {(0, version.incarnation, version.step)}


def test_a_tied_head_is_replaced_whichever_of_its_names_come(bench):
    requests = some_requests(4)
    bench.load(0)
    bench.engine.call(
        actions.load_under_both_names, bench.version(), bench.paths[1], "model.embed_tokens.weight"
    )
    bench.close_to(1, requests, bench.engine.call(actions.generate, requests))
    bench.load(0)  # the file has the embedding alone
    bench.close_to(0, requests, bench.engine.call(actions.generate, requests))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"without": "model.layers.1.mlp.up_proj.weight"}, "lacks 1 of .*mlp.up_proj"),
        ({"without": "model.embed_tokens.weight"}, "lacks 2 of .*embed_tokens"),
        ({"extra": {"model.layers.2.bias": (3,)}}, "none of the model's.*layers.2.bias"),
        ({"extra": {"model.norm.weight": (65,)}}, r"model.norm.weight.*\(65,\).*\(64,\)"),
    ],
    ids=["missing", "tied-missing", "unknown", "shape"],
)
def test_a_load_that_is_not_whole_is_refused_and_changes_nothing(bench, fault, message):
    version = bench.load(0)
    with pytest.raises(ValueError, match=message):
        bench.engine.call(
            actions.load, bench.version(), bench.paths[1], fault.get("without"), fault.get("extra")
        )
    requests = some_requests(2)
    done = bench.engine.call(actions.generate, requests)
    bench.close_to(0, requests, done)
    assert done[0].version_spans == (0, version.incarnation, version.step)


def test_a_source_that_fails_before_the_load_changes_nothing(bench):
    bench.load(0)
    with pytest.raises(ConnectionError, match="the other half"):
        bench.engine.call(actions.load_that_breaks_off, bench.version(), bench.paths[1])
    requests = some_requests(2)
    bench.close_to(0, requests, bench.engine.call(actions.generate, requests))


@pytest.mark.parametrize(
    ("steps", "kinds"),
    [(1, {"across", "after"}), (7, {"before", "across"})],
    ids=["while-prompts-are-read", "later"],
)
def test_requests_in_flight_go_on_under_new_weights_and_say_from_where(bench, steps, kinds):
    old, new = bench.load(0), bench.version()
    requests = some_requests(AT_ONCE + 6)
    # The last to start have their prompts cached already, and have no token when the load comes.
    bench.engine.call(actions.generate, requests[AT_ONCE - 12 : AT_ONCE])
    done = bench.engine.call(actions.generate_across_a_load, requests, steps, new, bench.paths[1])
    assert {check_spans(bench, r, done[r.rollout_id], old, new) for r in requests} >= kinds


def check_spans(
    bench: Bench, request: Request, done: Completion, old: Version, new: Version
) -> str:
    """Compare one completion with the oracle of its spans; what kind it was."""
    response = done.response_token_ids.tolist()
    spans = [done.version_spans[i : i + 3] for i in range(0, len(done.version_spans), 3)]
    versions = [Version(*span[1:]) for span in spans]
    assert spans[0][0] == 0
    prompt, (first, second) = request.prompt_token_ids, bench.models
    if len(spans) == 1:
        model = first if versions == [old] else second
        expected_RV = oracle.distributions(model, prompt, response, TEMPERATURE)
        kind = "before" if versions == [old] else "after"
    else:
        assert versions == [old, new]
        changed = spans[1][0]
        expected_RV = oracle.distributions_across(
            first, second, prompt, response, changed, TEMPERATURE
        )
        kind = "across"
    if request.rollout_id % 4 == 0 or request.rollout_id >= AT_ONCE:  # the rest only costs time
        bench.assert_close(done.behaviour_logprobs, oracle.chosen(expected_RV, response))
    return kind


def test_aborted_requests_never_come_back_and_the_rest_is_untouched(bench):
    bench.load(0)
    requests = some_requests(AT_ONCE + 10, shortest=1, longest=9)  # the last ones wait in the queue
    undisturbed = tokens(bench.engine.call(actions.generate, requests))
    aborted = [3, 4, AT_ONCE + 5, 10**12]
    done = bench.engine.call(actions.generate_and_abort, requests, 1, aborted)
    assert done.keys() == undisturbed.keys() - set(aborted)
    assert tokens(done) == {i: undisturbed[i] for i in done}
    assert not bench.engine.call(actions.has_work)


def test_token_logprobs_are_the_models_at_temperature_1(bench):
    sequences = [r.prompt_token_ids for r in some_requests(5)] + [[5, 6], [7]]
    for which in (0, 1):
        bench.load(which)
        bench.engine.call(actions.generate, some_requests(5))  # the cache knows these prompts
        bench.scores_close_to(which, sequences)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([5] * 240, r"rollout 77 has 240 tokens.*response of 24.*256.*--data.max-prompt-tokens"),
        ([], "prompt of rollout 77 has no tokens"),
    ],
    ids=["too-long", "empty"],
)
def test_a_prompt_without_room_is_refused(bench, prompt, message):
    with pytest.raises(ValueError, match=message):
        bench.engine.call(actions.generate, [Request(77, prompt, 1)])
    assert not bench.engine.call(actions.has_work)


def test_token_logprobs_of_a_version_that_came_while_requests_are_in_flight(bench):
    requests, sequences = some_requests(6), [[5, 6, 7, 8, 9], [9, 10]]
    bench.load(0)
    version = bench.version()
    found, done = bench.engine.call(
        actions.load_and_score_in_flight, requests, version, bench.paths[1], sequences
    )
    bench.assert_scores(1, sequences, found)
    assert sorted(done) == [request.rollout_id for request in requests]
    mixed = [c for c in done.values() if c.version_spans[2::3] == (version.step - 1, version.step)]
    assert len(mixed) > 2, "few were in flight"
    for completion in done.values():
        assert len(completion.behaviour_logprobs) == len(completion.response_token_ids)


def test_the_engine_has_the_threads_it_was_given(bench):
    assert bench.engine.call(actions.threads) == THREADS


def test_a_load_that_fails_half_way_kills_the_engine(bench):
    """The last test of this engine: nothing works after it."""
    bench.load(0)
    with pytest.raises(EngineDead, match="failed half-way"):
        bench.engine.call(actions.load_without_data, bench.version(), bench.paths[1])
    for action, *arguments in (
        (actions.generate, some_requests(1)),
        (actions.load, Version(9, 9), bench.paths[0]),
        (actions.token_logprobs, [[3, 4]]),
    ):
        with pytest.raises(EngineDead):
            bench.engine.call(action, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["llama", "gpt2", "gemma2", "bloom", "qwen3_moe", "mixtral"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_shapes_after_a_change_of_all_weights(backend, shape, tmp_path):
    bench = make_bench(shape, backend, tmp_path)
    try:
        requests = some_requests(8)
        for which in (0, 1, 0):
            bench.load(which)
            for _ in range(2):
                bench.close_to(which, requests, bench.engine.call(actions.generate, requests))
            bench.scores_close_to(which, [request.prompt_token_ids for request in requests])
    finally:
        bench.engine.close()


@pytest.mark.slow
def test_a_cache_too_small_for_all_changes_no_token(tmp_path):
    """vLLM takes running requests back when its cache is full, and computes them again.

    2 MB are 128 blocks (a token takes 512 bytes): 40 prompts start with 3 each, and want a fourth.
    """
    small, large = (
        make_bench("qwen2", "vllm", tmp_path / str(size), kv_cache_mb=size) for size in (2, 64)
    )
    try:
        requests = some_requests(40)
        expected = tokens(large.engine.call(actions.generate, requests))
        done = small.engine.call(actions.generate, requests)
        assert tokens(done) == expected
        small.close_to(0, requests, done)
    finally:
        small.engine.close()
        large.engine.close()
