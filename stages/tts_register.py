"""A voice's Clip-TTS + metrics -> a registered version: registered/tts/VOICE.json names it, VOICE.md is its card."""

import json
from dataclasses import asdict

from pipelines.delivery import deliver
from pipelines.registry import Card, register
from pipelines.tracking import TrackingStore, mlflow_name
from psclap import log
from psclap.config import Params
from psclap.evaluation.report import EVALUATION_NAME
from psclap.files import atomic_file, write_json
from psclap.licences import hub_licence
from psclap.shards.index import ShardIndex
from psclap.strict import flatten
from psclap.training.journal import Journal
from psclap.tts.card import card, description
from stages import METRICS, REGISTERED, TRACKING_STORE, TTS
from stages._main import run_stage, voices


def main(params: Params, voice: str) -> None:
    folder, store = TTS / voice, TrackingStore.at(TRACKING_STORE)
    deliver(store, Journal(folder / "speech_clip" / "training"))
    run_id = deliver(store, Journal(folder / "clip_tts" / "training"))
    model, name = folder / "clip_tts" / "model", f"{params.register.name_prefix}-tts-{voice}"
    numbers = {path.stem: json.loads(path.read_text()) for path in sorted((METRICS / "tts" / voice).glob("*.json"))}
    measured = {f"tts/{key}": value for key, value in flatten(numbers, "/").items() if value is not None}
    config = json.loads((model / "config.json").read_text())
    summary = ShardIndex(folder / "shards").summary
    vocoder = json.loads((folder / "reports" / "clip_tts" / EVALUATION_NAME).read_text())["about"]["vocoder"]
    lines = card(name, config, summary, numbers, vocoder, params.register.alias, hub_licence(params.register.license))
    made = Card("\n".join([*lines, ""]), description(name, config, numbers, vocoder))
    step = json.loads((model / "progress.json").read_text())["step"]
    store.log_metrics(run_id, step, measured)
    store.client().log_artifact(run_id, str(folder / "reports"))
    registered = register(
        store,
        run_id,
        model,
        name=name,
        alias=params.register.alias,
        tags={
            **{mlflow_name(key): f"{value:.4f}" for key, value in measured.items()},
            "data_index_sha256": summary["index_sha256"],
            "measured_through": vocoder,
        },
        card=made,
    )
    write_json(REGISTERED / "tts" / f"{voice}.json", {"uri": registered.uri, **asdict(registered)})
    with atomic_file(REGISTERED / "tts" / f"{voice}.md") as partial:
        partial.write_text(made.readme, encoding="utf-8")
    log.info(
        f"tts_register: {registered.uri} is {name}@{params.register.alias} (MLflow at {store})",
        uri=registered.uri,
        mlflow_run=run_id,
        weights_sha256=registered.weights_sha256,
    )


if __name__ == "__main__":
    run_stage(main, voices)
