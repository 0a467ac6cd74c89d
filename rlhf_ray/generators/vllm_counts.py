"""What vLLM's steps report, added up and told to its own Prometheus logger once a second."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # this file itself runs without vLLM
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.loggers import PrometheusStatLogger
    from vllm.v1.metrics.stats import SchedulerStats

TELL_EVERY = 1.0  # seconds; telling every step would cost more than some steps do


class EngineCounts:
    """Of one engine. Histograms of latencies stay empty: they are for vLLM's own request loop."""

    def __init__(self, logger: "PrometheusStatLogger") -> None:
        self._logger = logger
        self._queries = self._hits = self._prompt_tokens = self._tokens = 0
        self._told = 0.0

    def add(self, outputs: "EngineCoreOutputs") -> None:
        """Count one step."""
        for output in outputs.outputs:
            self._tokens += len(output.new_token_ids)
            if output.prefill_stats is not None:
                self._prompt_tokens += output.prefill_stats.num_prompt_tokens
        stats = outputs.scheduler_stats
        if stats is None:
            return
        self._queries += stats.prefix_cache_stats.queries
        self._hits += stats.prefix_cache_stats.hits
        now = time.monotonic()
        if now - self._told >= TELL_EVERY or not stats.num_running_reqs:
            self._told = now
            self._tell(stats)

    def _tell(self, stats: "SchedulerStats") -> None:
        stats.prefix_cache_stats.queries, stats.prefix_cache_stats.hits = self._queries, self._hits
        self._logger.record(stats, None)
        self._logger.counter_prompt_tokens[0].inc(self._prompt_tokens)
        self._logger.counter_generation_tokens[0].inc(self._tokens)
        self._queries = self._hits = self._prompt_tokens = self._tokens = 0
