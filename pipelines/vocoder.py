"""A HiFi-GAN trained on shards: `python -m pipelines.vocoder --config vocoder.yaml --shards data/shards --output NEW`.

From scratch, from a published one (`vocoder.start_from`), or tuned to what a Clip-TTS says (`--tune-to`). It runs as
every training does: on Ray Train, as an MLflow run, going on from its last checkpoint. docs/vocoder.md has the file.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
import yaml

from pipelines.tracking import TrackingStore
from pipelines.train import Run, train_variant
from psclap import log
from psclap.errors import ConfigError, PsclapError
from psclap.files import check_folder_writable, refuse_existing
from psclap.loop_config import ResourcesConfig
from psclap.models.fetch import fetch, weights_sha256
from psclap.shards.index import ShardIndex
from psclap.strict import from_mapping
from psclap.training.spec import Training
from psclap.tts.build import load
from psclap.tts.clip_tts import ClipTTSModel
from psclap.tts.hifigan import export_generator
from psclap.tts.mel import MelConfig
from psclap.tts.predicted_mels import write_predicted_mels
from psclap.tts.vocoder_recipe import VocoderRecipe
from psclap.tts.vocoder_settings import VocoderConfig, VocoderTrainConfig


@dataclass(frozen=True)
class VocoderParams:
    """The whole file."""

    seed: int
    vocoder: VocoderConfig
    train: VocoderTrainConfig
    resources: ResourcesConfig


def load_vocoder_params(path: Path) -> VocoderParams:
    """Raises ConfigError that lists every broken key of the file."""
    try:
        mapping = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return from_mapping(VocoderParams, mapping, path.name)


def train_vocoder(
    params: VocoderParams, shards: Path | str, output: Path, storage: Path, store: TrackingStore, tune_to: str | None
) -> float:
    """Trains, and leaves the vocoder of the best checkpoint in `output`; returns its `val/mel_l1`.

    Under `storage` is what a restart needs, and the best checkpoint, discriminators included. Raises PsclapError for
    bad input, mostly before any worker starts.
    """
    refuse_existing(output)
    check_folder_writable(output)
    train = params.train if tune_to is None else tuned(params, tune_to, shards, storage)
    resources = params.resources
    training = Training(
        shards,
        VocoderRecipe(params.vocoder, train),
        params.seed,
        resources.loading,
        resources.checkpoints,
        resources.hang_timeout_s,
    )
    tags = {"vocoder": str(output), "data_index_sha256": training.open_index().sha256}
    best = storage / f"{output.name}-best"
    trained = train_variant(Run(output.name, training, resources, storage, store, "vocoder", tags), best)
    export_generator(best, output)
    return trained.metrics["val/mel_l1"]


def tuned(params: VocoderParams, tune_to: str, shards: Path | str, storage: Path) -> VocoderTrainConfig:
    """The training on the mels that a Clip-TTS predicts, which are made once for each model and data.

    Raises PsclapError where `tune_to` is no Clip-TTS, or one of other mels.
    """
    folder, index = fetch(tune_to), ShardIndex(shards)
    model = load(folder)
    if not isinstance(model, ClipTTSModel):
        raise PsclapError(f"--tune-to {tune_to} is a {type(model).__name__}, which makes no mels; give a Clip-TTS")
    theirs = MelConfig.from_dict(model.config.mel)
    if differing := theirs.differences(params.vocoder.mel):
        raise PsclapError(
            f"--tune-to {tune_to} makes mels of another {', '.join(differing)} than vocoder.mel says; give that as "
            f"{model.config.mel}"
        )
    mels = storage.absolute() / f"mels-{weights_sha256(folder)[:12]}-{index.sha256[:12]}"
    if not mels.is_dir():
        log.info(f"the mels that {tune_to} makes of the clips go to {mels}")
        write_predicted_mels(model, index, mels)
    return replace(params.train, predicted_mels=str(mels))


def main(
    config: Annotated[Path, typer.Option(help="What to train; see docs/vocoder.md.")],
    shards: Annotated[str, typer.Option(help="A folder or URL of shards.")],
    output: Annotated[Path, typer.Option(help="The new folder of the vocoder.")],
    tune_to: Annotated[
        str | None, typer.Option(help="A Clip-TTS: a folder, a models:/ URI, or a name on the Hub.")
    ] = None,
    storage: Annotated[Path, typer.Option(help="What a restart needs is kept here.")] = Path("runs"),
) -> None:
    """Train a HiFi-GAN. Run again, a training that was interrupted or killed goes on."""
    try:
        store = TrackingStore.at(Path("mlflow"))
        error = train_vocoder(load_vocoder_params(config), shards, output, storage, store, tune_to)
    except KeyboardInterrupt:
        log.error("interrupted; the same command goes on from here")
        raise typer.Exit(130) from None
    log.info(f"{output}: a vocoder, val/mel_l1 {error:.3f}", mel_l1=error)


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(main)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        log.begin("vocoder")
        app()
    except Exception as error:
        log.failed(error)
        sys.exit(1)
