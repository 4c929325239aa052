"""MLflow runs: one per training, also across restarts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from psclap.errors import PsclapError
from psclap.training.tracker import NullTracker

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


STORE_NAME = "mlflow.db"


@dataclass(frozen=True)
class TrackingStore:
    """Where runs and models are kept. `artifact_location` is None where a server decides it."""

    uri: str
    artifact_location: str | None

    @classmethod
    def at(cls, folder: Path) -> TrackingStore:
        """The server that MLFLOW_TRACKING_URI names, else an sqlite store with its artefacts in `folder`."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri:
            return cls(uri, None)
        folder = folder.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PsclapError(f"cannot keep a tracking store in {folder}: {error.strerror}") from error
        return cls(f"sqlite:///{folder}/{STORE_NAME}", (folder / "artifacts").as_uri())

    def client(self) -> MlflowClient:
        """A client of this store. Sets MLflow's process-wide URIs, which its model functions read."""
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        return MlflowClient(self.uri)

    def start_run(self, experiment: str, name: str, tags: Mapping[str, str]) -> str:
        """Creates a run, in an experiment that is made where it is missing; returns the run's id.

        Raises PsclapError where the store cannot be reached.
        """
        try:
            client = self.client()
            with _few_retries():
                known = client.get_experiment_by_name(experiment)
            if known:
                experiment_id = known.experiment_id
            else:
                experiment_id = client.create_experiment(experiment, artifact_location=self.artifact_location)
            run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
        except MlflowException as error:
            raise PsclapError(
                f"the tracking store {self.uri} does not answer ({error}); start it, or unset MLFLOW_TRACKING_URI "
                "to use the embedded store"
            ) from error
        return run.info.run_id

    @contextmanager
    def running(self, run_id: str, tags: Mapping[str, str]) -> Iterator[None]:
        """Marks a run as running for the length of a `with` block, then as finished, failed or killed."""
        client = self.client()
        client.update_run(run_id, status="RUNNING")
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
        try:
            yield
        except BaseException as error:
            client.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        client.set_terminated(run_id)

    def history(self, run_id: str) -> list[dict[str, float]]:
        """Every logged step of a run as one row of `step` and its metrics, ascending."""
        client = self.client()
        rows: dict[int, dict[str, float]] = {}
        for name in sorted(client.get_run(run_id).data.metrics):
            for metric in client.get_metric_history(run_id, name):
                rows.setdefault(metric.step, {"step": metric.step})[name] = metric.value
        return [rows[step] for step in sorted(rows)]


@contextmanager
def _few_retries() -> Iterator[None]:
    """MLflow's own retries of a server that does not answer take minutes: too long to learn of a wrong URI."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = before or "2"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def mlflow_name(name: str) -> str:
    """A metric's name as MLflow allows it, without "@".

    >>> mlflow_name("val/R@1")
    'val/R_at_1'
    """
    return name.replace("@", "_at_")


class MlflowTracker(NullTracker):
    """A psclap Tracker that writes to an MLflow run."""

    def __init__(self, store: TrackingStore, run_id: str):
        self._client, self._run_id = store.client(), run_id
        try:
            self._client.get_run(run_id)
        except MlflowException as error:
            raise PsclapError(
                f"the tracking store {store.uri} has no run {run_id}, which was made in another store; "
                "set MLFLOW_TRACKING_URI to that one, or train again"
            ) from error

    def params(self, params: Mapping[str, Any]) -> None:
        self._client.log_batch(self._run_id, params=[Param(name, str(value)) for name, value in params.items()])

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        batch = [Metric(mlflow_name(name), value, now_ms, step) for name, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=batch)

    def artifact(self, path: Path) -> None:
        self._client.log_artifact(self._run_id, str(path))

    def close(self) -> None:
        self._client.set_terminated(self._run_id)
