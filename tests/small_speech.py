"""A small corpus of espeak-ng with its phonemes' times, small models of Clip-TTS and Speech-Clip, and their reports."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from conftest import SPEECH_SHARDING, shard

from psclap.corpora.demo_tts import DemoTts
from psclap.shards.index import ShardIndex
from psclap.tts.build import new_model
from psclap.tts.clip_tts import ClipTTSModel
from psclap.tts.evaluation.alignment import Timeline
from psclap.tts.evaluation.models import ClipTTS, SpeechClip
from psclap.tts.evaluation.recordings import Recording, held_out, recordings
from psclap.tts.evaluation.run import evaluate_synthesiser
from psclap.tts.mel import MelConfig
from psclap.tts.speech_clip import SpeechPreTrainedModel
from psclap.tts.vocabulary import Vocabulary
from psclap.tts.vocoder import Vocoder, load_vocoder
from psclap.tts_config import Objective, SpeechModelConfig

MEL = MelConfig()
CORPUS = DemoTts(speakers=2, train_clips=4, val_clips=1, test_clips=8)
SIZES = SpeechModelConfig(hidden_size=16, num_blocks=1, conv_size=24, aligner_size=8)


@dataclass(frozen=True)
class SmallSpeech:
    """The corpus in shards, and when espeak-ng said which phoneme of its test clips."""

    index: ShardIndex
    known: Mapping[str, Timeline]

    @classmethod
    def make(cls, folder: Path) -> "SmallSpeech":
        utterances = [
            replace(utterance, audio=str(folder / "corpus" / utterance.audio))
            for utterance in CORPUS.utterances(folder / "corpus", processes=2)
        ]
        shard(utterances, folder / "shards", SPEECH_SHARDING)
        keys = [utterance.key for utterance in utterances if utterance.split == "test"]
        known = {key: Timeline.of_events(phonemes) for key, _, phonemes in CORPUS.timed(keys, processes=2)}
        return cls(ShardIndex(folder / "shards"), known)

    @cached_property
    def clips(self) -> list[Recording]:
        return recordings(self.index, held_out(self.index, "test", 100, MEL)[0], MEL)

    @cached_property
    def vocoder(self) -> Vocoder:
        return load_vocoder("griffin-lim", MEL, iterations=4)

    def model(self, objective: Objective) -> SpeechPreTrainedModel:
        """With random weights; it knows all that any clip says."""
        vocabulary = Vocabulary.of_train(self.index, np.arange(len(self.index)))
        return new_model(objective, SIZES, MEL, vocabulary, seed=0)

    @property
    def clip_tts(self) -> ClipTTS:
        model = self.model("clip_tts")
        assert isinstance(model, ClipTTSModel)
        return ClipTTS(model)

    @property
    def speech_clip(self) -> SpeechClip:
        return SpeechClip(self.model("speech_clip"))


class Echo:
    """Says each clip as it was recorded: what a perfect model would do; its durations are espeak-ng's, in frames."""

    mel = MEL

    def __init__(self, speech: SmallSpeech):
        self._mels = {clip.key: clip.log_mel for clip in speech.clips}
        self._known = speech.known

    def can_say(self, row: Mapping[str, Any]) -> bool:
        return True

    def speak(self, row: Mapping[str, Any]) -> np.ndarray:
        return self._mels[row["key"]]

    def durations(self, row: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
        """Pauses, which espeak-ng gives no name, are symbols here: every frame belongs to one."""
        known, hop_s = self._known[row["key"]], MEL.hop_length / MEL.sample_rate_hz
        edges_s = np.stack([known.starts_s, known.ends_s], axis=1).ravel()
        ends = np.where(edges_s > 0, np.round(edges_s / hop_s + 0.5), 0)  # n frames end at n - 1/2 hops
        frames = np.diff(ends.astype(int), prepend=0)
        return [name for symbol in known.symbols for name in (",", symbol)], frames


class Altered:
    """A synthesiser whose mels are changed afterwards."""

    mel = MEL

    def __init__(self, inner: Echo, change: Any):
        self._inner, self._change = inner, change

    def can_say(self, row: Mapping[str, Any]) -> bool:
        return True

    def speak(self, row: Mapping[str, Any]) -> np.ndarray:
        return self._change(self._inner.speak(row))


def write_speech_page(folder: Path, speech: SmallSpeech) -> dict[str, Any]:
    """The report of an echo beside an untrained model; returns its results."""
    options: dict[str, Any] = {"untrained": speech.clip_tts, "known": speech.known, "resamples": 100}
    return evaluate_synthesiser(folder, "an <echo> & more", speech.index, Echo(speech), speech.vocoder, **options)
