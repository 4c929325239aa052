"""Text to sound: a Clip-TTS and a vocoder, in as many manners as are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from psclap import audio
from psclap.decoding import Wave
from psclap.errors import CheckpointError, PsclapError
from psclap.models.device import device_of
from psclap.tts.build import load
from psclap.tts.clip_tts import ClipTTSModel, Voice
from psclap.tts.mel import MelConfig
from psclap.tts.vocabulary import Vocabulary
from psclap.tts.vocoder import load_vocoder
from psclap.tts_config import GRIFFIN_LIM

MAX_SEMITONES, MAX_PACE, MAX_NOISE = 12.0, 4.0, 1.0
MAX_SYMBOLS = 600  # of one sentence, about 40 s
_PACE_SPREAD, _SEMITONES_SPREAD, _NOISE = 0.12, 1.0, 0.1  # deviations of what `manners` draws
_SENTENCES_AT_ONCE = 16


@dataclass(frozen=True)
class Manner:
    """Who says something, and how.

    `pace`: how many times as fast as the model would. `semitones`: by how much everything is higher, as if a recording
    were played faster, formants too; the pace stays. `noise` is the deviation of normal noise on the logarithms of
    durations, drawn from `seed`: 0 is what the model says by itself.
    """

    speaker: str
    styles: tuple[str, ...] = ()
    pace: float = 1.0
    semitones: float = 0.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 / MAX_PACE <= self.pace <= MAX_PACE:
            raise PsclapError(f"pace {self.pace:g} must lie in [{1 / MAX_PACE:g}, {MAX_PACE:g}]; 1 is the model's own")
        if not abs(self.semitones) <= MAX_SEMITONES:
            raise PsclapError(f"semitones {self.semitones:g} must lie in [-{MAX_SEMITONES:g}, {MAX_SEMITONES:g}]")
        if not 0 <= self.noise <= MAX_NOISE:
            raise PsclapError(f"noise {self.noise:g} must lie in [0, {MAX_NOISE:g}]; 0.1 is what candidates get")
        _check_seed(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Its values by name."""
        return {**asdict(self), "styles": [*self.styles]}

    @property
    def factor(self) -> float:
        """By which frequencies are multiplied."""
        return 2 ** (self.semitones / 12)


class TextToSpeech:
    """A Clip-TTS with its vocoder, loaded once."""

    def __init__(self, model: Path | str, vocoder: str = GRIFFIN_LIM, device: str | None = None):
        """`model` is a folder, a models:/ URI or a name on the Hub; `vocoder` as `load_vocoder` takes it.

        Raises CheckpointError for a folder that holds no whole Clip-TTS, PsclapError where there is none, and for a
        vocoder of other mels than the model's.
        """
        loaded = load(model)
        if not isinstance(loaded, ClipTTSModel):
            raise CheckpointError(f"{model} holds a {type(loaded).__name__}, which cannot speak; give a Clip-TTS")
        self._set(loaded, vocoder, device)

    @classmethod
    def of(cls, model: ClipTTSModel, vocoder: str = GRIFFIN_LIM) -> TextToSpeech:
        """With a model in memory, where it lies."""
        speech = cls.__new__(cls)
        speech._set(model, vocoder, str(model.device))
        return speech

    def _set(self, model: ClipTTSModel, vocoder: str, device: str | None) -> None:
        self.device = device_of(device)
        self.model = model.to(self.device).eval()
        self.vocabulary = Vocabulary.of_config(model.config)
        self.mel = MelConfig.from_dict(model.config.mel)
        self.vocoder = load_vocoder(vocoder, self.mel, self.device)

    @property
    def sample_rate_hz(self) -> int:
        """The rate of what is said."""
        return self.mel.sample_rate_hz

    def manners(
        self,
        count: int,
        seed: int = 0,
        speaker: str | None = None,
        styles: Sequence[str] | None = None,
        without: Collection[str] = (),
    ) -> list[Manner]:
        """Ways to say something: speakers, styles that training clips had together, pace, pitch and timing, by chance.

        The first ones do not depend on `count`. What is given stays; styles `without` are not drawn. Raises
        PsclapError for names that the model does not know, and fewer than one.
        """
        if count < 1:
            raise PsclapError(f"{count} candidates; ask for one at least")
        _check_seed(seed)
        if speaker is not None:
            self.vocabulary.speaker(speaker)
        self.vocabulary.check_styles(styles or ())
        generators = (np.random.default_rng([seed, number]) for number in range(count))
        return [self._manner(rng, speaker, styles, without) for rng in generators]

    def _manner(
        self, rng: np.random.Generator, speaker: str | None, styles: Sequence[str] | None, without: Collection[str]
    ) -> Manner:
        known = self.vocabulary
        style_sets = [tags for tags in known.style_sets if not set(tags) & set(without)] or [()]
        drawn_speaker = known.speakers[int(rng.integers(len(known.speakers)))]
        drawn_styles = style_sets[int(rng.integers(len(style_sets)))]
        pace, semitones = np.exp(_PACE_SPREAD * rng.standard_normal()), _SEMITONES_SPREAD * rng.standard_normal()
        return Manner(
            drawn_speaker if speaker is None else speaker,
            tuple(drawn_styles if styles is None else styles),
            float(np.clip(pace, 0.7, 1.4)),
            float(np.clip(semitones, -3, 3)),
            _NOISE,
            int(rng.integers(2**31)),
        )

    def say(self, text: str, manners: Sequence[Manner], language: str | None = None) -> Iterator[Wave]:
        """Yields the float32 wave of the text in each manner.

        `language` is a name of espeak-ng's; a model of one language needs none. Raises PsclapError for a text, a
        language, speakers and styles that the model cannot say or be, and for a text that is too long.
        """
        if language is None and len(self.vocabulary.languages) > 1:
            raise PsclapError(f"the model speaks {', '.join(self.vocabulary.languages)}; say which the text is in")
        language = self.vocabulary.languages[0] if language is None else language
        if language not in self.vocabulary.languages:
            raise PsclapError(
                f"language {language!r} is none of the model's; it speaks {', '.join(self.vocabulary.languages)}"
            )
        _, numbers = self.vocabulary.say(text, language)
        if len(numbers) > MAX_SYMBOLS:
            raise PsclapError(
                f"a text of {len(numbers)} phonemes is more than {MAX_SYMBOLS}; divide it, and say its parts"
            )
        symbols = torch.from_numpy(numbers)
        for start in range(0, len(manners), _SENTENCES_AT_ONCE):
            yield from self._say(symbols, manners[start : start + _SENTENCES_AT_ONCE])

    def _say(self, symbols_L: torch.Tensor, manners: Sequence[Manner]) -> Iterator[Wave]:
        count = len(manners)
        for manner in manners:
            self.vocabulary.check_styles(manner.styles)
        voice = Voice(
            torch.tensor([self.vocabulary.speaker(manner.speaker) for manner in manners], device=self.device),
            torch.from_numpy(np.stack([self.vocabulary.style(manner.styles) for manner in manners])).to(self.device),
        )
        noise_BL = np.stack([_noise(manner, len(symbols_L)) for manner in manners])
        spoken = self.model.speak(
            symbols_L.expand(count, -1).to(self.device),
            torch.full((count,), len(symbols_L), device=self.device),
            voice,
            pace_B=torch.tensor([manner.pace / manner.factor for manner in manners], device=self.device),
            noise_BL=torch.from_numpy(noise_BL).to(self.device),
        )
        lengths = spoken.durations.sum(1).tolist()
        for manner, mel_FM, length in zip(manners, spoken.mel, lengths, strict=True):
            wave = self.vocoder(mel_FM[:length]).float().cpu().numpy()
            yield audio.resample(wave, round(self.sample_rate_hz * manner.factor), self.sample_rate_hz)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise PsclapError(f"seed {seed} must be 0 or more, and below 2 ** 63")


def _noise(manner: Manner, num_symbols: int) -> np.ndarray:
    return np.random.default_rng(manner.seed).normal(0, manner.noise, num_symbols).astype(np.float32)
