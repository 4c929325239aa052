"""ParaSpeechCaps (arXiv 2503.04713): style captions for VoxCeleb, Expresso, EARS and Emilia, as parquet files.

Parquet files per caption set, from disk or from the Hugging Face Hub, each file's name beginning with its split.
The audio is obtained separately and lies at `{audio_root}/{source}/{relative_audio_path}`. A clip that stands in
several files becomes one utterance with the captions and tags of all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from psclap.corpora.keys import safe_key
from psclap.corpora.locations import expand
from psclap.corpora.record import SPLIT_NAMES
from psclap.errors import PsclapError
from psclap.schema import CAPTION_SETS, Caption, CaptionSet, Split, Utterance
from psclap.storage import is_remote, join
from psclap.tags import BASIC_INTRINSIC, BASIC_SITUATIONAL

_PATH_COLUMNS = ["source", "relative_audio_path"]
_COLUMNS = (
    *(*_PATH_COLUMNS, "text_description", "transcription"),
    *("intrinsic_tags", "situational_tags", "basic_tags", "speakerid"),
)
_TEST_COLUMN = "classification_tag"
_TRAIN_SPLITS = ("train_base", "train_scaled")
_HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class _File:
    path: Path
    split: Split
    set: CaptionSet


@dataclass(frozen=True)
class ParaSpeechCaps:
    """Where the parquet files of the caption sets and the audio lie; a set that is null is left out.

    A set is a file, a folder, a name with wildcards, or a data set on the Hub (`ajd12342/paraspeechcaps`, or
    `ajd12342/paraspeechcaps@REVISION`). `train_split` chooses between the published train_base and train_scaled;
    null takes every file that begins with train.
    """

    audio_root: str
    intrinsic: str | None = None
    situational: str | None = None
    combined: str | None = None
    train_split: Literal["train_base", "train_scaled"] | None = None

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Yields one utterance per clip and split; the audio itself is read when it is sharded.

        Only the clips that stand in several files are held in memory, until all their captions are known.
        """
        files = [file for caption_set in self._sets() for file in self._files(caption_set)]
        for file in files:
            _check_columns(file)
        repeated = _repeated(files)
        merged: dict[str, Utterance] = {}
        for file in files:
            for utterance in self._of_file(file):
                if utterance.key not in repeated:
                    yield utterance
                elif utterance.key in merged:
                    merged[utterance.key] = _merge(merged[utterance.key], utterance)
                else:
                    merged[utterance.key] = utterance
        yield from merged.values()

    def _sets(self) -> list[CaptionSet]:
        chosen = [name for name in CAPTION_SETS if getattr(self, name) is not None]
        if not chosen:
            raise PsclapError(f"paraspeechcaps: no parquet files are given; set one of {list(CAPTION_SETS)}")
        return chosen

    def _files(self, caption_set: CaptionSet) -> list[_File]:
        location = getattr(self, caption_set)
        paths = _paths(location, f"corpus.options.{caption_set}")
        if self.train_split is not None:
            others = tuple(name for name in _TRAIN_SPLITS if name != self.train_split)
            paths = [path for path in paths if not path.name.startswith(others)]
            if not any(path.name.startswith("train") for path in paths):
                raise PsclapError(
                    f"paraspeechcaps: {location} (corpus.options.{caption_set}) has no file "
                    f"{self.train_split}*.parquet; set train_split to null to take every training file"
                )
        return [_File(path, _split(path), caption_set) for path in paths]

    def _of_file(self, file: _File) -> Iterator[Utterance]:
        parquet = pq.ParquetFile(file.path)
        columns = [name for name in (*_COLUMNS, _TEST_COLUMN) if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(columns=columns, batch_size=10_000):
            for row in batch.to_pylist():
                yield self._utterance(row, file)

    def _utterance(self, row: dict[str, Any], file: _File) -> Utterance:
        path = f"{row['source']}/{row['relative_audio_path']}"
        root = self.audio_root if is_remote(self.audio_root) else str(Path(self.audio_root).absolute())
        return Utterance(
            key=safe_key(f"{file.split}-{path}"),
            audio=join(root, path),
            speaker=f"{row['source']}-{row['speakerid']}",
            source=row["source"],
            split=file.split,
            captions=tuple(Caption(file.set, text) for text in row["text_description"] or ()),
            intrinsic_tags=_with_basic(row["intrinsic_tags"], row["basic_tags"], BASIC_INTRINSIC),
            situational_tags=_with_basic(row["situational_tags"], row["basic_tags"], BASIC_SITUATIONAL),
            classification_tags=(row[_TEST_COLUMN],) if row.get(_TEST_COLUMN) else (),
            transcript=row["transcription"] or "",
        )


def _paths(location: str, option: str) -> list[Path]:
    """The parquet files at a location. Raises PsclapError where there are none, here or on the Hub."""
    if Path(location).is_dir():
        paths = sorted(Path(location).rglob("*.parquet"))
    elif hub_id := _HUB_ID.fullmatch(location) if not Path(location).exists() else None:
        paths = sorted(_download(hub_id["repository"], hub_id["revision"], option).rglob("*.parquet"))
    else:
        paths = [Path(path) for path in expand(location, option) if path.endswith(".parquet") and Path(path).is_file()]
    if not paths:
        raise PsclapError(
            f"paraspeechcaps: no *.parquet in {location} ({option}); download the data set there, "
            "or set the option to where it lies, or to its name on the Hugging Face Hub"
        )
    return paths


def _download(repository: str, revision: str | None, option: str) -> Path:
    """The folder of a data set's parquet files in the Hub's cache, downloaded where they are not there yet."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns="*.parquet")
    except (OSError, ValueError) as error:
        raise PsclapError(
            f"paraspeechcaps: {repository} ({option}) is no file or folder here, and no data set that the Hugging Face "
            f"Hub or its cache gives: {error}"
        ) from error
    return Path(folder)


def _split(path: Path) -> Split:
    split = next((split for prefix, split in SPLIT_NAMES.items() if path.name.startswith(prefix)), None)
    if split is None:
        raise PsclapError(f"paraspeechcaps: {path} must begin with one of {list(SPLIT_NAMES)}")
    return split


def _check_columns(file: _File) -> None:
    try:
        names = pq.ParquetFile(file.path).schema_arrow.names
    except ValueError as error:
        raise PsclapError(f"paraspeechcaps: {file.path} is no readable parquet file: {error}") from error
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise PsclapError(f"paraspeechcaps: {file.path} lacks the columns {missing}; its set is {file.set}")


def _repeated(files: list[_File]) -> frozenset[str]:
    """The keys of the clips that stand in these files more than once; Arrow counts them, without Python objects."""
    paths = []
    for file in files:
        columns = pq.read_table(file.path, columns=_PATH_COLUMNS)
        source, path = (columns[name].cast(pa.large_string()) for name in _PATH_COLUMNS)
        split, hyphen, slash = (pa.scalar(text, pa.large_string()) for text in (file.split, "-", "/"))
        of_split = pc.binary_join_element_wise(split, source, hyphen)
        paths += pc.binary_join_element_wise(of_split, path, slash).chunks
    counts = pc.value_counts(pa.chunked_array(paths, pa.large_string()))
    return frozenset(map(safe_key, counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()))


def _with_basic(rich: list[str] | None, basic: list[str] | None, level: tuple[str, ...]) -> tuple[str, ...]:
    """The rich tags and those basic ones that are of this level; other basic words, such as noise, are no tags."""
    return tuple(dict.fromkeys([*(rich or ()), *(tag for tag in basic or () if tag in level)]))


def _merge(one: Utterance, other: Utterance) -> Utterance:
    def both(name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(getattr(one, name) + getattr(other, name)))

    return replace(
        one,
        captions=one.captions + other.captions,
        intrinsic_tags=both("intrinsic_tags"),
        situational_tags=both("situational_tags"),
        classification_tags=both("classification_tags"),
    )
