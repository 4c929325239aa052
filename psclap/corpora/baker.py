"""Baker, or BZNSYP (DataBaker, for non-commercial use): one Mandarin narrator, 10,000 sentences, 12 h, 48 kHz.

The audio lies at `Wave/000001.wav`. `ProsodyLabeling/000001-010000.txt` has two lines per clip: its number and its
text with marks of prosody (#1 to #4), and, indented, its pinyin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psclap.corpora.keys import safe_sample_key
from psclap.corpora.layout import ClipShares, captions_of, find_list, read_lines
from psclap.errors import PsclapError
from psclap.schema import Utterance

_PROSODY = re.compile(r"#\d")


@dataclass(frozen=True, kw_only=True)
class Baker(ClipShares):
    """Options: the folder of Wave and ProsodyLabeling, the shares."""

    root: str

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Yields an utterance per clip; the audio is read when it is sharded. Raises PsclapError for a broken line."""
        labelling = find_list(self.root, "ProsodyLabeling/000001-010000.txt", "baker")
        for where, line in read_lines(labelling):
            if line[0].isspace():  # the pinyin: espeak-ng finds the tones itself
                continue
            name, *text = line.split(maxsplit=1)
            if not text or not name.isdigit():
                raise PsclapError(f"{where}: {line!r} must be a clip's number and its text")
            yield self._utterance(labelling.parents[1], name, _PROSODY.sub("", text[0]))

    def _utterance(self, root: Path, name: str, text: str) -> Utterance:
        key = safe_sample_key(f"baker-{name}")
        return Utterance(
            key=key,
            audio=str(root / "Wave" / f"{name}.wav"),
            speaker="baker",
            source="baker",
            split=self.split_of(key),
            captions=captions_of("female", None),
            intrinsic_tags=("female",),
            transcript=text,
            language="cmn",
        )
