"""Trackers, offline: what they leave on the disk is what was logged."""

import importlib.util
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from rlhf_ray.observe.metrics import RunLog, read_metrics
from rlhf_ray.observe.trackers import TRACKERS, open_tracker

CONFIG = {"run": {"name": "tracked", "seed": 0}, "ppo": {"lr": 3e-5}}


def needs(package: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"the extra {package} is not installed")


def log(run_dir: Path, name: str) -> None:
    with RunLog(run_dir, tracker=open_tracker(name, run_dir, CONFIG)) as rows:
        rows.write("sft", 1, {"loss/lm": 2.5})
        rows.write("ppo", 1, {"score/mean": 0.25, "score/std": float("nan")})
        rows.rewind("ppo", 0)
        rows.write("ppo", 1, {"score/mean": 0.5})


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_not_there_is_named_with_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=rf"{name} needs the package .*uv pip install -e '\.\["):
        open_tracker(name, tmp_path, CONFIG)


@needs("mlflow")
def test_mlflow_offline(tmp_path: Path):
    import mlflow

    run_dir = tmp_path / "tracked"
    log(run_dir, "mlflow-offline")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("rlhf_ray")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tracked" and run.info.status == "FINISHED"
    assert run.data.params["ppo.lr"] == "3e-05"
    assert run.data.metrics == {"sft/loss/lm": 2.5, "ppo/score/mean": 0.5}


class Begun(BaseHTTPRequestHandler):
    """A server of MLflow that lets a run begin."""

    def do_GET(self) -> None:
        self.answer({"experiment": {"experiment_id": "0", "name": "rlhf_ray"}})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"run": {"info": {"run_id": "1", "status": "RUNNING"}, "data": {}}})

    def answer(self, body: dict) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@needs("mlflow")
def test_a_run_goes_on_without_a_server_that_no_longer_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server = HTTPServer(("127.0.0.1", 0), Begun)
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    tracker = open_tracker("mlflow", tmp_path, CONFIG)
    server.shutdown()
    server.server_close()
    with pytest.warns(UserWarning, match="lacks a row"), RunLog(tmp_path, tracker=tracker) as rows:
        rows.write("ppo", 1, {"score/mean": 0.5})
    assert [row["score/mean"] for row in read_metrics(tmp_path)] == [0.5]


@needs("mlflow")
def test_a_server_that_does_not_answer_at_the_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"MLflow at http://127\.0\.0\.1:9 takes no run"):
        open_tracker("mlflow", tmp_path, CONFIG)


class Requests:
    """In mlflow's place: what each request to its server is, and how much it holds."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def log_batch(self, run: str, *, params: list = (), metrics: list = ()) -> None:
        self.seen.append(("params", len(params)) if params else ("metrics", len(metrics)))

    def get_experiment_by_name(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id="0")

    def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id="1"))

    def set_terminated(self, run: str) -> None:
        self.seen.append(("end", 0))


def test_mlflow_is_asked_once_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    requests = Requests()
    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    mlflow.MlflowClient = lambda tracking_uri: requests  # type: ignore[attr-defined]
    entities.Param = entities.Metric = lambda *values: values  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    exceptions = ModuleType("mlflow.exceptions")
    exceptions.MlflowException = RuntimeError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    tracker = TRACKERS["mlflow"].make(tmp_path, {"ppo": {f"setting_{i}": i for i in range(150)}})
    tracker.log("ppo", 1, {"score/mean": 0.5, "score/std": 1.0, "kl/coef": 0.1})
    tracker.close()
    assert requests.seen == [("params", 100), ("params", 50), ("metrics", 3), ("end", 0)]


@needs("wandb")
def test_wandb_offline(tmp_path: Path):
    run_dir = tmp_path / "tracked"
    log(run_dir, "wandb-offline")
    (written,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    content = written.read_bytes()
    for name in (b"ppo/score/mean", b"sft/loss/lm", b"ppo/step"):
        assert name in content
