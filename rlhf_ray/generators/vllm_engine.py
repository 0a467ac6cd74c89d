"""vLLM's engine core in this process, stepped by its caller.

Only the vllm_*.py files know vLLM; this one and vllm_reload.py import it. Private behaviours of
vLLM 0.32 that they rely on, or work around, are held down by tests/contracts. The process needs
`environment.vllm_environment` before it imports this file.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.metrics.loggers import PrometheusStatLogger

from rlhf_ray.data.ids import Version
from rlhf_ray.generators import vllm_reload
from rlhf_ray.generators.checkpoint_names import CheckpointNames
from rlhf_ray.generators.flight import Flight, check_room
from rlhf_ray.generators.ipc_update import checked
from rlhf_ray.generators.protocol import Completion, EngineDead, Request, Sampling
from rlhf_ray.generators.state import state_layout, without_weights
from rlhf_ray.generators.vllm_counts import EngineCounts
from rlhf_ray.generators.vllm_options import engine_options
from rlhf_ray.models.device import device_here

RELOADED_AT_ONCE = 256 << 20  # bytes of new weights on their way to each process of an engine

# Architectures whose loader in vLLM refuses `lm_head.weight`: their head is the embedding itself.
HEADLESS_LOADERS = frozenset({"bloom", "gemma2"})


class VLLMGenerator:
    """A Generator (see protocol.py) on vLLM: continuous batching, prefix cache, seeded sampling.

    kv_cache_mb: of each GPU. metrics_as: the `model_name` under which vLLM's own metrics stand in
    the process's registry of prometheus_client; None: it counts nothing. On CUDA alone: sleeps:
    `sleep` frees the GPU; takes_ipc: `load_ipc` takes weights from another process's GPU memory;
    eager: decode without CUDA graphs.
    """

    def __init__(
        self,
        model_path: str,
        *,
        sampling: Sampling,
        version: Version,
        dtype: str = "float32",
        max_model_len: int,
        max_num_seqs: int = 128,
        kv_cache_mb: int,
        tensor_parallel: int = 1,
        trust_remote_code: bool = False,
        metrics_as: str | None = None,
        sleeps: bool = False,
        takes_ipc: bool = False,
        eager: bool = False,
    ) -> None:
        self._sampling, self._version = sampling, version
        self._max_model_len, self._max_num_seqs = max_model_len, max_num_seqs
        model = without_weights(model_path, trust_remote_code=trust_remote_code)
        self._layout, self._names = state_layout(model), CheckpointNames(model)
        headless = self._layout.model_type in HEADLESS_LOADERS
        self._refused = frozenset({"lm_head.weight"}) if headless else frozenset()
        self._processes = tensor_parallel
        options = engine_options(
            model_path,
            cuda=device_here() == "cuda",
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            kv_cache_mb=kv_cache_mb,
            tensor_parallel=tensor_parallel,
            trust_remote_code=trust_remote_code,
            metrics_as=metrics_as,
            sleeps=sleeps,
            takes_ipc=takes_ipc,
            eager=eager,
        )
        self._engine = LLMEngine.from_engine_args(EngineArgs(**options))
        self._counts = EngineCounts(_prometheus(self._engine)) if metrics_as else None
        self._core = self._engine.engine_core
        self._queue: deque[Request] = deque()
        self._flights: dict[str, Flight] = {}
        self._finished: list[Completion] = []
        self._loads = 0
        self._usable, self._sleeps, self._asleep = True, sleeps, False

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue `requests`. ValueError for a prompt that leaves no room for a response."""
        for request in requests:
            check_room(request, self._sampling, self._max_model_len)
        self._wake()
        self._queue.extend(requests)

    def has_work(self) -> bool:
        """Whether any request is queued, in flight, or finished and not handed out."""
        return bool(self._queue or self._flights or self._finished)

    def step(self) -> list[Completion]:
        """Advance all requests in flight by about one token each; return those that finished."""
        self._check_usable()
        while self._queue and len(self._flights) < self._max_num_seqs:
            self._start(self._queue.popleft())
        if self._flights:
            self._round()
        finished, self._finished = self._finished, []
        return finished

    def abort(self, rollout_ids: Sequence[int]) -> None:
        """Forget these requests; unknown ids are ignored."""
        gone = set(rollout_ids)
        self._queue = deque(r for r in self._queue if r.rollout_id not in gone)
        self._finished = [c for c in self._finished if c.rollout_id not in gone]
        keys = [k for k, f in self._flights.items() if f.request.rollout_id in gone]
        self._core.abort_requests(keys)
        for key in keys:
            del self._flights[key]

    def load(self, version: Version, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights between two steps. Requests in flight go on under the new ones.

        Raises ValueError for tensors that are not this model's, all of them and of its shapes;
        nothing is changed then. EngineDead where vLLM itself fails: the process must end.
        """
        self._check_usable()
        state = self._layout.complete(tensors)
        self._usable = False
        try:
            self._wake()
            self._reload(state)
        except Exception as error:  # whatever it is, it leaves half a model behind
            raise EngineDead(f"loading version {version} failed half-way: {error}") from error
        self._became(version)

    def load_ipc(self, version: Version, update: Mapping[str, Any]) -> None:
        """Like `load`, from GPU memory that `weights.cuda_ipc` describes; never run on a GPU."""
        self._check_usable()
        update = checked(update, self._layout, self._names, without=self._refused)
        self._usable = False
        try:
            self._wake()
            rpc = self._core.collective_rpc
            rpc("init_weight_transfer_engine", args=({"packed": False},))
            rpc("start_weight_update")
            rpc("update_weights", args=(update,))
            rpc("finish_weight_update")
        except Exception as error:  # whatever it is, it leaves half a model behind
            raise EngineDead(f"loading version {version} failed half-way: {error}") from error
        self._became(version)

    def token_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """float32 [n − 1] per sequence: log-prob of each token after the first, at temperature 1.

        Requests in flight advance meanwhile. Raises ValueError for a sequence of no token, or of
        more than the engine's length less one (it has to sample a token of its own).
        """
        self._check_usable()
        too_long = max(map(len, sequences), default=1)
        if too_long >= self._max_model_len or not all(map(len, sequences)):
            raise ValueError(
                f"token_logprobs takes sequences of 1 to {self._max_model_len - 1} tokens, "
                f"one has {0 if not all(map(len, sequences)) else too_long}"
            )
        self._wake()
        # vLLM reads no cached prefix for a request that wants the log-probs of its prompt.
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        keys = [f"score-{index}" for index in range(len(sequences))]
        for key, sequence in zip(keys, sequences, strict=True):
            self._core.add_request(self._core_request(key, sequence, params))
        found: dict[str, np.ndarray] = {}
        while not found.keys() >= set(keys):
            for output in self._round():
                prompt = output.new_prompt_logprobs_tensors
                found[output.request_id] = (
                    np.empty(0, np.float32) if prompt is None else prompt.logprobs[:, 0].numpy()
                )
        return [found[key] for key in keys]

    def sleep(self) -> None:
        """Weights to the host's memory, the cache away, until the next load or request."""
        assert not self.has_work(), "an engine at work cannot sleep"
        if self._sleeps and not self._asleep:
            self._core.sleep(level=1)
            self._asleep = True

    def _wake(self) -> None:
        if self._asleep:
            assert self._core.wake_up(), "the engine woke up without all of its memory"
            self._asleep = False

    def close(self) -> None:
        """Free the engine and any process it started."""
        self._usable = False
        self._core.shutdown()

    def _round(self) -> list[EngineCoreOutput]:
        """One step of vLLM: the flights advance; what it gave to others."""
        outputs = self._core.get_output()
        if self._counts:
            self._counts.add(outputs)
        others = []
        for output in outputs.outputs:
            flight = self._flights.get(output.request_id)
            if flight is None:
                others.append(output)
            elif self._advance(flight, output):
                del self._flights[output.request_id]
                self._finished.append(flight.completion(self._sampling))
        return others

    def _check_usable(self) -> None:
        if not self._usable:
            raise EngineDead(
                f"the engine of version {self._version} is closed, or broke in the middle of a "
                f"load: end this process and start another generator"
            )

    def _start(self, request: Request) -> None:
        """Hand one request to vLLM; its own seed alone decides its tokens."""
        sampling = self._sampling
        params = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            stop_token_ids=[] if sampling.ignore_eos else list(sampling.eos_token_ids),
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
        )
        key = str(request.rollout_id)
        self._flights[key] = Flight(request)
        self._core.add_request(self._core_request(key, request.prompt_token_ids, params))

    def _core_request(
        self, key: str, token_ids: Sequence[int], params: SamplingParams
    ) -> EngineCoreRequest:
        """A request whose cached prefixes are only ever those of the weights it starts under."""
        return EngineCoreRequest(
            request_id=key,
            external_req_id=key,
            prompt_token_ids=list(token_ids),
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=f"{self._version}/{self._loads}",
            data_parallel_rank=None,
        )

    def _advance(self, flight: Flight, output: EngineCoreOutput) -> bool:
        """Record what one step gave `flight`; whether that ended it."""
        if output.new_token_ids:
            assert output.new_logprobs is not None
            logprobs = output.new_logprobs.logprobs[:, 0].tolist()
            for token, logprob in zip(output.new_token_ids, logprobs, strict=True):
                flight.add(token, logprob, self._version)
        return output.finish_reason is not None

    def _became(self, version: Version) -> None:
        """All weights are of `version` now: nothing of the old ones may be read any more."""
        self._usable = True
        self._version, self._loads = version, self._loads + 1
        self._restart_unsampled()
        if not self._flights:
            assert self._core.reset_prefix_cache(), "an idle engine kept its prefix cache"

    def _reload(self, state: dict[str, torch.Tensor]) -> None:
        taken = [one for one in self._names.of(state.items()) if one[0] not in self._refused]
        rpc = self._core.collective_rpc
        rpc(vllm_reload.begin)
        # What is sent to other processes is copied by each: never all weights at once.
        for part in [taken] if self._processes == 1 else _parts(taken):
            rpc(vllm_reload.load_part, args=(part,))
        rpc(vllm_reload.finish)

    def _restart_unsampled(self) -> None:
        """Start again those in flight that have no token yet.

        They carry the old version's salt: their prompts would be read from, or added to, the keys
        and values of the old weights, although every token of theirs is the new version's.
        """
        waiting = [key for key, flight in self._flights.items() if not flight.tokens]
        self._core.abort_requests(waiting)
        for key in waiting:
            self._start(self._flights.pop(key).request)


def _prometheus(engine: LLMEngine) -> PrometheusStatLogger:
    loggers = engine.logger_manager.stat_loggers
    return next(one for one in loggers if isinstance(one, PrometheusStatLogger))


def _parts(state: Iterable[tuple[str, torch.Tensor]]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """`state`, cut after every `RELOADED_AT_ONCE` bytes.

    The names of one tensor stay together: vLLM refuses a tied head without its embedding.
    """
    named: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in state:
        named.setdefault(tensor.data_ptr(), []).append((name, tensor))
    part: list[tuple[str, torch.Tensor]] = []
    held = 0
    for names in named.values():
        nbytes = names[0][1].nbytes
        if part and held + nbytes > RELOADED_AT_ONCE:
            yield part
            part, held = [], 0
        part += names
        held += nbytes
    if part:
        yield part
