"""ParaSpeechCaps (arXiv 2503.04713): style captions for VoxCeleb, Expresso, EARS and Emilia, as parquet files.

One folder of parquet files per caption set, each file's name beginning with its split (train, val or dev,
test). The audio is obtained separately and lies at `{audio_root}/{source}/{relative_audio_path}`. A clip that
stands in several folders becomes one utterance with the captions and tags of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from psclap.errors import PsclapError
from psclap.schema import Caption, CaptionSet, Split, Utterance
from psclap.tags import BASIC_INTRINSIC, BASIC_SITUATIONAL

_COLUMNS = (
    *("source", "relative_audio_path", "text_description", "transcription"),
    *("intrinsic_tags", "situational_tags", "basic_tags", "speakerid"),
)
_SPLIT_PREFIXES: dict[str, Split] = {"train": "train", "val": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class ParaSpeechCaps:
    """Where the parquet folders of the caption sets and the audio lie; a set that is null is left out."""

    audio_root: str
    intrinsic: str | None = None
    situational: str | None = None
    combined: str | None = None

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Yields one utterance per clip and split; the audio itself is read when it is sharded."""
        merged: dict[str, Utterance] = {}
        for caption_set in self._sets():
            for utterance in self._of_set(caption_set):
                known = merged.get(utterance.key)
                if known and known.audio != utterance.audio:
                    raise PsclapError(
                        f"paraspeechcaps: {known.audio} and {utterance.audio} would share the key {utterance.key!r}; "
                        "rename one of the files"
                    )
                merged[utterance.key] = _merge(known, utterance) if known else utterance
        yield from merged.values()

    def _sets(self) -> list[CaptionSet]:
        names: list[CaptionSet] = [f.name for f in fields(self) if f.name != "audio_root"]  # type: ignore[misc]
        chosen = [name for name in names if getattr(self, name) is not None]
        if not chosen:
            raise PsclapError(f"paraspeechcaps: no folder of parquet files is given; set one of {names}")
        return chosen

    def _of_set(self, caption_set: CaptionSet) -> Iterator[Utterance]:
        folder = Path(getattr(self, caption_set))
        files = sorted(folder.glob("*.parquet"))
        if not files:
            raise PsclapError(
                f"paraspeechcaps: no *.parquet in {folder} (corpus.options.{caption_set}); "
                "download the data set there, or set the option to where it lies"
            )
        for file in files:
            split = next((s for prefix, s in _SPLIT_PREFIXES.items() if file.name.startswith(prefix)), None)
            if split is None:
                raise PsclapError(f"paraspeechcaps: {file} must begin with one of {list(_SPLIT_PREFIXES)}")
            yield from self._of_file(file, split, caption_set)

    def _of_file(self, file: Path, split: Split, caption_set: CaptionSet) -> Iterator[Utterance]:
        try:
            parquet = pq.ParquetFile(file)
        except ValueError as error:
            raise PsclapError(f"paraspeechcaps: {file} is no readable parquet file: {error}") from error
        missing = [name for name in _COLUMNS if name not in parquet.schema_arrow.names]
        if missing:
            raise PsclapError(f"paraspeechcaps: {file} lacks the columns {missing}; its set is {caption_set}")
        for batch in parquet.iter_batches(columns=list(_COLUMNS)):
            for row in batch.to_pylist():
                yield self._utterance(row, split, caption_set)

    def _utterance(self, row: dict[str, Any], split: Split, caption_set: CaptionSet) -> Utterance:
        path = f"{row['source']}/{row['relative_audio_path']}"
        return Utterance(
            key=f"{split}-{path}".replace("/", "--").replace(".", "_"),
            audio=str(Path(self.audio_root).absolute() / path),
            speaker=f"{row['source']}-{row['speakerid']}",
            source=row["source"],
            split=split,
            captions=tuple(Caption(caption_set, text) for text in row["text_description"] or ()),
            intrinsic_tags=_with_basic(row["intrinsic_tags"], row["basic_tags"], BASIC_INTRINSIC),
            situational_tags=_with_basic(row["situational_tags"], row["basic_tags"], BASIC_SITUATIONAL),
            transcript=row["transcription"] or "",
        )


def _with_basic(rich: list[str] | None, basic: list[str] | None, level: tuple[str, ...]) -> tuple[str, ...]:
    """The rich tags and those basic ones that are of this level; other basic words, such as noise, are no tags."""
    return tuple(dict.fromkeys([*(rich or ()), *(tag for tag in basic or () if tag in level)]))


def _merge(one: Utterance, other: Utterance) -> Utterance:
    return replace(
        one,
        captions=one.captions + other.captions,
        intrinsic_tags=tuple(dict.fromkeys(one.intrinsic_tags + other.intrinsic_tags)),
        situational_tags=tuple(dict.fromkeys(one.situational_tags + other.situational_tags)),
    )
