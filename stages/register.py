"""Model + metrics -> a registered version: registered/VARIANT.json names it."""

import json
from dataclasses import asdict

from pipelines.registry import register
from pipelines.tracking import MlflowTracker, TrackingStore, mlflow_name
from psclap.config import Params
from psclap.evaluation.report import flatten
from psclap.files import write_json
from psclap.shards.index import ShardIndex
from stages import METRICS, MODELS, REGISTERED, REPORTS, SHARDS, TRACKING_STORE, TRAINING
from stages._main import run_stage


def main(params: Params, variant: str) -> None:
    store = TrackingStore.at(TRACKING_STORE)
    run_id = json.loads((TRAINING / variant / "run.json").read_text())["run_id"]
    numbers = flatten({path.stem: json.loads(path.read_text()) for path in sorted((METRICS / variant).glob("*.json"))})
    tracker = MlflowTracker(store, run_id)
    step = json.loads((MODELS / variant / "progress.json").read_text())["step"]
    tracker.metrics(step, {f"test/{name}": value for name, value in numbers.items()})
    tracker.artifact(REPORTS / variant)
    tracker.close()
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
    print(f"register: {registered.uri} is {registered.name}@{params.register.alias} (MLflow at {store.uri})")


if __name__ == "__main__":
    run_stage(main)
