"""The tracking store: the MLflow server that MLFLOW_TRACKING_URI names, or one embedded in a file."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from psclap.errors import PsclapError
from psclap.storage import redacted

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


STORE_NAME = "mlflow.db"

_DATABASES = ("postgresql", "mysql", "sqlite", "mssql")


@dataclass(frozen=True)
class TrackingStore:
    """Where runs and models are kept. `artifact_location` is None where a server decides it."""

    uri: str
    artifact_location: str | None

    @classmethod
    def at(cls, folder: Path) -> TrackingStore:
        """The server that MLFLOW_TRACKING_URI names, else an sqlite store with its artefacts in `folder`.

        Raises PsclapError for a URI that can name no server. Whether one answers there is not asked.
        """
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri:
            _check_uri(uri)
            return cls(_without_credentials(uri), None)
        folder = folder.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PsclapError(f"cannot keep a tracking store in {folder}: {error.strerror}") from error
        return cls(f"sqlite:///{folder}/{STORE_NAME}", (folder / "artifacts").as_uri())

    def __str__(self) -> str:
        return redacted(self.uri)

    def client(self) -> MlflowClient:
        """A client of this store. Sets MLflow's process-wide URIs, which its model functions read."""
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        return MlflowClient(self.uri)

    def experiment_id(self, name: str) -> str:
        """The id of the experiment of a name, made where there is none yet."""
        client = self.client()
        experiment = client.get_experiment_by_name(name)
        if experiment:
            return experiment.experiment_id
        try:
            return client.create_experiment(name, artifact_location=self.artifact_location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return client.get_experiment_by_name(name).experiment_id  # another process was quicker

    def log_metrics(self, run_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a run that is here already."""
        now_ms = int(time.time() * 1000)
        batch = [Metric(mlflow_name(name), value, now_ms, step) for name, value in metrics.items()]
        self.client().log_batch(run_id, metrics=batch, synchronous=True)


@contextmanager
def impatient(request_s: int = 60) -> Iterator[None]:
    """MLflow's requests end within `request_s`, without retries: by its own setting they go on for many minutes.

    What the environment says already stands.
    """
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(request_s)}
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ |= ours
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def mlflow_name(name: str) -> str:
    """A metric's name as MLflow allows it.

    >>> mlflow_name("val/R@1"), mlflow_name("batch_share/high, clear")
    ('val/R_at_1', 'batch_share/high_ clear')
    """
    return re.sub(r"[^\w./: -]", "_", name.replace("@", "_at_"))


def _without_credentials(uri: str) -> str:
    """A server's URI; user and password that it holds move to MLflow's variables for them, which are not printed."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    os.environ["MLFLOW_TRACKING_URI"] = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return os.environ["MLFLOW_TRACKING_URI"]


def _check_uri(uri: str) -> None:
    try:
        scheme = urlsplit(uri).scheme
        if scheme in ("http", "https"):
            if not urlsplit(uri).hostname:
                raise ValueError("it names no host")
            urlsplit(uri).port  # noqa: B018 - raises where it is no number
        elif scheme.split("+")[0] in _DATABASES:
            sqlalchemy.make_url(uri).get_dialect().import_dbapi()
        else:
            MlflowClient(uri)  # of a file, or of what a plugin provides; neither asks a server
    except (ValueError, ImportError, sqlalchemy.exc.ArgumentError, MlflowException) as error:
        raise PsclapError(
            f"MLFLOW_TRACKING_URI {redacted(uri)!r} is no tracking store ({redacted(str(error))}); write "
            "http://HOST:PORT or sqlite:////FOLDER/mlflow.db, or unset it to use the embedded store"
        ) from error
