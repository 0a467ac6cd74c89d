"""Metrics as `ray.util.metrics` gauges: `kl/mean_k1` is `rlhf_kl_mean_k1`.

Tags: run, role and actor that it is of, phase, and what its row of `KEYS` adds. Ray shows a gauge
on the node's metrics port as `ray_rlhf_kl_mean_k1`, a few seconds later. All are set in the driver,
so one scrape of its node has every actor of the run, however late it joined.
"""

import math
from collections.abc import Mapping

from ray.util.metrics import Gauge

from rlhf_ray.observe.keys import KEYS, row_of

TAGS = ("run", "role", "actor", "phase")


def gauge_name(key: str) -> str:
    """`score/<component>` → `rlhf_score_component`, `grad/norm` → `rlhf_grad_norm`."""
    return "rlhf_" + key.replace("/<", "_").replace(">", "").replace("/", "_")


class Gauges:
    """One gauge a row of `KEYS`, made when it is first set."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}
        self._last: dict[tuple[str, tuple[str, ...]], tuple[float, dict[str, str]]] = {}
        self._states: dict[tuple[str, str], set[str]] = {}

    def set(
        self,
        phase: str,
        metrics: Mapping[str, float],
        *,
        role: str = "driver",
        actor: str = "driver",
    ) -> None:
        """Set each metric's gauge for one actor. The keys have been checked by the caller."""
        for name, value in metrics.items():
            key, member = row_of(name)
            extra = {} if member is None else {KEYS[key].tags[0]: member}
            self._set(key, value, role, actor, phase, extra)

    def row(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """One row of metrics.jsonl: its finite values, the step, and how many were not finite."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.set(phase, finite)
        progress = {"progress/step": step, "progress/not_finite": len(metrics) - len(finite)}
        self.set(phase, progress)

    def state(self, role: str, actor: str, state: str) -> None:
        """1 for this state of an actor, 0 for those it was in before."""
        known = self._states.setdefault((role, actor), set())
        known.add(state)
        for other in known:
            self._set("actor/state", float(other == state), role, actor, "ppo", {"state": other})

    def forget(self, role: str, actor: str) -> None:
        """Set nothing of this actor again: after two of Ray's reports its gauges are gone."""
        self._states.pop((role, actor), None)
        self._last = {
            at: (value, tags)
            for at, (value, tags) in self._last.items()
            if (tags["role"], tags["actor"]) != (role, actor)
        }

    def refresh(self) -> None:
        """Set everything again: Ray shows a gauge only for a while after it was last set."""
        for (key, _), (value, tags) in self._last.items():
            self._gauge(key).set(value, tags=tags)

    def _set(
        self, key: str, value: float, role: str, actor: str, phase: str, extra: dict[str, str]
    ) -> None:
        tags = {"run": self._run, "role": role, "actor": actor, "phase": phase} | extra
        self._last[key, tuple(tags.values())] = value, tags
        self._gauge(key).set(value, tags=tags)

    def _gauge(self, key: str) -> Gauge:
        if key not in self._gauges:
            metric = KEYS[key]
            self._gauges[key] = Gauge(
                gauge_name(key),
                description=_ascii(f"{metric.help} [{metric.unit}]"),
                tag_keys=(*TAGS, *metric.tags),
            )
        return self._gauges[key]


def _ascii(text: str) -> str:
    """Ray's exporter takes no other characters in a description."""
    for letter, name in {"τ": "tau", "σ": "sigma", "Σ": "sum of ", "β": "beta", "²": "^2"}.items():
        text = text.replace(letter, name)
    return text.encode("ascii", "replace").decode()
