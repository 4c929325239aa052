"""The demo corpus: espeak-ng voices whose styles are known, because they were set.

Speaker-level attributes (gender, pitch level, texture) are laid out evenly over the speakers; utterance-level
ones (rate, volume, phonation, intonation) are drawn independently of them and of each other. Train, val and
test share no speaker and no sentence. In train the textures are skewed (vocal-fry under 5 % of the clips, the
rare tag that class-balanced sampling is for) and captions leave a quarter of the attributes out; val and test
hold every combination of speaker-level attributes equally often, each combination with one complete caption
per caption set. Test clips come in pairs of one combination, in different sentences.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from psclap import audio
from psclap.corpora import espeak
from psclap.corpora.demo_text import SENTENCES, caption, fixed_caption
from psclap.schema import CAPTION_SETS, SPLITS, Caption, CaptionSet, Split, Utterance
from psclap.strict import at_least, between

_GENDERS = ("male", "female")
_PITCHES = ("low-pitched", "medium-pitched", "high-pitched")
_TEXTURES = ("silky", "husky", "raspy", "vocal-fry")
_CELLS = tuple(itertools.product(_GENDERS, _PITCHES, _TEXTURES))
_TRAIN_SPEAKERS_PER_TEXTURE = {"silky": 40, "husky": 30, "raspy": 22, "vocal-fry": 4}
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


@dataclass(frozen=True)
class _Speaker:
    name: str
    gender: str
    pitch: str
    texture: str
    pitch_factor: float
    formant_factor: float

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.gender, self.pitch, self.texture)

    def voice(self, whispered: bool) -> espeak.Voice:
        base_hz = _PITCH_HZ[self.gender][_PITCHES.index(self.pitch)] * self.pitch_factor
        formant = 100 * _FORMANT_SCALE[self.gender] * self.formant_factor
        lines = [f"gender {self.gender}", f"pitch {base_hz:.0f} {1.6 * base_hz:.0f}"]
        lines += [f"formant {number} {formant:.0f} 100 100" for number in (1, 2, 3)]
        lines += [*_TEXTURE_LINES[self.texture], *(_WHISPER_LINES if whispered else ())]
        return espeak.Voice(self.voice_name(whispered), tuple(lines))

    def voice_name(self, whispered: bool) -> str:
        return f"{self.name}-{'whispered' if whispered else 'voiced'}"


@dataclass(frozen=True)
class _Style:
    """The utterance-level attributes of one clip."""

    rate: str
    volume: str
    phonation: str
    intonation: str

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.rate, self.volume, self.phonation, self.intonation)


def _draw_style(rng: np.random.Generator) -> _Style:
    return _Style(
        rate=str(rng.choice(list(_RATE_WPM))),
        volume=str(rng.choice(list(_VOLUME_PERCENT))),
        phonation="whispered" if rng.random() < _WHISPERED_SHARE else "enunciated",
        intonation=str(rng.choice(list(_PITCH_RANGE_PERCENT))),
    )


@dataclass(frozen=True)
class _Clip:
    key: str
    split: Split
    speaker: _Speaker
    style: _Style
    text: str

    def tags(self, caption_set: CaptionSet) -> tuple[str, ...]:
        return {
            "intrinsic": self.speaker.tags,
            "situational": self.style.tags,
            "combined": self.speaker.tags + self.style.tags,
        }[caption_set]

    @property
    def request(self) -> espeak.Request:
        return espeak.Request(
            text=self.text,
            voice=self.speaker.voice_name(self.style.phonation == "whispered"),
            rate_wpm=_RATE_WPM[self.style.rate],
            volume_percent=_VOLUME_PERCENT[self.style.volume],
            pitch_range_percent=_PITCH_RANGE_PERCENT[self.style.intonation],
        )


@dataclass(frozen=True)
class Demo:
    """Options of the demo corpus: clips per split, captions per clip and caption set in train, the seed."""

    train_clips: int = field(default=2400, metadata=at_least(24))
    val_clips: int = field(default=120, metadata=between(24, 480))
    test_clips: int = field(default=312, metadata=between(24, 960))
    captions_per_set: int = field(default=2, metadata=at_least(1))
    seed: int = field(default=0, metadata=at_least(0))

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Synthesises every clip to `folder/audio/{key}.flac` (22,050 Hz) and yields its Utterance."""
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        clips = [clip for split in SPLITS for clip in self._clips(split)]
        speakers = {clip.speaker.name: clip.speaker for clip in clips}.values()
        voices = [speaker.voice(whispered) for speaker in speakers for whispered in (False, True)]
        waves = espeak.synthesise(voices, [clip.request for clip in clips], processes)
        for clip, wave in zip(clips, waves, strict=True):
            path = f"audio/{clip.key}.flac"
            audio.write_flac(folder / path, wave.astype(np.float32) / 32768, espeak.SAMPLE_RATE_HZ)
            yield self._utterance(clip, path)

    def _utterance(self, clip: _Clip, path: str) -> Utterance:
        return Utterance(
            key=clip.key,
            audio=path,
            speaker=clip.speaker.name,
            source="demo",
            split=clip.split,
            captions=tuple(self._captions(clip)),
            intrinsic_tags=clip.speaker.tags,
            situational_tags=clip.style.tags,
            transcript=clip.text,
        )

    def _captions(self, clip: _Clip) -> Iterator[Caption]:
        rng = np.random.default_rng([self.seed, 3, *clip.key.encode()])
        for caption_set in CAPTION_SETS:
            tags = clip.tags(caption_set)
            if clip.split == "train":
                for _ in range(self.captions_per_set):
                    yield Caption(caption_set, caption(tags, rng, _DROPOUT))
            else:
                yield Caption(caption_set, fixed_caption(caption_set, tags, self.seed))

    def _clips(self, split: Split) -> Iterator[_Clip]:
        rng = np.random.default_rng([self.seed, 1, SPLITS.index(split)])
        speakers = self._speakers(split)
        sentences = rng.permutation(SENTENCES[split])
        styles_of_speaker: dict[str, set[_Style]] = {speaker.name: set() for speaker in speakers}
        clips_per_style = 2 if split == "test" else 1
        for number in range(getattr(self, f"{split}_clips")):
            group, repeat = divmod(number, clips_per_style)
            speaker = speakers[group % len(speakers)]
            if repeat == 0:
                style = _draw_style(rng)
                while split != "train" and style in styles_of_speaker[speaker.name]:
                    style = _draw_style(rng)
                styles_of_speaker[speaker.name].add(style)
            text = str(sentences[number % len(sentences)])
            yield _Clip(f"demo-{split}-{number:05d}", split, speaker, style, text)

    def _speakers(self, split: Split) -> list[_Speaker]:
        rng = np.random.default_rng([self.seed, 2, SPLITS.index(split)])
        if split == "train":
            cells = [(_GENDERS[number % 2], _PITCHES[number % 3]) for number in range(6)]
            textures = [texture for texture, n in _TRAIN_SPEAKERS_PER_TEXTURE.items() for _ in range(n)]
            traits = tuple((*cells[number % len(cells)], texture) for number, texture in enumerate(textures))
        else:
            traits = _CELLS
        speakers = []
        for number in rng.permutation(len(traits)):
            gender, pitch, texture = traits[number]
            name = f"{split}-{number:02d}"
            speakers.append(_Speaker(name, gender, pitch, texture, rng.uniform(0.95, 1.05), rng.uniform(0.97, 1.03)))
        return speakers
