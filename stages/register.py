"""Model + metrics -> a registered version: registered/VARIANT.json names it."""

import json
from dataclasses import asdict

from pipelines.delivery import deliver
from pipelines.registry import register
from pipelines.tracking import TrackingStore, mlflow_name
from psclap.config import Params
from psclap.files import write_json
from psclap.shards.index import ShardIndex
from psclap.strict import flatten
from psclap.training.journal import Journal
from stages import METRICS, MODELS, REGISTERED, REPORTS, SHARDS, TRACKING_STORE, TRAINING
from stages._main import run_stage


def main(params: Params, variant: str) -> None:
    store = TrackingStore.at(TRACKING_STORE)
    run_id = deliver(store, Journal(TRAINING / variant))  # what the training could not
    numbers = flatten(
        {path.stem: json.loads(path.read_text()) for path in sorted((METRICS / variant).glob("*.json"))}, "/"
    )
    step = json.loads((MODELS / variant / "progress.json").read_text())["step"]
    store.log_metrics(run_id, step, {f"test/{name}": value for name, value in numbers.items()})
    store.client().log_artifact(run_id, str(REPORTS / variant))
    registered = register(
        store,
        run_id,
        MODELS / variant,
        name=f"{params.register.name_prefix}-{variant}",
        alias=params.register.alias,
        tags={
            **{mlflow_name(name): f"{value:.4f}" for name, value in numbers.items()},
            "data_index_sha256": ShardIndex(SHARDS).sha256,
        },
    )
    write_json(REGISTERED / f"{variant}.json", {"uri": registered.uri, **asdict(registered)})
    print(f"register: {registered.uri} is {registered.name}@{params.register.alias} (MLflow at {store})")


if __name__ == "__main__":
    run_stage(main)
