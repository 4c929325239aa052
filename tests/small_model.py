"""A small model of the demo's kind as a checkpoint folder, and sounds for it."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import soundfile
import yaml
from conftest import WAVLM

from psclap.config import PRESETS_FOLDER, EncoderConfig, parse_params
from psclap.models.build import build_model

TEXTS = ["a raspy voice, slow and loud", "a silky, quiet voice"]


def save_small_model(folder: Path, seed: int = 1, wavlm: bool = False) -> Path:
    """Writes a fresh model and its processor to `folder`, with a file that is neither."""
    config = parse_params(yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())).model
    if wavlm:
        config = dataclasses.replace(config, speech=EncoderConfig(pooling="mean", config=WAVLM))
    model, processor = build_model(config, TEXTS, 16000, seed=seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text("# A small model\n")
    return folder


def noise(seconds: float, rate_hz: int = 16000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * rate_hz)).astype(np.float32)


def wav(wave: np.ndarray, rate_hz: int = 16000) -> bytes:
    """A WAV file of floats, which holds the wave bit for bit."""
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate_hz, format="WAV", subtype="FLOAT")
    return stream.getvalue()
