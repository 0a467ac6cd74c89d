"""What every test process needs before Ray, transformers or tokenizers are imported."""

import os
import sys
from collections.abc import Iterator

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
    # Two workers of pytest share two cores: threads that wait leave theirs to others, and Ray's
    # processes are not last in the queue for one.
    OMP_WAIT_POLICY="passive",
    RAY_worker_niceness="0",
)
# The address of a cluster elsewhere is not the tests' business.
os.environ.pop("RAY_ADDRESS", None)

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes depends on what else the machine does: no test asserts it.
settings.register_profile("no_clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no_clock")

pytest_plugins = ["tests.running.fixtures"]  # Ray and a tiny base run, made when a test asks


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Jobs run in this process flush them to 0, and hypothesis then makes no floats."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker takes all short tests of the session's Ray, first; each other file goes to one."""

    def needs_ray(item: pytest.Item) -> bool:
        asks = "ray_address" in getattr(item, "fixturenames", ())
        return asks and item.get_closest_marker("slow") is None

    items.sort(key=needs_ray, reverse=True)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if needs_ray(item) else item.path.name))
