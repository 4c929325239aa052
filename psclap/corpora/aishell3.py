"""AISHELL-3 (Apache-2.0): 218 Mandarin speakers, 88,035 sentences, 85 h, 44.1 kHz.

`train/` and `test/`, the official splits, each have `content.txt`, with `FILE.wav`, a tab and characters and pinyin
by turns, and the audio at `wav/SPEAKER/FILE.wav`. `spk-info.txt` says each speaker's age, gender and accent. Val is
a share of train's clips.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from psclap.corpora.keys import safe_sample_key
from psclap.corpora.layout import Gender, captions_of, find_list, read_lines, tags_of
from psclap.corpora.record import split_of_speaker
from psclap.errors import PsclapError
from psclap.schema import Split, Utterance
from psclap.strict import between, not_empty

_PINYIN = re.compile(r"[a-zA-ZüÜ:]+[0-6]")
_GENDERS: dict[str, Gender] = {"male": "male", "female": "female"}
_LETTERS_OF_SPEAKER = 7  # SSB0005 of SSB00050001.wav


@dataclass(frozen=True, kw_only=True)
class Aishell3:
    """Options: the folder of train, test and spk-info.txt, which of the two, and the share of train that is val."""

    root: str
    subsets: tuple[Literal["train", "test"], ...] = field(default=("train", "test"), metadata=not_empty())
    val_share: float = field(default=0.02, metadata=between(0, 1))

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Yields an utterance per line; the audio is read when it is sharded. Raises PsclapError for a broken line."""
        genders = _genders(find_list(self.root, "spk-info.txt", "aishell3"))
        for subset in self.subsets:
            content = find_list(self.root, f"{subset}/content.txt", "aishell3")
            for where, line in read_lines(content):
                file, *rest = line.split(maxsplit=1)
                text = "".join(word for word in " ".join(rest).split() if not _PINYIN.fullmatch(word))
                if not text or len(file) <= _LETTERS_OF_SPEAKER:
                    raise PsclapError(f"{where}: {line!r} must be FILE.wav and its characters, each with its pinyin")
                yield self._utterance(content.parent, file, text, genders)

    def _utterance(self, subset: Path, file: str, text: str, genders: Mapping[str, Gender]) -> Utterance:
        name = Path(file).stem
        speaker = name[:_LETTERS_OF_SPEAKER]
        gender, key = genders.get(speaker), safe_sample_key(f"{subset.name}-{name}")
        return Utterance(
            key=key,
            audio=str(subset / "wav" / speaker / f"{name}.wav"),
            speaker=speaker,
            source="aishell3",
            split=self._split(subset.name, key),
            captions=captions_of(gender, None),
            intrinsic_tags=tags_of(gender),
            transcript=text,
            language="cmn",
        )

    def _split(self, subset: str, key: str) -> Split:
        return "test" if subset == "test" else split_of_speaker(key, self.val_share, 0.0)


def _genders(path: Path) -> dict[str, Gender]:
    """Of each speaker whose gender is said; lines are a name, an age group, a gender and an accent."""
    cells = (line.split() for _, line in read_lines(path) if not line.startswith("#"))
    return {row[0]: _GENDERS[row[2].lower()] for row in cells if len(row) > 2 and row[2].lower() in _GENDERS}
