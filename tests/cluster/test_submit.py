"""A run as a Ray job, while it goes on: what the job server and the metrics port say of it."""

import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric

from rlhf_ray.observe.gauges import TAGS, gauge_name
from rlhf_ray.observe.keys import KEYS
from tests.cluster.scrape import families, samples
from tests.cluster.submitting import ray_job, submit
from tests.cluster.test_manifests import queries
from tests.running.jobs import TINY, actor_processes, succeed, wait_for

ENDLESS = 100_000  # iterations: the run is stopped
CODE = {"rlhf_ray", "jobs", "cluster", "requirements", "pyproject.toml", "Makefile", "mkdocs.yml"}
CODE |= {"README.md", "CHANGELOG.md", "LICENSE"}
CODE |= {".editorconfig", ".gitignore", ".rayignore", ".dockerignore"}
HERE = {key for key, metric in KEYS.items() if "ppo" in metric.phases}

pytestmark = pytest.mark.slow


@dataclass
class Submitted:
    """A run that a job writes."""

    job: str
    run: Path
    server: str
    log: Path

    def facts(self) -> dict[str, Any]:
        """What the Jobs page shows."""
        request = urllib.request.Request(
            f"{self.server}/api/jobs/{self.job}",
            headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def submitted(
    job_server: str, base: Path, ray_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Submitted]:
    """A run that would go on for ever, in its first iteration or later."""
    run = tmp_path_factory.mktemp("submitted") / "watched"
    for part in ("sft", "reward"):
        shutil.copytree(base / part, run / part)
    flags = (*TINY, "--ppo.critic=separate", "--evaluate.every=1", f"--ppo.iterations={ENDLESS}")
    done = submit(job_server, run, *flags, options="--no-wait --submission-id w1")
    assert done.returncode == 0, done.stdout + done.stderr
    log = ray_home / "session_latest" / "logs" / "job-driver-w1.log"

    def learned() -> list[Path]:
        said = log.read_text() if log.exists() else ""
        assert "Traceback" not in said and "error: " not in said, said[-4000:]
        return list(run.glob("checkpoints/step-*"))

    try:
        wait_for(learned, why="no iteration was done")
        yield Submitted("w1", run, job_server, log)
    finally:
        ray_job(job_server, "stop", "w1")


def test_status_metadata_and_log_are_what_the_jobs_page_shows(submitted: Submitted):
    facts = submitted.facts()
    assert facts["status"] == "RUNNING"
    assert facts["metadata"]["job"] == "jobs/ppo.py"
    assert facts["metadata"]["runs"] == str(submitted.run.parent)
    assert facts["metadata"]["commit"]
    log = submitted.log.read_text()
    assert "2 CPUs on 1 node" in log and re.search(r"ppo +\d+/100000 ", log)


def test_only_code_was_uploaded(submitted: Submitted, ray_home: Path):
    packages = list(ray_home.glob("session_latest/runtime_resources/working_dir_files/*/jobs"))
    assert packages
    for jobs in packages:
        found = {path.name for path in jobs.parent.iterdir()}
        assert found <= CODE, found - CODE
        size = sum(path.stat().st_size for path in jobs.parent.rglob("*") if path.is_file())
        assert size < 5e6


def all_of(page: str, names: set[str]) -> dict[str, Metric]:
    """What is on the port, once all of `names` are: between two reports a page may lack some."""
    there: dict[str, Metric] = {}

    def whole() -> bool:
        there.clear()
        there.update(families(page))
        return names <= there.keys()

    wait_for(whole, why=lambda: f"not on the port: {names - there.keys()}")
    return there


def test_every_metric_is_on_the_port_with_its_tags(submitted: Submitted, metrics_page: str):
    there = all_of(metrics_page, {f"ray_{gauge_name(key)}" for key in HERE})
    for key in HERE:
        family = there[f"ray_{gauge_name(key)}"]
        assert family.documentation
        for sample in family.samples:
            assert {*TAGS, *KEYS[key].tags} <= sample.labels.keys()
            assert sample.labels["run"] == "watched"

    def roles() -> set[str]:
        return {s.labels["role"] for s in samples(metrics_page, "ray_rlhf_actor_restarts", {})}

    whole = {"generator", "learner", "reference", "reward"}
    wait_for(lambda: roles() == whole, why="a role shows no restarts")


def test_a_generator_that_joined_late_is_there_with_all_of_its_own(
    submitted: Submitted, metrics_page: str
):
    late = {"run": "watched", "role": "generator", "actor": "generator-1"}
    succeed("scale", "--run=watched", "--generators=+1")
    wait_for(
        lambda: samples(metrics_page, "ray_rlhf_generator_tokens", late, above=0),
        why="nothing of the generator that joined",
    )
    for key in KEYS:
        if key.startswith("generator/"):
            gauge = f"ray_{gauge_name(key)}"
            wait_for(partial(samples, metrics_page, gauge, late), why=key)

    def states() -> list[str]:
        found = samples(metrics_page, "ray_rlhf_actor_state", late, above=0)
        return [sample.labels["state"] for sample in found]

    wait_for(lambda: states() in (["serving"], ["stale"]), why=lambda: str(states()))
    of_late = {"model_name": "watched-generator-1"}
    name = "ray_vllm_generation_tokens_total"
    wait_for(lambda: samples(metrics_page, name, of_late, above=0), why=name)


def test_vllm_reports_for_each_generator(submitted: Submitted, metrics_page: str):
    of_first = {"model_name": "watched-generator-0"}
    name = "ray_vllm_generation_tokens_total"
    wait_for(lambda: samples(metrics_page, name, of_first, above=0), why=name)
    name = "ray_vllm_prefix_cache_queries_total"
    wait_for(lambda: samples(metrics_page, name, of_first, above=0), why=name)


def test_every_panel_and_alert_asks_for_what_is_on_the_port(
    submitted: Submitted, metrics_page: str
):
    asked = {name for query in queries() for name in re.findall(r"\bray_\w+", query)}
    assert asked
    all_of(metrics_page, asked)


def test_a_stopped_job_ends_its_actors_and_leaves_a_checkpoint(submitted: Submitted):
    assert ray_job(submitted.server, "stop", submitted.job).returncode == 0
    assert submitted.facts()["status"] == "STOPPED"
    wait_for(lambda: not actor_processes(), seconds=30, why="an actor outlives its job")
    assert list(submitted.run.glob("checkpoints/step-*/manifest.json"))
