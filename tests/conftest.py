"""What every test process needs before Ray, transformers or tokenizers are imported."""

import os

# Ray's workers and vLLM's children inherit these from the process that runs pytest.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DEDUP_LOGS="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
)
# The address of a cluster elsewhere is not the tests' business.
os.environ.pop("RAY_ADDRESS", None)

from hypothesis import HealthCheck, settings

# How long an example takes depends on what else the machine does: no test asserts it.
settings.register_profile("no_clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no_clock")

pytest_plugins = ["tests.running.fixtures"]  # Ray and a tiny base run, made when a test asks
