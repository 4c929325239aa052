"""A tiny vocoder's training that is tuned to a tiny Clip-TTS."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from small_speech import SmallSpeech
from small_vocoder import CONFIG, train_config

from pipelines.tracking import TrackingStore
from pipelines.vocoder import VocoderParams
from psclap.loop_config import CheckpointConfig, LoadingConfig, ResourcesConfig
from psclap.tts.clip_tts import ClipTTSModel


def vocoder_params(**changes: Any) -> VocoderParams:
    resources = ResourcesConfig(1, 1, 1, LoadingConfig(), CheckpointConfig(), 60.0, 0)
    config = {"max_steps": 2, "global_batch_size": 2, "max_crop_s": 20.0, "validation_clips": 1}
    return VocoderParams(0, replace(CONFIG, **changes), train_config(**config), resources)


def tracking(folder: Path) -> TrackingStore:
    return TrackingStore(f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri())


def clip_tts(speech: SmallSpeech) -> ClipTTSModel:
    model = speech.model("clip_tts")
    assert isinstance(model, ClipTTSModel)
    return model.eval()
