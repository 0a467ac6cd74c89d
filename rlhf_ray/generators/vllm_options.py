"""How vLLM is set up, as its EngineArgs; needs no vLLM itself."""

from typing import Any

from rlhf_ray.generators.cache import BLOCK_SIZE

MIN_BATCHED_TOKENS = 8192  # prompt tokens of one step


def engine_options(
    model_path: str,
    *,
    cuda: bool,
    dtype: str,
    max_model_len: int,
    max_num_seqs: int,
    kv_cache_mb: int,
    tensor_parallel: int = 1,
    trust_remote_code: bool = False,
    metrics_as: str | None = None,
    sleeps: bool = False,
    takes_ipc: bool = False,
    eager: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of EngineArgs. The arguments are VLLMGenerator's; cuda: it has a GPU."""
    options: dict[str, Any] = {
        "model": model_path,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "tensor_parallel_size": tensor_parallel,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": _batched_tokens(max_model_len, max_num_seqs),
        "block_size": BLOCK_SIZE,
        "kv_cache_memory_bytes": kv_cache_mb << 20,
        # A seeded request whose prompt is split over two steps crashes the CPU sampler; on a GPU
        # vLLM warns of wrong results without it.
        "enable_chunked_prefill": cuda,
        "enable_prefix_caching": True,
        # Raw log-probs would be those before the temperature.
        "logprobs_mode": "processed_logprobs",
        # A step's tokens must be those of the weights that are there when it returns.
        "async_scheduling": False,
        "enforce_eager": eager or not cuda,
        "skip_tokenizer_init": True,
        "enable_sleep_mode": sleeps,
        "weight_transfer_config": {"backend": "ipc"} if takes_ipc else None,
        "disable_log_stats": metrics_as is None,
        "served_model_name": metrics_as,
        "use_tqdm_on_load": False,
    }
    if tensor_parallel > 1:
        # Inside an actor with a placement group vLLM would take Ray, and refuse the one bundle.
        options["distributed_executor_backend"] = "mp"
    if cuda:
        # With the cache's size given this is only what must be free at the start: 92 % of the GPU
        # by default, where learners and scorers may be on it already.
        options["gpu_memory_utilization"] = 0.001
        # It would try kernels out that nothing here calls, and compile them first.
        options["enable_flashinfer_autotune"] = False
        # Large logits in bfloat16 would be tenths of a nat off; the learner's are float32 as well.
        options["hf_overrides"] = {"head_dtype": "float32"}
    if cuda and not eager:
        # CUDA graphs of decoding steps, and no compiler: mode 0 is CompilationMode.NONE.
        options["compilation_config"] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    return options


def _batched_tokens(max_model_len: int, max_num_seqs: int) -> int:
    """Tokens of a step: any one prompt whole, and no more than all sequences could have."""
    return min(max(MIN_BATCHED_TOKENS, max_model_len), max_num_seqs * max_model_len)
