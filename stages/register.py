"""Model + metrics -> a registered version: registered/VARIANT.json names it, VARIANT.md is its model card."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.delivery import deliver
from pipelines.registry import Card, register
from pipelines.tracking import TrackingStore, mlflow_name
from psclap import log
from psclap.config import Params
from psclap.files import atomic_file, write_json
from psclap.model_card.facts import Facts, count_parameters, shared_speakers, split_statistics
from psclap.model_card.page import description, model_card
from psclap.models.fetch import weights_sha256
from psclap.shards.index import ShardIndex
from psclap.strict import flatten
from psclap.training.journal import Journal
from stages import METRICS, MODELS, REGISTERED, REPORTS, SHARDS, TRACKING_STORE, TRAINING
from stages._main import run_stage


def main(params: Params, variant: str) -> None:
    store = TrackingStore.at(TRACKING_STORE)
    run_id = deliver(store, Journal(TRAINING / variant))  # what the training could not
    facts = _gather(params, variant, run_id)
    card = Card(str(model_card(facts)), description(facts))
    numbers = flatten(facts.metrics, "/")
    store.log_metrics(run_id, facts.progress["step"], {f"test/{name}": value for name, value in numbers.items()})
    store.client().log_artifact(run_id, str(REPORTS / variant))
    registered = register(
        store,
        run_id,
        MODELS / variant,
        name=facts.name,
        alias=params.register.alias,
        tags={
            **{mlflow_name(name): f"{value:.4f}" for name, value in numbers.items()},
            "data_index_sha256": facts.summary["index_sha256"],
        },
        card=card,
    )
    write_json(REGISTERED / f"{variant}.json", {"uri": registered.uri, **asdict(registered)})
    with atomic_file(REGISTERED / f"{variant}.md") as partial:
        partial.write_text(card.readme, encoding="utf-8")
    log.info(
        f"register: {registered.uri} is {registered.name}@{params.register.alias} (MLflow at {store})",
        uri=registered.uri,
        mlflow_run=run_id,
        weights_sha256=registered.weights_sha256,
    )


def _gather(params: Params, variant: str, run_id: str) -> Facts:
    index, split = ShardIndex(SHARDS), params.evaluate.split
    return Facts(
        name=f"{params.register.name_prefix}-{variant}",
        variant=variant,
        params=params,
        config=_read(MODELS / variant / "config.json"),
        progress=_read(MODELS / variant / "progress.json"),
        parameters=count_parameters(MODELS / variant),
        weights_sha256=weights_sha256(MODELS / variant),
        run_id=run_id,
        metrics={path.stem: _read(path) for path in sorted((METRICS / variant).glob("*.json"))},
        evaluation=_read(REPORTS / variant / "evaluation.json"),
        summary=index.summary,
        trained=split_statistics(index, "train"),
        tested=split_statistics(index, split),
        shared_speakers=shared_speakers(index, split),
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


if __name__ == "__main__":
    run_stage(main)
