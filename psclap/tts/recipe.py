"""The recipes of Speech-Clip and Clip-TTS: what the training loop needs to know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from psclap.errors import PsclapError
from psclap.loader import Stream
from psclap.models.fetch import fetch, weights_sha256
from psclap.sampling import Examples
from psclap.schema import Split
from psclap.shards.index import ShardIndex, View
from psclap.training.optim import freeze
from psclap.tts.build import load, new_model, take_over
from psclap.tts.clips import Chosen, known_to, usable
from psclap.tts.mel import MelConfig, MelSpectrogram
from psclap.tts.speech_clip import SpeechPreTrainedModel
from psclap.tts.task import ClipTTSTask, SpeechClipTask
from psclap.tts.validation import ClipTTSValidation, SpeechClipValidation
from psclap.tts.vocabulary import Vocabulary
from psclap.tts_config import SpeechModelConfig, SpeechTrainConfig

_CLIPS_FOR_STATISTICS = 200


@dataclass(frozen=True)
class SpeechRecipe:
    """One training of Speech-Clip or Clip-TTS; see `psclap.training.recipe.Recipe`.

    `start` is the model that it starts from, a folder or what `psclap.models.fetch` takes; None: from scratch.
    """

    model: SpeechModelConfig
    mel: MelConfig
    train: SpeechTrainConfig
    start: str | None = None

    @property
    def max_crop_s(self) -> float:
        """Clips are taken whole: longer ones are left out."""
        return self.train.max_clip_s

    def values(self) -> Mapping[str, Any]:
        """The model's sizes, the mel's definition, and the weights it starts from."""
        start = {} if self.start is None else {"start_sha256": weights_sha256(fetch(self.start))}
        return {"model": asdict(self.model), "mel": self.mel.to_dict(), **start}

    def reads(self) -> Sequence[str]:
        """The model that it starts from."""
        return [self.start] if self.start is not None else []

    def clips(self, index: ShardIndex, split: Split) -> Chosen:
        """The clips of a split that have a transcript, are short enough, and long enough for what they say.

        Raises PsclapError for shards without phonemes.
        """
        return usable(index, split, self.mel, self.max_crop_s)

    def stream(self, index: ShardIndex, seed: int) -> Stream:
        """The clips of train. Raises PsclapError where there is none, and for shards of another sample rate."""
        if index.sample_rate_hz != self.mel.sample_rate_hz:
            raise PsclapError(
                f"{index.location} has clips of {index.sample_rate_hz} Hz and the section mel is defined for "
                f"{self.mel.sample_rate_hz} Hz; set the voice's shard.sample_rate_hz to that"
            )
        clips, options = self.clips(index, "train"), self.train.sampling
        rows = clips.rows
        if not len(rows):
            raise PsclapError(
                f"{index.location} has no train clip with a transcript of at most {self.max_crop_s:g} s "
                f"(train.max_clip_s of the voice, or of tts.base) and as many mel frames as phonemes: {clips}"
            )
        examples = Examples(
            source_sizes=[len(rows)],
            shard=index.shard_number[rows] if options.shuffle_block_shards else None,
            num_samples=index.num_samples[rows],
            max_batch_samples=round(options.max_batch_s * index.sample_rate_hz) if options.max_batch_s else None,
        )
        return Stream(index, [View(None, rows)], examples, self.train.global_batch_size, seed, options)

    def build_model(self, index: ShardIndex, rows: np.ndarray, seed: int) -> SpeechPreTrainedModel:
        """The model as it is before the first step, with the vocabulary of these clips of train."""
        vocabulary = _vocabulary(index, self)
        if self.start is None:
            model = new_model(self.train.objective, self.model, self.mel, vocabulary, seed)
            model.set_mel_statistics(*_mel_statistics(index, rows, self.mel))
            return model
        start = load(self.start)
        model = new_model(self.train.objective, self.model, self.mel, vocabulary, seed)
        take_over(start, model)
        return model

    def task(self, index: ShardIndex, stream: Stream, seed: int) -> SpeechClipTask | ClipTTSTask:
        """The model under its losses."""
        model = self.build_model(index, stream.rows, seed)
        frozen = [*self.train.freeze] + ([] if self.train.alignment_weight else ["aligner", "text_encoder.embedding"])
        freeze(model, frozen)
        task = SpeechClipTask if self.train.objective == "speech_clip" else ClipTTSTask
        return task(model, self.train)

    def validation(self, index: ShardIndex) -> SpeechClipValidation | ClipTTSValidation:
        """On the clips of val whose phonemes training clips have, and by speakers that these have."""
        kind = SpeechClipValidation if self.train.objective == "speech_clip" else ClipTTSValidation
        return kind(index, self._validated(index).rows)

    def _validated(self, index: ShardIndex) -> Chosen:
        any_speaker = self.train.objective == "speech_clip"
        return known_to(_vocabulary(index, self), index, self.clips(index, "val"), any_speaker)

    def check(self, index: ShardIndex, stream: Stream) -> None:
        """The model can start from where it is to; tells what is left out."""
        if self.start is not None:
            self.build_model(index, stream.rows, 0)
        self.clips(index, "train").tell("train")
        self._validated(index).tell("val")


@lru_cache(2)
def _vocabulary(index: ShardIndex, recipe: SpeechRecipe) -> Vocabulary:
    """What the clips of train are made of, with the symbols of the model to start from where there is one."""
    vocabulary = Vocabulary.of_train(index, recipe.clips(index, "train").rows)
    return vocabulary if recipe.start is None else vocabulary.within(load(recipe.start).config.symbols)


def _mel_statistics(index: ShardIndex, rows: np.ndarray, mel: MelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(M,) mean and deviation of the log-mels of some clips, spread over all."""
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _CLIPS_FOR_STATISTICS).round().astype(int))]
    spectrogram = MelSpectrogram(mel)
    frames = torch.cat([spectrogram(torch.from_numpy(index.read_clip(int(row)))) for row in chosen]).double()
    return frames.mean(0).float(), frames.std(0, correction=0).clamp(min=1e-3).float()
