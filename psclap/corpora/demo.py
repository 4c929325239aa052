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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from psclap.corpora.demo_text import SENTENCES
from psclap.corpora.demo_voices import (
    GENDERS,
    PITCHES,
    STYLES,
    TEXTURES,
    Clip,
    Speaker,
    Style,
    draw_style,
    spoken,
    utterance,
    write_clips,
)
from psclap.schema import SPLITS, Split, Utterance
from psclap.strict import at_least, between

_CELLS = tuple(itertools.product(GENDERS, PITCHES, TEXTURES))
_TRAIN_SPEAKERS_PER_TEXTURE = {"silky": 40, "husky": 30, "raspy": 22, "vocal-fry": 4}


@dataclass(frozen=True)
class Line:
    """A sentence to say, and how: a value of each of STYLES."""

    text: str
    style: Mapping[str, str]


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
        clips = [clip for split in SPLITS for clip in self._clips(split)]
        for clip, path in write_clips(clips, folder, processes):
            yield self._utterance(clip, path)

    def say(self, lines: Iterable[Line], processes: int | None = None) -> Iterator[np.ndarray]:
        """Yields the float32 wave (22,050 Hz) of each line, by the test speaker of these speaker-level values."""
        speakers = {speaker.tags: speaker for speaker in self._speakers("test")}
        clips = []
        for number, line in enumerate(lines):
            gender, pitch, texture, *of_utterance = (line.style[name] for name in STYLES)
            clips.append(
                Clip(f"line-{number}", "test", speakers[gender, pitch, texture], Style(*of_utterance), line.text)
            )
        yield from spoken(clips, processes)

    def _utterance(self, clip: Clip, path: str) -> Utterance:
        return utterance(clip, path, "demo", self.captions_per_set, self.seed)

    def _clips(self, split: Split) -> Iterator[Clip]:
        rng = np.random.default_rng([self.seed, 1, SPLITS.index(split)])
        speakers = self._speakers(split)
        sentences = rng.permutation(SENTENCES[split])
        styles_of_speaker: dict[str, set[Style]] = {speaker.name: set() for speaker in speakers}
        clips_per_style = 2 if split == "test" else 1
        for number in range(getattr(self, f"{split}_clips")):
            group, repeat = divmod(number, clips_per_style)
            speaker = speakers[group % len(speakers)]
            if repeat == 0:
                style = draw_style(rng)
                while split != "train" and style in styles_of_speaker[speaker.name]:
                    style = draw_style(rng)
                styles_of_speaker[speaker.name].add(style)
            text = str(sentences[number % len(sentences)])
            yield Clip(f"demo-{split}-{number:05d}", split, speaker, style, text)

    def _speakers(self, split: Split) -> list[Speaker]:
        rng = np.random.default_rng([self.seed, 2, SPLITS.index(split)])
        if split == "train":
            cells = [(GENDERS[number % 2], PITCHES[number % 3]) for number in range(6)]
            textures = [texture for texture, n in _TRAIN_SPEAKERS_PER_TEXTURE.items() for _ in range(n)]
            traits = tuple((*cells[number % len(cells)], texture) for number, texture in enumerate(textures))
        else:
            traits = _CELLS
        speakers = []
        for number in rng.permutation(len(traits)):
            gender, pitch, texture = traits[number]
            name = f"{split}-{number:02d}"
            speakers.append(Speaker(name, gender, pitch, texture, rng.uniform(0.95, 1.05), rng.uniform(0.97, 1.03)))
        return speakers
