"""Grafana's dashboard of a run, from the table below.

python cluster/monitoring/make_dashboard.py        # writes cluster/monitoring/grafana/rlhf.json
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "grafana" / "rlhf.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RUN = 'run=~"$run"'
PER_ROW, HEIGHT = 4, 7


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: label → query, where `$` stands for the tags of the run that is looked at.

    kind: lines, stacked areas, or one number.
    """

    title: str
    unit: str
    queries: dict[str, str]
    help: str = ""
    kind: str = "lines"


def gauge(name: str, *more: str) -> str:
    """The gauge of a key of docs/metrics.md, of the run that is looked at."""
    return f"ray_rlhf_{name}{{{', '.join((RUN, *more))}}}"


def wait(part: str) -> str:
    """Share of an iteration."""
    return f"{gauge(part)} / {gauge('time_step')}"


def rate(name: str) -> str:
    """Growth a second over the last minute, for each actor."""
    return f"sum by (actor) (rate({gauge(name)}[1m]))"


VLLM = 'model_name=~"$run-generator-.*"'
TIMES = ("generate", "score", "fetch", "update", "publish", "checkpoint", "evaluate")
PPO, GENERATORS, OTHERS = 'phase="ppo"', 'role="generator"', 'role!="generator"'

ROWS: dict[str, list[Panel]] = {
    "At a glance": [
        Panel("Step", "none", {"step": gauge("progress_step", PPO)}, kind="number"),
        Panel("Score", "none", {"score": gauge("score_mean")}, kind="number"),
        Panel("KL to the reference", "none", {"nats": gauge("kl_mean_k1")}, kind="number"),
        Panel("Samples a second", "none", {"a second": gauge("samples_per_s")}, kind="number"),
    ],
    "Is it learning?": [
        Panel(
            "Score",
            "none",
            {"training": gauge("score_mean"), "held-out": gauge("heldout_score")},
            "Deviations of the reference policy's score. Held-out should follow training.",
        ),
        Panel(
            "Reward parts",
            "none",
            {"{{component}}": gauge("score_component")},
            "One that rises while the others fall is being exploited.",
        ),
        Panel("Gold score", "none", {"held-out": gauge("heldout_gold")}, "Never trained on."),
        Panel(
            "KL to the reference",
            "none",
            {"training": gauge("kl_mean_k1"), "held-out": gauge("heldout_kl")},
            "Nats a response. Never far below 0.",
        ),
        Panel("KL efficiency", "none", {"policy": gauge("kl_efficiency")}, "1 is the ideal."),
        Panel("Entropy", "none", {"nats a token": gauge("entropy_mean")}),
        Panel(
            "Response length",
            "none",
            {"training": gauge("response_length"), "held-out": gauge("heldout_length")},
            "Running to the limit, or to 1: the reward is exploited by length.",
        ),
        Panel("Responses that end", "percentunit", {"EOS": gauge("response_eos_fraction")}),
        Panel(
            "Update",
            "none",
            {
                "clipped tokens": gauge("policy_clip_fraction"),
                "explained variance": gauge("value_explained_variance"),
            },
        ),
        Panel("KL of one update", "none", {"nats a token": gauge("policy_approx_kl")}),
        Panel("Gradient norm", "none", {"policy": gauge("grad_norm", PPO)}, "Before clipping."),
        Panel("Price of KL", "none", {"β": gauge("kl_coef")}),
    ],
    "Is it healthy?": [
        Panel(
            "Generators by state",
            "none",
            {"{{state}}": f"sum by (state) ({gauge('actor_state', GENERATORS)})"},
            kind="stacked",
        ),
        Panel(
            "Other actors by state",
            "none",
            {"{{role}} {{state}}": f"sum by (role, state) ({gauge('actor_state', OTHERS)})"},
            kind="stacked",
        ),
        Panel(
            "Restarts",
            "none",
            {
                "generators": gauge("generators_restarts"),
                "{{role}} {{actor}}": gauge("actor_restarts", OTHERS),
            },
        ),
        Panel("Values that are not finite", "none", {"{{phase}}": gauge("progress_not_finite")}),
        Panel("Version by generator", "none", {"{{actor}}": gauge("generator_version")}),
        Panel(
            "Staleness when consumed",
            "none",
            {"mean": gauge("staleness_mean"), "largest": gauge("staleness_max")},
            "Versions. 0 with ppo.max_staleness 0.",
        ),
        Panel("Versions behind", "none", {"{{actor}}": gauge("generator_lag")}),
        Panel("Last heard of", "s", {"{{actor}}": gauge("generator_silent_s")}),
        Panel("Queue", "none", {"shards": gauge("queue_pending")}, "No generator has them yet."),
        Panel("Shards held", "none", {"{{actor}}": gauge("generator_shards")}, kind="stacked"),
        Panel("Rollouts asked for again", "none", {"total": gauge("rollouts_requeued")}),
        Panel("Steps", "none", {"{{phase}}": gauge("progress_step")}),
    ],
    "Where does the time go?": [
        Panel(
            "An iteration",
            "s",
            {name: gauge(f"time_{name}") for name in TIMES},
            "Seconds by what was done.",
            kind="stacked",
        ),
        Panel(
            "Shares of an iteration",
            "percentunit",
            {name: wait(f"time_{name}") for name in TIMES},
            "With staleness allowed they overlap, and add up to more than 1.",
        ),
        Panel(
            "Learners wait for rollouts",
            "percentunit",
            {"of the iteration": wait("time_wait_rollouts")},
            "Above a tenth: more generators, or ppo.max_staleness 1.",
        ),
        Panel(
            "Generators without work",
            "percentunit",
            {"{{actor}}": f"avg_over_time({gauge('generator_idle')}[2m])"},
            "While learners do not wait: fewer generators would do.",
        ),
    ],
    "How fast?": [
        Panel("Tokens a second", "none", {"{{phase}}": gauge("tokens_per_s")}, "Of a whole step."),
        Panel("Samples a second", "none", {"whole loop": gauge("samples_per_s")}),
        Panel("Tokens written a second", "none", {"{{actor}}": rate("generator_tokens")}),
        Panel(
            "Weights to generators",
            "s",
            {"publish": gauge("time_publish"), "{{actor}} loads": gauge("generator_load_s")},
        ),
        Panel("Size of the weights", "bytes", {"a version": gauge("weights_bytes")}),
        Panel(
            "vLLM: requests",
            "none",
            {
                "{{model_name}} runs": f"ray_vllm_num_requests_running{{{VLLM}}}",
                "{{model_name}} waits": f"ray_vllm_num_requests_waiting{{{VLLM}}}",
            },
        ),
        Panel(
            "vLLM: cache in use",
            "percentunit",
            {"{{model_name}}": f"ray_vllm_kv_cache_usage_perc{{{VLLM}}}"},
        ),
        Panel(
            "vLLM: prompt tokens found in the cache",
            "percentunit",
            {
                "{{model_name}}": f"rate(ray_vllm_prefix_cache_hits_total{{{VLLM}}}[2m]) / "
                f"rate(ray_vllm_prefix_cache_queries_total{{{VLLM}}}[2m])"
            },
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """What Grafana reads."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "panels": []}
            | {"gridPos": {"h": 1, "w": 24, "x": 0, "y": y}, "id": len(panels) + 1}
        )
        y += 1
        for i, panel in enumerate(row):
            height = 4 if panel.kind == "number" else HEIGHT
            place = {"h": height, "w": 24 // PER_ROW, "x": (i % PER_ROW) * (24 // PER_ROW), "y": y}
            panels.append(drawn(panel) | {"gridPos": place, "id": len(panels) + 1})
            if i % PER_ROW == PER_ROW - 1 or i == len(row) - 1:
                y += height
    return {
        "uid": "rlhf-ray",
        "title": "rlhf_ray: a run",
        "tags": ["rlhf_ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": variables()},
        "panels": panels,
    }


def drawn(panel: Panel) -> dict[str, Any]:
    """One panel, without its place."""
    number = panel.kind == "number"
    custom: dict[str, Any] = {"lineWidth": 2, "fillOpacity": 8, "showPoints": "never"}
    if panel.kind == "stacked":
        custom |= {"stacking": {"mode": "normal"}, "fillOpacity": 40, "lineWidth": 1}
    options: dict[str, Any] = {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    if number:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"}
    return {
        "type": "stat" if number else "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": {} if number else custom},
            "overrides": [],
        },
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + i), "expr": query, "legendFormat": label, "datasource": SOURCE}
            for i, (label, query) in enumerate(panel.queries.items())
        ],
    }


def variables() -> list[dict[str, Any]]:
    """Where the numbers come from, and which run is looked at."""
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "source"},
        {
            "name": "run",
            "type": "query",
            "label": "run",
            "datasource": SOURCE,
            "query": {"query": "label_values(ray_rlhf_progress_step, run)", "refId": "run"},
            "refresh": 2,
            "sort": 1,
        },
    ]


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(FILE)
