"""Where rows of metrics go besides the run's own directory: Weights & Biases or MLflow.

`run.tracker` names one of `TRACKERS`. metrics.jsonl stays the record: a tracker is not taken back
when a run returns to a checkpoint, so a step that was done twice may be there twice; and a run goes
on without one that no longer answers.
"""

import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

from rlhf_ray.observe.keys import Phase

MLFLOW_PARAMS = 100  # that it takes in one request; of metrics it takes 1,000
# The driver's loop waits for a request: seconds, where mlflow by itself would try for minutes.
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Tracker(Protocol):
    """Takes rows as they are written."""

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """One row; its values are finite."""

    def close(self) -> None:
        """Everything has been logged."""


class WandB:
    """A Weights & Biases run; offline it lies in `wandb/` of the run's directory, for `wandb sync`.

    Each phase has its own steps: W&B would refuse the second phase's otherwise.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any], *, mode: str) -> None:
        import wandb

        self._run = wandb.init(
            project="rlhf_ray",
            name=run_dir.name,
            dir=str(run_dir),
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True),
        )
        for phase in get_args(Phase):
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(
            {f"{phase}/{name}": value for name, value in metrics.items()} | {f"{phase}/step": step}
        )

    def close(self) -> None:
        """Wait until it is written, or sent."""
        self._run.finish()


class MLflow:
    """A run of the experiment `rlhf_ray`; offline it is `mlflow.db` in the run's directory."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], *, uri: str | None) -> None:
        import mlflow
        from mlflow.exceptions import MlflowException

        os.environ.update(MLFLOW_PATIENCE | os.environ)
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        try:
            self._id = self._begin(run_dir.name, config)
        except MlflowException as error:
            raise OSError(
                f"MLflow at {uri or mlflow.get_tracking_uri()} takes no run ({error}): mend that, "
                f"set MLFLOW_TRACKING_URI, or leave --run.tracker out"
            ) from error

    def _begin(self, name: str, config: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        known = self._client.get_experiment_by_name("rlhf_ray")
        experiment = known.experiment_id if known else self._client.create_experiment("rlhf_ray")
        run = self._client.create_run(experiment, run_name=name).info.run_id
        params = [
            Param(f"{section}.{name}", str(value))
            for section, values in config.items()
            for name, value in values.items()
        ]
        for start in range(0, len(params), MLFLOW_PARAMS):
            self._client.log_batch(run, params=params[start : start + MLFLOW_PARAMS])
        return run

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """One row, in one request: the driver's loop waits for it. A failure is a warning."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        row = [Metric(f"{phase}/{name}", value, now, step) for name, value in metrics.items()]
        self._send(lambda: self._client.log_batch(self._id, metrics=row))

    def close(self) -> None:
        """The run is over."""
        self._send(lambda: self._client.set_terminated(self._id))

    def _send(self, request: Callable[[], object]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            request()
        except MlflowException as error:
            warnings.warn(f"MLflow lacks a row that metrics.jsonl has: {error}", stacklevel=2)


@dataclass(frozen=True, slots=True)
class Row:
    """make(run_dir, config) starts the tracker; package is what it needs, an extra of ours."""

    package: str
    make: Callable[[Path, Mapping[str, Any]], Tracker]


TRACKERS = {
    "wandb": Row("wandb", lambda d, c: WandB(d, c, mode="online")),
    "wandb-offline": Row("wandb", lambda d, c: WandB(d, c, mode="offline")),
    "mlflow": Row("mlflow", lambda d, c: MLflow(d, c, uri=None)),
    "mlflow-offline": Row("mlflow", lambda d, c: MLflow(d, c, uri=f"sqlite:///{d}/mlflow.db")),
}


def open_tracker(name: str | None, run_dir: Path, config: Mapping[str, Any]) -> Tracker | None:
    """The tracker of this name; None for None.

    Raises ValueError where its package is not installed, OSError where MLflow does not answer.
    """
    check_tracker(name)
    return TRACKERS[name].make(run_dir, config) if name else None


def check_tracker(name: str | None) -> None:
    """Raise ValueError where the tracker of this name lacks its package."""
    package = TRACKERS[name].package if name else None
    if package and importlib.util.find_spec(package) is None:
        raise ValueError(
            f"run.tracker {name} needs the package {package}, which is not installed: "
            f".venv/bin/uv pip install -e '.[{package}]', or leave --run.tracker out"
        )
