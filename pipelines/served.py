"""What MLflow serves of each type of model: the code that answers, its signature, an example and what it imports."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Map

from pipelines import serving, speaking
from psclap import audio

_SHARED = ("aiohttp", "fsspec", "mlflow", "numpy", "pandas", "pyarrow", "pyyaml", "safetensors", "soundfile", "soxr")
_MODELS = ("torch", "transformers", "wrapt")
_CLOUDS = ("adlfs", "gcsfs", "s3fs")  # for audio at URLs of theirs; required where they are installed here


@dataclass(frozen=True)
class Served:
    """How one type of model is served; `requirements` are what its code imports."""

    code: str
    signature: ModelSignature
    example: Callable[[], pd.DataFrame]
    requirements: tuple[str, ...]

    def pinned_requirements(self) -> list[str]:
        """What the served model imports. The rest of its environment follows from the requirements of these."""
        names = [*self.requirements, *(name for name in _CLOUDS if importlib.util.find_spec(name))]
        # Without the local part ("+cpu"), which a package index does not serve.
        return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in sorted(names)]


def _style_example() -> pd.DataFrame:
    """A second of noise as base64, and a caption."""
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    flac = base64.b64encode(audio.encode_flac(wave, 16000)).decode()
    return pd.DataFrame({"audio": [flac], "text": ["A calm, quiet voice."]})


def _speech_example() -> pd.DataFrame:
    return pd.DataFrame({"text": ["The small cat waited for the rain."]})


SERVED = {
    "paraspeechclap": Served(
        serving.__file__,
        ModelSignature(
            inputs=Schema([ColSpec(DataType.string, name, required=False) for name in ("audio", "text")]),
            outputs=Schema(
                [
                    ColSpec(DataType.double, "score", required=False),
                    ColSpec(Array(DataType.float), "embedding", required=False),
                    ColSpec(DataType.string, "tag", required=False),
                    ColSpec(Map(DataType.double), "scores", required=False),
                ]
            ),
            params=ParamSchema(
                [
                    ParamSpec("task", DataType.string, "score"),
                    ParamSpec("candidates", DataType.string, [], shape=(-1,)),
                    ParamSpec("ensemble", DataType.boolean, False),
                ]
            ),
        ),
        _style_example,
        (*_SHARED, *_MODELS, "av", "tokenizers"),
    ),
    "clip_tts": Served(
        speaking.__file__,
        ModelSignature(
            inputs=Schema(
                [
                    ColSpec(DataType.string, "text"),
                    *(ColSpec(DataType.string, name, required=False) for name in ("speaker", "styles")),
                ]
            ),
            outputs=Schema(
                [
                    ColSpec(DataType.string, "audio"),
                    ColSpec(DataType.long, "sample_rate_hz"),
                    *(ColSpec(DataType.string, name) for name in ("speaker", "styles", "vocoder")),
                ]
            ),
            params=ParamSchema(
                [
                    ParamSpec("pace", DataType.double, 1.0),
                    ParamSpec("semitones", DataType.double, 0.0),
                    ParamSpec("noise", DataType.double, 0.0),
                    ParamSpec("seed", DataType.long, 0),
                    ParamSpec("language", DataType.string, ""),
                ]
            ),
        ),
        _speech_example,
        (*_SHARED, *_MODELS, "av", "espeakng_loader", "wetext"),
    ),
}
"""By the model's type; others cannot be registered."""
