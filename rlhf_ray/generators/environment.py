"""What a generator's process must have in its environment before it imports its engine."""

# bfloat16 products: oneDNN keeps the code of each shape and torch's layer above it a description,
# 1,024 of either by default, in every process 300 MB in all. Even with the sizes that
# models/shapes.py rounds up, batches go on bringing new shapes, so that without a bound a process
# grows for hundreds of iterations; within 64, a learner's shapes push each other out.
ONEDNN = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}


def vllm_environment(threads: int) -> dict[str, str]:
    """Environment variables of a process that runs vLLM with `threads` threads; Ray's `env_vars`.

    The engine core stays in the process (no child to lose), nothing is compiled (the first request
    would wait 18 s for it), no thread is pinned (two engines on one machine would pin themselves to
    the same cores), and nothing is reported or looked up on the net. OMP_NUM_THREADS is the only
    way to set threads: vLLM makes `torch.set_num_threads` do nothing. How threads wait is left to
    OpenMP: with OMP_WAIT_POLICY=passive an engine alone gave 5.9 instead of 6.9 thousand tokens/s;
    beside another busy process it is the better choice (4.2 against 0.9 to 2.2). An engine of
    several GPUs starts a process for each: not by fork, which a process that has threads, or has
    asked for a GPU, must not do.

    On a GPU: float32 attention, which is Triton's, would multiply in TF32; FlashInfer's sampler,
    which would be compiled at the start, takes no request that has a seed.
    """
    return ONEDNN | {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TORCH_COMPILE_DISABLE": "1",
        "TRITON_F32_DEFAULT": "ieee",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def torch_environment(threads: int) -> dict[str, str]:
    """Environment variables of a process that computes with plain torch."""
    return ONEDNN | {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS gives the same bits each time only with it
    }
