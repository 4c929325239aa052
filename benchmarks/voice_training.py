"""Speech-Clip and Clip-TTS trained in this process, for the benchmarks: no Ray, no MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from psclap.loop_config import CheckpointConfig
from psclap.training.loop import train
from psclap.training.spec import Training
from psclap.training.store import CheckpointStore
from psclap.training.tracker import NullTracker
from psclap.tts.build import load
from psclap.tts.evaluation.models import ClipTTS, SpeechClip
from psclap.tts.recipe import SpeechRecipe


@dataclass(frozen=True)
class Trained:
    """The model after the last step, its last validation, and what the training cost."""

    folder: Path
    metrics: Mapping[str, float]
    cpu_s: float


class _Told(NullTracker):
    """Prints the losses as they come, and keeps the last of each number."""

    def __init__(self, name: str):
        self.name, self.last, self._start_s = name, dict[str, float](), time.monotonic()

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.last |= metrics
        shown = " ".join(
            f"{name.removeprefix('loss/')} {value:.4g}"
            for name, value in metrics.items()
            if name.startswith(("loss", "val/"))
        )
        if shown:
            print(f"  {self.name} step {step}, {time.monotonic() - self._start_s:.0f} s: {shown}", flush=True)

    def note(self, text: str) -> None:
        print(f"  {self.name}: {text}", flush=True)


def trained(shards: Path, recipe: SpeechRecipe, seed: int, folder: Path) -> Trained:
    """The model of a recipe, anew; a folder that holds checkpoints of the same training goes on from them."""
    told, start_s = _Told(folder.name), time.process_time()
    store = CheckpointStore(folder, CheckpointConfig(keep_last=1))
    train(Training(shards, recipe, seed), told, store)
    return Trained(folder / store.saved()[-1].name, told.last, time.process_time() - start_s)


def synthesiser(folder: Path) -> ClipTTS:
    """A trained Clip-TTS, as evaluation takes it."""
    return ClipTTS(load(folder))


def matcher(folder: Path) -> SpeechClip:
    """A trained Speech-Clip, as evaluation takes it."""
    return SpeechClip(load(folder))
