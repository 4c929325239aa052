"""The voices of the demo corpora: espeak-ng's, of gender, pitch level and texture, speaking in a style that is set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psclap import audio
from psclap.corpora import espeak
from psclap.corpora.demo_text import caption, fixed_caption
from psclap.schema import CAPTION_SETS, Caption, CaptionSet, Split, Utterance

GENDERS = ("male", "female")
PITCHES = ("low-pitched", "medium-pitched", "high-pitched")
TEXTURES = ("silky", "husky", "raspy", "vocal-fry")
_WHISPERED_SHARE = 0.25
_DROPOUT = 0.25

_PITCH_HZ = {"male": (70, 112, 172), "female": (150, 225, 330)}
_FORMANT_SCALE = {"male": 1.0, "female": 1.14}
_TEXTURE_LINES: dict[str, tuple[str, ...]] = {
    "silky": ("roughness 0", "flutter 2", "formant 4 100 60 100", "formant 5 100 50 100"),
    "husky": ("roughness 1", "flutter 4", "breath 20 30 35 40 35 25 15 10", "voicing 70"),
    "raspy": ("roughness 7", "flutter 8", "breath 0 6 10 14 14 10 6 4", "tone 600 120 1200 200 3000 255"),
    "vocal-fry": ("roughness 7", "flutter 60", "formant 0 100 30 100", "tone 600 255 1200 90 2500 30"),
}
# A little voicing is left in a whisper, so that the speaker's pitch level stays audible.
_WHISPER_LINES = (
    *("voicing 25", "formant 0 100 0 100"),
    *("breath 75 75 50 40 15 10", "breathw 150 150 200 200 400 400"),
)
_RATE_WPM = {"slow": 115, "measured": 170, "fast": 260}
_VOLUME_PERCENT = {"loud": 100, "soft": 25}
_PITCH_RANGE_PERCENT = {"animated": 95, "passive": 8}

STYLES: dict[str, tuple[str, ...]] = {
    "gender": GENDERS,
    "pitch-level": PITCHES,
    "texture": TEXTURES,
    "rate": tuple(_RATE_WPM),
    "volume": tuple(_VOLUME_PERCENT),
    "phonation": ("whispered", "enunciated"),
    "intonation": tuple(_PITCH_RANGE_PERCENT),
}
"""The attributes that every clip has, the speaker's first, with their values."""


@dataclass(frozen=True)
class Speaker:
    """A voice: its attributes, and by how much its pitch and its formants differ from those of others like it."""

    name: str
    gender: str
    pitch: str
    texture: str
    pitch_factor: float
    formant_factor: float

    @property
    def tags(self) -> tuple[str, ...]:
        """The intrinsic tags."""
        return (self.gender, self.pitch, self.texture)

    def voice(self, whispered: bool) -> espeak.Voice:
        """The espeak-ng variant that speaks, or whispers, as this speaker."""
        base_hz = _PITCH_HZ[self.gender][PITCHES.index(self.pitch)] * self.pitch_factor
        formant = 100 * _FORMANT_SCALE[self.gender] * self.formant_factor
        lines = [f"gender {self.gender}", f"pitch {base_hz:.0f} {1.6 * base_hz:.0f}"]
        lines += [f"formant {number} {formant:.0f} 100 100" for number in (1, 2, 3)]
        lines += [*_TEXTURE_LINES[self.texture], *(_WHISPER_LINES if whispered else ())]
        return espeak.Voice(self.voice_name(whispered), tuple(lines))

    def voice_name(self, whispered: bool) -> str:
        """The name of that variant."""
        return f"{self.name}-{'whispered' if whispered else 'voiced'}"


@dataclass(frozen=True)
class Style:
    """The utterance-level attributes of one clip."""

    rate: str
    volume: str
    phonation: str
    intonation: str

    @property
    def tags(self) -> tuple[str, ...]:
        """The situational tags."""
        return (self.rate, self.volume, self.phonation, self.intonation)


def draw_style(rng: np.random.Generator) -> Style:
    """Each attribute by itself; a quarter of the clips are whispered."""
    return Style(
        rate=str(rng.choice(list(_RATE_WPM))),
        volume=str(rng.choice(list(_VOLUME_PERCENT))),
        phonation="whispered" if rng.random() < _WHISPERED_SHARE else "enunciated",
        intonation=str(rng.choice(list(_PITCH_RANGE_PERCENT))),
    )


@dataclass(frozen=True)
class Clip:
    """Who says what, and how."""

    key: str
    split: Split
    speaker: Speaker
    style: Style
    text: str

    def tags(self, caption_set: CaptionSet) -> tuple[str, ...]:
        """What captions of this set talk about."""
        return {
            "intrinsic": self.speaker.tags,
            "situational": self.style.tags,
            "combined": self.speaker.tags + self.style.tags,
        }[caption_set]

    @property
    def request(self) -> espeak.Request:
        """The clip as espeak-ng is asked for it."""
        return espeak.Request(
            text=self.text,
            voice=self.speaker.voice_name(self.style.phonation == "whispered"),
            rate_wpm=_RATE_WPM[self.style.rate],
            volume_percent=_VOLUME_PERCENT[self.style.volume],
            pitch_range_percent=_PITCH_RANGE_PERCENT[self.style.intonation],
        )


def spoken(clips: Sequence[Clip], processes: int | None) -> Iterator[np.ndarray]:
    """Yields the float32 wave (22,050 Hz) of each clip, in order."""
    for wave in espeak.synthesise(_voices(clips), [clip.request for clip in clips], processes):
        yield _as_float(wave)


def spoken_timed(
    clips: Sequence[Clip], processes: int | None
) -> Iterator[tuple[np.ndarray, tuple[espeak.TimedPhoneme, ...]]]:
    """Yields the same waves, each with espeak-ng's own times of its phonemes."""
    for wave, phonemes in espeak.synthesise_timed(_voices(clips), [clip.request for clip in clips], processes):
        yield _as_float(wave), phonemes


def write_clips(clips: Sequence[Clip], folder: Path, processes: int | None) -> Iterator[tuple[Clip, str]]:
    """Synthesises the clips to `folder/audio/{key}.flac` (22,050 Hz); yields each with its path below the folder."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for clip, wave in zip(clips, spoken(clips, processes), strict=True):
        path = f"audio/{clip.key}.flac"
        audio.write_flac(folder / path, wave, espeak.SAMPLE_RATE_HZ)
        yield clip, path


def utterance(clip: Clip, path: str, source: str, captions_per_set: int, seed: int) -> Utterance:
    """What is known of a clip: its tags, its text, and captions of every caption set."""
    return Utterance(
        key=clip.key,
        audio=path,
        speaker=clip.speaker.name,
        source=source,
        split=clip.split,
        captions=tuple(_captions(clip, captions_per_set, seed)),
        intrinsic_tags=clip.speaker.tags,
        situational_tags=clip.style.tags,
        transcript=clip.text,
    )


def _captions(clip: Clip, captions_per_set: int, seed: int) -> Iterator[Caption]:
    """In train several wordings, which leave attributes out; elsewhere the one complete wording of the tags."""
    rng = np.random.default_rng([seed, 3, *clip.key.encode()])
    for caption_set in CAPTION_SETS:
        tags = clip.tags(caption_set)
        if clip.split == "train":
            for _ in range(captions_per_set):
                yield Caption(caption_set, caption(tags, rng, _DROPOUT))
        else:
            yield Caption(caption_set, fixed_caption(caption_set, tags, seed))


def _voices(clips: Sequence[Clip]) -> list[espeak.Voice]:
    speakers = {clip.speaker.name: clip.speaker for clip in clips}.values()
    return [speaker.voice(whispered) for speaker in speakers for whispered in (False, True)]


def _as_float(wave: np.ndarray) -> np.ndarray:
    return wave.astype(np.float32) / 32768
