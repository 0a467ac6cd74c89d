"""Metrics as `ray.util.metrics` gauges: `kl/mean_k1` is `rlhf_kl_mean_k1`, tags run and phase.

Ray shows it on the node's metrics port as `ray_rlhf_kl_mean_k1`, a few seconds later.
"""

from collections.abc import Mapping

from ray.util.metrics import Gauge

from rlhf_ray.observe.keys import KEYS, row_of


def gauge_name(key: str) -> str:
    """`score/<component>` → `rlhf_score_component`, `grad/norm` → `rlhf_grad_norm`."""
    return "rlhf_" + key.replace("/<", "_").replace(">", "").replace("/", "_")


class Gauges:
    """One gauge a row of `KEYS`, made when it is first set."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, phase: str, metrics: Mapping[str, float]) -> None:
        """Set each metric's gauge. The keys have been checked by the caller."""
        for name, value in metrics.items():
            key, member = row_of(name)
            tags = {"run": self._run, "phase": phase}
            if member is not None:
                tags[KEYS[key].tags[0]] = member
            self._gauge(key).set(value, tags=tags)

    def _gauge(self, key: str) -> Gauge:
        if key not in self._gauges:
            metric = KEYS[key]
            self._gauges[key] = Gauge(
                gauge_name(key),
                description=_ascii(f"{metric.help} [{metric.unit}]"),
                tag_keys=("run", "phase", *metric.tags),
            )
        return self._gauges[key]


def _ascii(text: str) -> str:
    """Ray's exporter takes no other characters in a description."""
    for letter, name in {"τ": "tau", "σ": "sigma", "Σ": "sum of ", "β": "beta", "²": "^2"}.items():
        text = text.replace(letter, name)
    return text.encode("ascii", "replace").decode()
