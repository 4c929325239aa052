"""LJSpeech 1.1 (public domain): one American narrator, 13,100 sentences, 24 h, 22,050 Hz.

`metadata.csv` has three columns without quoting, KEY|TEXT|NORMALISED TEXT, and the audio lies at `wavs/KEY.wav`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from psclap.corpora.keys import safe_sample_key
from psclap.corpora.layout import ClipShares, captions_of, find_list, read_lines
from psclap.errors import PsclapError
from psclap.schema import Utterance

_COLUMNS = {"raw": 1, "normalised": 2}


@dataclass(frozen=True, kw_only=True)
class LJSpeech(ClipShares):
    """Options: the folder of metadata.csv, which of its texts, the language that espeak-ng knows it by, the shares."""

    root: str
    text: Literal["normalised", "raw"] = "normalised"
    language: str = "en-us"

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Yields an utterance per line; the audio is read when it is sharded. Raises PsclapError for a broken line."""
        metadata = find_list(self.root, "metadata.csv", "ljspeech")
        for where, line in read_lines(metadata, "cp1252"):
            cells = line.split("|")
            if len(cells) <= _COLUMNS[self.text] or not cells[_COLUMNS[self.text]].strip():
                raise PsclapError(f"{where}: {line!r} has no {self.text} text; it must be KEY|TEXT|NORMALISED TEXT")
            yield self._utterance(metadata.parent, cells[0].strip(), cells[_COLUMNS[self.text]].strip())

    def _utterance(self, root: Path, name: str, text: str) -> Utterance:
        key = safe_sample_key(name)
        return Utterance(
            key=key,
            audio=str(root / "wavs" / f"{name}.wav"),
            speaker="ljspeech",
            source="ljspeech",
            split=self.split_of(key),
            captions=captions_of("female", None),
            intrinsic_tags=("female",),
            transcript=text,
            language=self.language,
        )
