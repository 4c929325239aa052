"""The demo corpus of text to speech: short sentences by a few espeak-ng voices, whose styles were set.

The same speakers are in every split, as a model can only speak with voices that it knows; no sentence is in two
splits. The speakers share out gender, pitch level and texture evenly; rate, volume, phonation and intonation are
drawn for each clip, independently of the speaker and of each other. Of every clip espeak-ng can say when it spoke
which phoneme (`timed`), which is what an aligner is measured against.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from psclap.corpora.demo_text import SHORT_SENTENCES
from psclap.corpora.demo_voices import (
    GENDERS,
    PITCHES,
    TEXTURES,
    Clip,
    Speaker,
    draw_style,
    spoken_timed,
    utterance,
    write_clips,
)
from psclap.corpora.espeak import TimedPhoneme
from psclap.errors import PsclapError
from psclap.schema import SPLITS, Split, Utterance
from psclap.strict import at_least, between

MAX_SPEAKERS = len(GENDERS) * len(PITCHES) * len(TEXTURES)
_CAPTIONS_PER_SET = 1


@dataclass(frozen=True)
class DemoTts:
    """Options of the corpus: speakers (1 is a single narrator), clips per split, the seed."""

    speakers: int = field(default=8, metadata=between(1, MAX_SPEAKERS))
    train_clips: int = field(default=800, metadata=at_least(1))
    val_clips: int = field(default=48, metadata=at_least(1))
    test_clips: int = field(default=48, metadata=at_least(1))
    seed: int = field(default=0, metadata=at_least(0))

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Synthesises every clip to `folder/audio/{key}.flac` (22,050 Hz) and yields its Utterance."""
        for clip, path in write_clips(self._clips(), folder, processes):
            yield utterance(clip, path, "demo_tts", _CAPTIONS_PER_SET, self.seed)

    def timed(
        self, keys: Iterable[str], processes: int | None = None
    ) -> Iterator[tuple[str, np.ndarray, tuple[TimedPhoneme, ...]]]:
        """Yields for each key its clip, said again: the float32 wave (22,050 Hz), and the times of its phonemes.

        Raises PsclapError for a key that is none of this corpus, of these options.
        """
        known = {clip.key: clip for clip in self._clips()}
        keys = list(keys)
        strange = [key for key in keys if key not in known]
        if strange:
            raise PsclapError(
                f"demo_tts: there is no clip {strange[0]!r} in the corpus of these options; its keys are such as "
                f"{next(iter(known))!r}; give the options that it was prepared with"
            )
        said = spoken_timed([known[key] for key in keys], processes)
        for key, (wave, phonemes) in zip(keys, said, strict=True):
            yield key, wave, phonemes

    def speaker_tags(self) -> dict[str, tuple[str, ...]]:
        """The intrinsic tags of each speaker."""
        return {speaker.name: speaker.tags for speaker in self._speakers()}

    def _clips(self) -> list[Clip]:
        return [clip for split in SPLITS for clip in self._of_split(split)]

    def _of_split(self, split: Split) -> Iterator[Clip]:
        """Every speaker in turn; each round of the sentences in another order, so that all are said by many."""
        rng = np.random.default_rng([self.seed, 1, SPLITS.index(split)])
        speakers, sentences = self._speakers(), SHORT_SENTENCES[split]
        order: list[str] = []
        for number in range(getattr(self, f"{split}_clips")):
            order = order or list(rng.permutation(sentences))
            speaker = speakers[number % len(speakers)]
            yield Clip(f"demo-tts-{split}-{number:05d}", split, speaker, draw_style(rng), str(order.pop()))

    def _speakers(self) -> list[Speaker]:
        """The first of all combinations, in an order in which any number of them has as many of each value."""
        rng = np.random.default_rng([self.seed, 2])
        speakers = []
        for number in range(self.speakers):
            gender, texture = GENDERS[number % 2], TEXTURES[number // 2 % 4]
            pitch = PITCHES[(number + 1) % 3]
            name = f"voice-{number:02d}"
            speakers.append(Speaker(name, gender, pitch, texture, rng.uniform(0.95, 1.05), rng.uniform(0.97, 1.03)))
        return speakers
