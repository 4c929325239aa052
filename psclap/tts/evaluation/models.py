"""Clip-TTS and Speech-Clip as evaluation takes them (`Synthesiser` and `Matcher`): from rows of the index."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from psclap.tts.batch import padded
from psclap.tts.clip_tts import ClipTTSModel, Voice
from psclap.tts.mel import MelConfig
from psclap.tts.speech_clip import SpeechClipModel
from psclap.tts.vocabulary import Vocabulary

_CLIPS_AT_ONCE = 16


class ClipTTS:
    """Says what rows say, by their speakers and in their styles; the model is put into evaluation mode."""

    def __init__(self, model: ClipTTSModel):
        self._model = model.eval()
        self._vocabulary = Vocabulary.of_config(model.config)
        self.mel = MelConfig.from_dict(model.config.mel)

    def can_say(self, row: Mapping[str, Any]) -> bool:
        """Whether the model knows the phonemes and the speaker."""
        return self._vocabulary.knows(row["speaker"]) and self._vocabulary.can_encode(row["phonemes"])

    def speak(self, row: Mapping[str, Any]) -> np.ndarray:
        """(F, num_mel_bins) log-mels. Raises PsclapError for what the model cannot say, and an unknown speaker."""
        return self._model.speak(*self._sentence(row)[1]).mel[0].float().cpu().numpy()

    def durations(self, row: Mapping[str, Any]) -> tuple[Sequence[str], np.ndarray]:
        """The symbols of a row's transcript and (L,) the frames of each."""
        symbols, sentence = self._sentence(row)
        return symbols, self._model.durations(*sentence)[0].cpu().numpy()

    def _sentence(self, row: Mapping[str, Any]) -> tuple[Sequence[str], tuple[torch.Tensor, torch.Tensor, Voice]]:
        """The symbols of a row's transcript, and what the model takes."""
        symbols, numbers = self._vocabulary.encode(row["phonemes"])
        speaker = self._vocabulary.speaker(row["speaker"]) if self._vocabulary.speakers else 0
        styles = self._vocabulary.style(row["situational_tags"])
        device = self._model.device
        voice = Voice(torch.tensor([speaker], device=device), torch.from_numpy(styles)[None].to(device))
        lengths = torch.tensor([len(numbers)], device=device)
        return symbols, (torch.from_numpy(numbers)[None].to(device), lengths, voice)


class SpeechClip:
    """Embeds and aligns rows with their log-mels; the model is put into evaluation mode."""

    def __init__(self, model: SpeechClipModel):
        self._model = model.eval()
        self._vocabulary = Vocabulary.of_config(model.config)
        self.mel = MelConfig.from_dict(model.config.mel)

    def can_say(self, row: Mapping[str, Any]) -> bool:
        """Whether the model knows the phonemes."""
        return self._vocabulary.can_encode(row["phonemes"])

    def embed(self, rows: Sequence[Mapping[str, Any]], log_mels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) embeddings of the rows' transcripts, and of their (F, num_mel_bins) log-mels."""
        parts = []
        for start in range(0, len(rows), _CLIPS_AT_ONCE):
            some = slice(start, start + _CLIPS_AT_ONCE)
            with torch.inference_mode():
                parts.append(self._model.embed(*self._batch(rows[some], log_mels[some])))
        text_ND, mel_ND = (torch.cat(part).float().cpu().numpy() for part in zip(*parts, strict=True))
        return text_ND, mel_ND

    def align(self, row: Mapping[str, Any], log_mel: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
        """The symbols of a row's transcript, and (L,) the frames of its log-mels that each takes."""
        symbols, _ = self._vocabulary.encode(row["phonemes"])
        return symbols, self._model.align(*self._batch([row], [log_mel]))[0].cpu().numpy()

    def _batch(self, rows: Sequence[Mapping[str, Any]], log_mels: Sequence[np.ndarray]) -> list[torch.Tensor]:
        numbers = [self._vocabulary.encode(row["phonemes"])[1] for row in rows]
        tensors = padded(numbers, [torch.from_numpy(log_mel) for log_mel in log_mels])
        return [tensor.to(self._model.device) for tensor in tensors]


def untrained(model: ClipTTSModel, seed: int = 0) -> ClipTTSModel:
    """A model of the same configuration, vocabulary and mel statistics with the first weights of a training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(copy.deepcopy(model.config))
    fresh.set_mel_statistics(model.mel_mean, model.mel_deviation)
    return fresh.to(model.device)
