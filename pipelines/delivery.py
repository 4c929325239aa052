"""From the journal of a run to its MLflow run: everything, and everything once.

MLflow chooses the ids of runs, so a run carries the journal's uuid as a tag and is found by it. How much of the
journal it holds is a tag of it too, set when that much is there: whoever goes on, from this machine or another,
asks the server itself. What was sent but not yet noted is sent again, which adds nothing: MLflow keeps one row of
metrics that are equal in name, step, time and value.

    python -m pipelines.delivery runs/*/journal     sends what trainings left behind that nobody takes up again
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipelines.tracking import TrackingStore, impatient, mlflow_name
from psclap import log
from psclap.errors import PsclapError
from psclap.storage import redacted
from psclap.training.journal import Journal, Record

RUN_TAG = "psclap.run"
DELIVERED_TAG = "psclap.delivered"
"""The bytes of records.jsonl that the run holds."""

_MAX_METRICS = 1000  # MLflow's limits of one request, and of one value
_MAX_OTHERS = 100
_MAX_PARAM_CHARS = 6000
_MAX_TAG_CHARS = 5000
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def deliver(store: TrackingStore, journal: Journal) -> str:
    """Sends what the store does not hold of a journal yet; returns the run's id.

    Raises PsclapError where that cannot be done now.
    """
    try:
        with impatient():
            return Delivery(store, journal).send()
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise PsclapError(
            f"the tracking store {store} does not take the run {journal.run.name} ({redacted(str(error))}); what it "
            f"lacks is in {journal.folder}. Start the store, or unset MLFLOW_TRACKING_URI to use the embedded one, and "
            "run this again"
        ) from error


class Delivery:
    """Brings one journal to one store; `write` takes a line about what the store refuses for good."""

    def __init__(self, store: TrackingStore, journal: Journal, write: Callable[[str], None] = log.warning):
        self._store, self._journal, self._write = store, journal, write
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._offset = 0

    def send(self, end: int | None = None) -> str:
        """Sends what the journal has, up to a byte, and the run has not; returns the run's id.

        MLflow's exceptions pass through.
        """
        self._client = client = self._client or self._store.client()
        run_id, offset = self._run_id, self._offset
        if run_id is None:
            run_id, offset = _find_or_create(client, self._store, self._journal)
        self._run_id = None  # until all went well: after a failure only the store knows where things stand
        for batch in _batches(self._journal, offset, end):
            self._send(client, run_id, batch)
            client.set_tag(run_id, DELIVERED_TAG, str(batch.end), synchronous=True)
            offset = batch.end
        self._run_id, self._offset = run_id, offset
        return run_id

    def _send(self, client: MlflowClient, run_id: str, batch: _Batch) -> None:
        params = [Param(name, value) for name, value in batch.params.items()]
        tags = [RunTag(name, value) for name, value in batch.tags.items()]
        for start in range(0, len(params), _MAX_OTHERS):
            self._log(client, run_id, "params", params[start : start + _MAX_OTHERS])
        for start in range(0, len(tags), _MAX_OTHERS):
            self._log(client, run_id, "tags", tags[start : start + _MAX_OTHERS])
        for start in range(0, len(batch.metrics), _MAX_METRICS):
            self._log(client, run_id, "metrics", batch.metrics[start : start + _MAX_METRICS])
        if batch.status == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        elif batch.status:
            client.set_terminated(run_id, batch.status, batch.status_ms)

    def _log(self, client: MlflowClient, run_id: str, kind: str, items: Sequence[Any]) -> None:
        """One request; of what the store refuses, all but the one value that it will never take."""
        try:
            client.log_batch(run_id, **{kind: items}, synchronous=True)  # whatever MLFLOW_ENABLE_ASYNC_LOGGING says
        except MlflowException as error:
            if error.error_code not in _REFUSALS or client.get_run(run_id).info.lifecycle_stage != "active":
                raise
            if len(items) > 1:
                self._log(client, run_id, kind, items[: len(items) // 2])
                self._log(client, run_id, kind, items[len(items) // 2 :])
            else:
                run, reason = self._journal.run.name, redacted(str(error))
                self._write(f"[{run}] the tracking store {self._store} refuses {kind} {items[0].key!r}: {reason}")


@dataclass
class _Batch:
    """Some records of a journal, up to byte `end`, as what MLflow takes."""

    end: int
    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    status_ms: int = 0

    def add(self, record: Record, end: int) -> None:
        self.end = end
        match record["kind"]:
            case "metrics" | "system":
                step, time_ms = record["step"], record["time_ms"]
                self.metrics += [Metric(mlflow_name(k), v, time_ms, step) for k, v in record["values"].items()]
            case "params":
                self.params |= {k: _short(v, _MAX_PARAM_CHARS) for k, v in record["values"].items()}
            case "tags":
                self.tags |= {k: _short(v, _MAX_TAG_CHARS) for k, v in record["values"].items()}
            case "status":
                self.status, self.status_ms = record["status"], record["time_ms"]


def _batches(journal: Journal, offset: int, until: int | None) -> Iterator[_Batch]:
    """The records from byte `offset` on. A status ends a batch, so that it is set after what came before it."""
    batch = _Batch(offset)
    for record, end in journal.read(offset, until):
        batch.add(record, end)
        if batch.status or len(batch.metrics) >= _MAX_METRICS:
            yield batch
            batch = _Batch(end)
            offset = end
    if batch.end > offset:
        yield batch


def _find_or_create(client: MlflowClient, store: TrackingStore, journal: Journal) -> tuple[str, int]:
    """The id of the journal's run, and the bytes of the journal that it holds."""
    run = journal.run
    experiment_id = store.experiment_id(run.experiment)
    found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run.uuid}'")
    if not found:
        found = [client.create_run(experiment_id, run.created_ms, {RUN_TAG: run.uuid}, run.name)]
    # A request that was given up may have made a run after the next had made another: one of them stays.
    first, *others = sorted(found, key=lambda run: (-_delivered(run), run.info.run_id))
    for other in others:
        client.delete_run(other.info.run_id)
    return first.info.run_id, _delivered(first)


def _delivered(run: Any) -> int:
    return int(run.data.tags.get(DELIVERED_TAG, 0))


def _short(value: Any, max_chars: int) -> str:
    text = str(value)
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."


def main(folders: Sequence[str]) -> None:
    """Delivers the journals in `folders`, and says which."""
    store = TrackingStore.at(Path("mlflow"))
    for folder in folders:
        run_id = deliver(store, Journal(Path(folder)))
        log.info(f"{folder} is run {run_id} at {store}", folder=folder, mlflow_run=run_id)


if __name__ == "__main__":
    try:
        log.begin("deliver")
        main(sys.argv[1:])
    except Exception as error:
        log.failed(error)
        sys.exit(1)
