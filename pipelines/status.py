"""What the tracking store knows, for `psclap status`: a few requests, whatever the number of runs in it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipelines.notes import DECIDED_TAG, DECISION_TAG
from pipelines.promotion import PROMOTED_TAG
from pipelines.tracking import STORE_NAME, TrackingStore, impatient
from psclap.console import shortened
from psclap.errors import PsclapError, first_line
from psclap.status.facts import Decision, Retraining, Run, Tracked, Version, moment
from psclap.storage import redacted

TRACKING_FOLDER = Path("mlflow")
MAX_MODELS = 6
DECISIONS = 3

_MAX_EXPERIMENTS = 1000
_MAX_REASON = 200
_REQUEST_S = 10
_LOCKS = "psclap-retrain-lock-%"  # of pipelines.retrain
_RECALL = re.compile(r"(\w+)/audio_to_text/R_at_10")
_UAR = re.compile(r"classification/([\w-]+)/UAR")


def tracked(runs: int, folder: Path = TRACKING_FOLDER) -> Tracked:
    """The newest runs, models and decisions of the store that MLFLOW_TRACKING_URI names, or the one in `folder`.

    Nothing is made where there is no store. Raises PsclapError where it does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (folder / STORE_NAME).is_file():
        return Tracked(None)
    store = TrackingStore.at(folder)
    try:
        with impatient(_REQUEST_S):
            return _ask(store, runs)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = shortened(redacted(first_line(error)), _MAX_REASON)
        raise PsclapError(f"the tracking store {store} does not answer as it should: {reason}") from error


def _ask(store: TrackingStore, runs: int) -> Tracked:
    client = store.client()
    experiments = {
        experiment.experiment_id: experiment
        for experiment in client.search_experiments(
            ViewType.ACTIVE_ONLY, _MAX_EXPERIMENTS, order_by=["last_update_time DESC"]
        )
    }
    models = client.search_registered_models(max_results=MAX_MODELS + 1, order_by=["timestamp DESC"])
    decided = _newest_runs(client, experiments, DECISIONS, f"tags.`{DECIDED_TAG}` LIKE '%'")
    others = _newest_runs(client, experiments, runs + DECISIONS, "")
    told = [run for run in others if DECIDED_TAG not in run.data.tags][:runs]
    return Tracked(
        str(store),
        [_run(run, experiments[run.info.experiment_id]) for run in told],
        [version for model in models[:MAX_MODELS] for version in _versions(client, model)],
        len(models) > MAX_MODELS,
        [*map(_decision, decided)],
        _retraining(client),
    )


def _newest_runs(
    client: MlflowClient, experiments: Mapping[str, Experiment], count: int, condition: str
) -> Sequence[MlflowRun]:
    return client.search_runs([*experiments], condition, max_results=count, order_by=["attributes.start_time DESC"])


def _run(run: MlflowRun, experiment: Experiment) -> Run:
    info, tags = run.info, run.data.tags
    steps = [metric.step for metric in run.data.to_proto().metrics if not metric.key.startswith("system/")]
    asked = run.data.params.get("max_steps", "")
    return Run(
        id=info.run_id,
        name=info.run_name or info.run_id,
        experiment=experiment.name,
        status=info.status,
        started=moment(info.start_time / 1000),
        ended=moment(info.end_time / 1000) if info.end_time else None,
        step=max(steps, default=None),
        max_steps=int(asked) if asked.isdecimal() else None,
        metrics={name: value for name, value in sorted(run.data.metrics.items()) if math.isfinite(value)},
        data=tags.get("data_index_sha256"),
    )


def _versions(client: MlflowClient, model: RegisteredModel) -> Iterator[Version]:
    """Those that have an alias, and the newest, which may have none; the newest first."""
    aliases: dict[str, list[str]] = {}
    for alias, version in sorted((model.aliases or {}).items()):
        aliases.setdefault(str(version), []).append(alias)
    newest = client.search_model_versions(f"name = '{model.name}'", max_results=1, order_by=["version_number DESC"])
    found = {str(version.version): version for version in newest}
    found |= {number: client.get_model_version(model.name, number) for number in aliases.keys() - found.keys()}
    for number in sorted(found, key=int, reverse=True):
        yield _version(found[number], aliases.get(number, []))


def _version(version: ModelVersion, aliases: Sequence[str]) -> Version:
    metrics, chance = headline_metrics(version.tags)
    return Version(
        model=version.name,
        version=str(version.version),
        aliases=aliases,
        registered=moment(version.creation_timestamp / 1000),
        promoted=version.tags.get(PROMOTED_TAG),
        metrics=metrics,
        chance=chance,
        data=version.tags.get("data_index_sha256"),
    )


def headline_metrics(tags: Mapping[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    """Of a version's tags: the R@10 from speech to caption of each caption set, and the mean UAR over attributes.

    Beside them what chance gives, where that is told.

    >>> headline_metrics({"combined/audio_to_text/R_at_10": "0.97", "combined/audio_to_text/chance_R_at_10": "0.06"})
    ({'R@10 combined': 0.97}, {'R@10 combined': 0.06})
    """
    metrics: dict[str, float] = {}
    chance: dict[str, float] = {}
    for tag in sorted(tags):
        if found := _RECALL.fullmatch(tag):
            name = f"R@10 {found[1]}"
            metrics |= _mean(name, tags, [tag])
            chance |= _mean(name, tags, [f"{found[1]}/audio_to_text/chance_R_at_10"])
    attributes = [found[1] for found in map(_UAR.fullmatch, sorted(tags)) if found]
    metrics |= _mean("UAR", tags, [f"classification/{name}/UAR" for name in attributes])
    chance |= _mean("UAR", tags, [f"classification/{name}/chance_UAR" for name in attributes])
    return metrics, chance


def _mean(name: str, tags: Mapping[str, str], of: Sequence[str]) -> dict[str, float]:
    """Nothing where one of them is missing, or no number."""
    try:
        mean = sum(float(tags[tag]) for tag in of) / len(of)
    except (KeyError, ValueError, ZeroDivisionError):
        return {}
    return {name: mean} if math.isfinite(mean) else {}


def _decision(run: MlflowRun) -> Decision:
    tags = run.data.tags
    title, is_promotion = run.info.run_name or run.info.run_id, tags[DECIDED_TAG] == "promote"
    return Decision(tags.get(DECISION_TAG, run.info.run_id), moment(run.info.start_time / 1000), title, is_promotion)


def _retraining(client: MlflowClient) -> Retraining | None:
    """Whoever holds the lock of retrainings; the newest, where several do."""
    held = client.search_experiments(
        ViewType.ACTIVE_ONLY, 1, filter_string=f"name LIKE '{_LOCKS}'", order_by=["creation_time DESC"]
    )
    for experiment in held:
        holder = experiment.tags.get("holder", "somebody who does not say")
        return Retraining(holder, moment(experiment.creation_time / 1000), experiment.tags.get("heartbeat"))
    return None
