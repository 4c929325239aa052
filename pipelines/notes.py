"""What is worth a run of its own in the tracking store though nothing was trained: a decision, a drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Metric

from pipelines.tracking import TrackingStore, mlflow_name

DECISION_TAG, DECIDED_TAG = "psclap.decision", "psclap.decided"
"""The id of a decision, and what it was: promote or keep."""
DRIFT_TAG = "psclap.drift"


@dataclass(frozen=True)
class Note:
    """Numbers, tags and files, under a tag whose value tells this note from all others."""

    tag: str
    value: str
    name: str
    time_ms: int
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    files: Path  # a folder, or one file

    def write(self, store: TrackingStore, experiment: str) -> str:
        """Makes the run, or completes the one that a killed process began; returns its id.

        What is there already is not there twice: MLflow keeps one row of metrics that are equal in name, step, time and
        value.
        """
        client, experiment_id = store.client(), store.experiment_id(experiment)
        found = client.search_runs([experiment_id], f"tags.`{self.tag}` = '{self.value}'")
        tags = {self.tag: self.value, **self.tags}
        run = found[0] if found else client.create_run(experiment_id, self.time_ms, tags, self.name)
        if run.info.status == "RUNNING":
            rows = [Metric(mlflow_name(name), value, self.time_ms, 0) for name, value in self.metrics.items()]
            client.log_batch(run.info.run_id, metrics=rows, synchronous=True)
            log_files = client.log_artifacts if self.files.is_dir() else client.log_artifact
            log_files(run.info.run_id, str(self.files))
            client.set_terminated(run.info.run_id)
        return run.info.run_id
