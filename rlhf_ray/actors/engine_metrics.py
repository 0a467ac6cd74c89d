"""What an engine counts by itself with prometheus_client, shown on Ray's metrics port.

`vllm:num_requests_running` is `ray_vllm_num_requests_running` there. Ray Serve's way to the same is
not open: it needs Ray Serve, which takes seconds to import.
"""

from prometheus_client import REGISTRY
from ray.util.metrics import Gauge

PREFIX = "vllm:"
SKIPPED = ("_bucket", "_sum", "_count", "_created")  # histograms belong to vLLM's own request loop


class EngineMetrics:
    """Copies the engine's gauges and counters, as they stand, each time it is asked to."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def show(self) -> None:
        """Copy everything once."""
        for family in REGISTRY.collect():
            if not family.name.startswith(PREFIX):
                continue
            for sample in family.samples:
                if sample.name.endswith(SKIPPED):
                    continue
                if sample.name not in self._gauges:
                    self._gauges[sample.name] = Gauge(
                        sample.name.replace(":", "_"),
                        description=family.documentation,
                        tag_keys=tuple(sample.labels),
                    )
                self._gauges[sample.name].set(sample.value, tags=sample.labels)
