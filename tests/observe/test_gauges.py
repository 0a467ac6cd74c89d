"""Metrics as Ray's gauges, on the node's own metrics port."""

import multiprocessing
import re
import time
import urllib.request

import pytest
import ray

from rlhf_ray.observe.gauges import Gauges, gauge_name
from rlhf_ray.observe.keys import KEYS


def test_names_are_prometheus_names_and_differ() -> None:
    names = [gauge_name(key) for key in KEYS]
    assert gauge_name("kl/mean_k1") == "rlhf_kl_mean_k1"
    assert gauge_name("score/<component>") == "rlhf_score_component"
    assert all(re.fullmatch(r"rlhf_[a-z0-9_]+", name) for name in names)
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_a_gauge_appears_on_the_metrics_port_with_its_tags() -> None:
    """In a process of its own: one that has used Ray keeps whether it asks for a token."""
    child = multiprocessing.get_context("spawn").Process(target=scrape)
    child.start()
    child.join()
    assert child.exitcode == 0


def scrape() -> None:
    """Set two gauges, and find them on the port."""
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        Gauges("a run").set("ppo", {"kl/mean_k1": 3.25, "score/polite": 0.5})
        port = ray.nodes()[0]["MetricsExportPort"]
        wanted = {"ray_rlhf_kl_mean_k1": "3.25", "ray_rlhf_score_component": "0.5"}
        deadline = time.monotonic() + 60
        found: dict[str, str] = {}
        while set(found) != set(wanted) and time.monotonic() < deadline:
            time.sleep(1)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                lines = page.read().decode().splitlines()
            found = {name: line for line in lines for name in wanted if line.startswith(name + "{")}
        for name, value in wanted.items():
            assert 'run="a run"' in found[name] and 'phase="ppo"' in found[name]
            assert found[name].split()[-1] == value
        assert 'component="polite"' in found["ray_rlhf_score_component"]
    finally:
        ray.shutdown()
