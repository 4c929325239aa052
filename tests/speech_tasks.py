"""Tiny tasks of Speech-Clip and Clip-TTS with made-up batches, for tests of losses and of ranks."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from small_speech import SIZES
from torch.nn.parallel import DistributedDataParallel

from psclap import distributed
from psclap.config import load_params
from psclap.loop_config import ComputeConfig
from psclap.tts.batch import Batch, Example, SpeechCollator
from psclap.tts.build import new_model
from psclap.tts.mel import MelConfig
from psclap.tts.speech_clip import SpeechPreTrainedModel
from psclap.tts.task import ClipTTSTask, SpeechClipTask
from psclap.tts.vocabulary import Vocabulary
from psclap.tts_config import SpeechTrainConfig

MEL = MelConfig(num_mel_bins=12, fft_length=512, window_length=512)
VOCABULARY = Vocabulary(["a", "b", "k", "s", "ˈiː"], ["ann", "bob"], ["fast", "slow"], [["fast"], ["slow"]])
_CLIPS = 8


def train_config(objective: str, **changes: Any) -> SpeechTrainConfig:
    voice = load_params("params.yaml").voices["cast"]
    config = getattr(voice, objective)
    return replace(config, start_from=None, **changes)


def model_of(objective: Any, seed: int = 0) -> SpeechPreTrainedModel:
    return new_model(objective, replace(SIZES, dropout=0.0, duration_dropout=0.0), MEL, VOCABULARY, seed)


def task_of(objective: str, precision: Any = "fp32") -> Any:
    task = SpeechClipTask if objective == "speech_clip" else ClipTTSTask
    return task(model_of(objective), train_config(objective, compute=ComputeConfig(precision=precision)))


def examples() -> list[Example]:
    """Sentences of several lengths; two of them say the same."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(_CLIPS):
        symbols = rng.integers(1, 6, int(rng.integers(2, 7)))
        frames = len(symbols) + int(rng.integers(3, 12))
        mel = torch.from_numpy(rng.normal(size=(frames, MEL.num_mel_bins)).astype(np.float32))
        styles = np.eye(2, dtype=np.float32)[number % 2]
        made.append(Example(symbols, mel, number % 2, styles, min(number, _CLIPS - 2), frames * MEL.hop_length))
    return made


def batch_of(of_all: list[Example]) -> Batch:
    """This rank's share of a global batch."""
    size = len(of_all) // distributed.world_size()
    own = of_all[distributed.rank() * size : (distributed.rank() + 1) * size]
    return SpeechCollator(VOCABULARY, MEL).collate(own)


def speech_step(objective: str) -> dict[str, Any]:
    """The losses and gradients of one step, on this rank of however many there are."""
    task = task_of(objective).train()
    parallel = DistributedDataParallel(task) if distributed.world_size() > 1 else task
    losses = parallel(batch_of(examples()))
    losses.total.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in task.named_parameters()}
    return {"total": losses.total.detach(), **losses.report, "gradients": gradients}
