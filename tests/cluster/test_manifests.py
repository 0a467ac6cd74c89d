"""What cluster/ asks Kubernetes, Ray's launcher, Prometheus and Grafana for is what those take."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray._private.ray_constants import (
    DEFAULT_OBJECT_STORE_MEMORY_PROPORTION,
    REQUIRE_SHM_SIZE_THRESHOLD,
)
from ray.autoscaler._private.util import fillout_defaults

from rlhf_ray.cli import parse_resumable
from rlhf_ray.observe.gauges import gauge_name
from rlhf_ray.observe.keys import KEYS
from rlhf_ray.orchestration.shares import GENERATOR, LEARNER, SCORER
from tests.running.jobs import ROOT

CLUSTER = ROOT / "cluster"
# A directory of KubeRay's definitions: ray.io_rayclusters.yaml and ray.io_rayjobs.yaml.
SCHEMAS = Path(os.environ.get("KUBERAY_SCHEMAS", ROOT.parent / "shared" / "schemas"))
LAUNCHER = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
OF_VLLM = {
    "ray_vllm_num_requests_running",
    "ray_vllm_num_requests_waiting",
    "ray_vllm_kv_cache_usage_perc",
    "ray_vllm_prefix_cache_hits_total",
    "ray_vllm_prefix_cache_queries_total",
}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def plain(schema: Any) -> Any:
    """A definition's schema as JSON schema: nothing beside what it names, but where it says so."""
    if isinstance(schema, dict):
        closed = {key: plain(value) for key, value in schema.items()}
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
        if schema.get("x-kubernetes-int-or-string"):
            closed.pop("type", None)
        return closed
    return [plain(item) for item in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize("object_", documents(CLUSTER / "kuberay" / "base.yaml"))
def test_plain_objects_are_kubernetes(object_: dict[str, Any]):
    kubernetes_validate.validate(object_, "1.31", strict=True)


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KUBERAY_SCHEMAS names no such directory")
@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_ray_objects_are_kuberays(name: str):
    (definition,) = documents(SCHEMAS / f"ray.io_{name}s.yaml")
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    (object_,) = documents(CLUSTER / "kuberay" / f"{name}.yaml")
    assert object_["kind"] == definition["spec"]["names"]["kind"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft202012Validator(plain(schema)).validate(object_)


def ray_clusters() -> list[dict[str, Any]]:
    (cluster,) = documents(CLUSTER / "kuberay" / "raycluster.yaml")
    (job,) = documents(CLUSTER / "kuberay" / "rayjob.yaml")
    return [cluster["spec"], job["spec"]["rayClusterSpec"]]


@pytest.mark.parametrize("spec", ray_clusters())
def test_every_role_has_pods_of_its_own_that_grow_with_it(spec: dict[str, Any]):
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert groups.keys() == {"generators", "scorers", "learners"}
    for name, role in (("generators", GENERATOR), ("scorers", SCORER), ("learners", LEARNER)):
        group = groups[name]
        offers = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert offers.keys() == {role}
        assert group["minReplicas"] == 0 < group["maxReplicas"]
    for part in [spec["headGroupSpec"], *groups.values()]:
        pod = part["template"]["spec"]
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod},
            "1.31",
            strict=True,
        )
        (container,) = pod["containers"]
        assert {"name": "runs", "mountPath": "/runs"} in container["volumeMounts"]
        assert container["resources"]["requests"] == container["resources"]["limits"]


GIB = 2**30


@pytest.mark.parametrize("spec", ray_clusters())
def test_what_ray_takes_for_its_store_has_room_in_shared_memory(spec: dict[str, Any]):
    """Else the store is on disk, or Ray does not start. Ray's own default, for a pod's memory."""
    for part in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = part["template"]["spec"]
        memory = _gib(pod["containers"][0]["resources"]["limits"]["memory"])
        (room,) = (_gib(v["emptyDir"]["sizeLimit"]) for v in pod["volumes"] if v["name"] == "shm")
        share = DEFAULT_OBJECT_STORE_MEMORY_PROPORTION * memory
        assert min(share, max(REQUIRE_SHM_SIZE_THRESHOLD, 0.95 * room)) <= room


def _gib(size: str) -> float:
    assert size.endswith("Gi")
    return float(size.removesuffix("Gi")) * GIB


def test_kuberay_is_let_in_wherever_its_chart_is_installed():
    (policy,) = (
        one
        for one in documents(CLUSTER / "kuberay" / "base.yaml")
        if one["kind"] == "NetworkPolicy"
    )
    dashboard = next(rule for rule in policy["spec"]["ingress"] if _ports(rule) == {8265})
    operator = {"app.kubernetes.io/name": "kuberay-operator"}  # what the chart puts on its pods
    assert {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": operator},
    } in dashboard["from"]


def _ports(rule: dict[str, Any]) -> set[int]:
    return {port["port"] for port in rule.get("ports", [])}


def test_a_failed_run_is_resumed_on_storage_that_outlives_its_cluster():
    (job,) = documents(CLUSTER / "kuberay" / "rayjob.yaml")
    spec = job["spec"]
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"]
    assert spec["submitterConfig"]["backoffLimit"] > 0  # its log stream may break
    command, job_file, *flags = spec["entrypoint"].split()
    assert command == "python" and (ROOT / "jobs" / Path(job_file).name).is_file()
    asked = parse_resumable(flags, prog="jobs/ppo.py", description="")
    assert asked.resume_if_begun and asked.config.dir == Path("/runs/first")
    assert asked.config.cluster.role_resources and asked.config.cluster.autoscaling
    assert not set("$`") & set(spec["entrypoint"]), "its shell has no /runs to look into"


def commands() -> list[str]:
    """The flags of every `make submit` of docs/cluster.md that runs jobs/ppo.py."""
    text = (ROOT / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "make submit" in line and "JOB=" not in line]
    return [flags for line in lines for flags in re.findall(r'ARGS="([^"]*)"', line)]


@pytest.mark.parametrize("flags", commands())
def test_commands_of_the_documentation_are_understood(flags: str):
    config = parse_resumable(flags.split(), prog="jobs/ppo.py", description="").config
    if config.cluster.autoscaling:  # machines boot, and pull the image
        assert config.cluster.start_timeout_s >= 1800
        assert config.cluster.threads and config.cluster.learner_gpus


def test_the_container_copies_what_there_is_and_installs_by_the_lock():
    lines = (CLUSTER / "Containerfile").read_text().splitlines()
    copied = [source for line in lines if line.startswith("COPY") for source in line.split()[2:-1]]
    assert {"pyproject.toml", "requirements", "."} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
    assert any("LOCK=$LOCK requirements/install.sh" in line for line in lines)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)


@pytest.mark.parametrize("name", ["aws.yaml", "local.yaml"])
def test_the_launcher_takes_its_files(name: str):
    (config,) = documents(CLUSTER / name)
    jsonschema.validate(config, json.loads(LAUNCHER.read_text()))
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in " ".join(config[commands])
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
    assert any("auth_token" in target for target in config["file_mounts"])


@pytest.mark.parametrize("name", ["aws.yaml", "local.yaml"])
def test_the_launcher_installs_no_ray_of_its_own(name: str):
    (config,) = documents(CLUSTER / name)
    merged = fillout_defaults(config)
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert not merged[commands]


def test_on_aws_the_image_has_what_the_launcher_and_the_head_call():
    (config,) = documents(CLUSTER / "aws.yaml")
    image = (CLUSTER / "Containerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for needed in ("openssh-client", "rsync", *extras["aws"]):
        assert needed in image
    registry = config["docker"]["image"].partition("/")[0]
    assert any(
        "docker login" in command
        and registry in command
        and config["provider"]["region"] in command
        for command in config["initialization_commands"]
    )
    assert "--volume /tmp/ray:/tmp/ray" in config["docker"]["run_options"]
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["IamInstanceProfile"]


def maker() -> Any:
    path = CLUSTER / "monitoring" / "make_dashboard.py"
    spec = importlib.util.spec_from_file_location("make_dashboard", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def queries() -> list[str]:
    """Every query of the dashboard and of the alerts."""
    dashboard = json.loads((CLUSTER / "monitoring" / "grafana" / "rlhf.json").read_text())
    (rules,) = documents(CLUSTER / "monitoring" / "rules.yml")
    found = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_the_dashboard_is_what_its_table_makes():
    written = json.loads((CLUSTER / "monitoring" / "grafana" / "rlhf.json").read_text())
    assert written == maker().dashboard()
    places = [tuple(panel["gridPos"][k] for k in "xy") for panel in written["panels"]]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("query", queries())
def test_queries_ask_for_metrics_and_tags_that_there_are(query: str):
    tags = {
        f"ray_{gauge_name(key)}": {"run", "role", "actor", "phase", *m.tags}
        for key, m in KEYS.items()
    }
    named = re.findall(r"\bray_\w+", query)
    assert named
    for name in named:
        assert name in tags or name in OF_VLLM, name
    for name, matchers in re.findall(r"\b(ray_\w+)\{([^}]*)\}", query):
        for tag in re.findall(r"(\w+)(?:=~|!=|=)", matchers):
            assert tag in tags.get(name, {"model_name"})


def test_alerts_cover_what_is_promised():
    (rules,) = documents(CLUSTER / "monitoring" / "rules.yml")
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    promised = {
        "NoProgress",
        "RunGone",
        "KLOutOfBounds",
        "Restarts",
        "StaleGenerator",
        "Staleness",
        "NotFinite",
    }
    assert {f"Rlhf{name}" for name in promised} <= names


needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="Debian's package prometheus is not there"
)


@needs_promtool
def test_prometheus_understands_every_query(tmp_path: Path):
    rules = [{"record": f"q:{i}", "expr": query} for i, query in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_loads_our_configuration_and_the_alerts_fire_when_they_should():
    monitoring = CLUSTER / "monitoring"
    for args in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "--lint-fatal", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ):
        done = subprocess.run(
            ["promtool", *args], cwd=monitoring, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_understands_the_rest_of_its_configuration_on_kubernetes(tmp_path: Path):
    """Debian's build does not know how to find pods."""
    (config,) = documents(CLUSTER / "monitoring" / "prometheus-kubernetes.yml")
    assert any(job.pop("kubernetes_sd_configs", None) for job in config["scrape_configs"])
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    not shutil.which("amtool"), reason="Debian's package prometheus-alertmanager is not there"
)
def test_alertmanager_loads_its_configuration():
    done = subprocess.run(
        ["amtool", "check-config", CLUSTER / "monitoring" / "alertmanager.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_alerts_reach_somebody(name: str):
    (config,) = documents(CLUSTER / "monitoring" / name)
    assert config["rule_files"] == ["rules.yml"]
    assert config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    (manager,) = documents(CLUSTER / "monitoring" / "alertmanager.yml")
    receivers = {receiver["name"] for receiver in manager["receivers"]}
    routes = [manager["route"], *manager["route"]["routes"]]
    assert {route["receiver"] for route in routes} == receivers
