"""The index of a data set of shards: which clips there are, and where each one's bytes lie.

Opening reads the summary and the footer of the Parquet file. Columns are read when they are asked for; texts stay
in the file, as training reads them beside the sound.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psclap import audio, storage
from psclap.errors import AudioError, PsclapError
from psclap.schema import INDEX_SCHEMA, CaptionSet, Split
from psclap.shards import INDEX_NAME, REBUILD, SUMMARY_NAME, check_shard_name
from psclap.shards.cache import FileCache, RemoteFile, cache_folder
from psclap.shards.store import Place, ShardStore

_DEFAULT_CACHE_BYTES = 10 * 10**9
# These columns hold few words many times: they are read as numbers and a dictionary.
_WORDS = [
    *("source", "split", "shard", "captions.list.element.set", "intrinsic_tags.list.element"),
    "phonemes.list.element",
]


@dataclass(frozen=True)
class View:
    """Clips of one split: row numbers of the index, ascending, and of which set their captions are taken, if of one."""

    caption_set: CaptionSet | None
    rows: np.ndarray


class ShardIndex:
    """A data set of shards, opened by its index. Rows are numbered in the order of the index."""

    def __init__(self, location: Path | str, cache: FileCache | None = None):
        """`location` is a folder or a URL, or the folder that the shard stage leaves for shards on a remote.

        Files of a remote come by way of `cache`. Raises PsclapError where there is no complete set of shards.
        """
        cache = cache or FileCache(cache_folder(), _DEFAULT_CACHE_BYTES)
        self.summary = _read_summary(location)
        try:
            self.location = _where(self.summary, location)
            shards = {
                check_shard_name(name, self.location): (shard["bytes"], shard["sha256"])
                for name, shard in self.summary["shards"].items()
            }
            self.sample_rate_hz: int = self.summary["sample_rate_hz"]
        except (AttributeError, KeyError, TypeError) as error:
            raise PsclapError(f"{SUMMARY_NAME} of {location} is not of this version ({error}); {REBUILD}") from error
        self.store = ShardStore(self.location, shards, cache)
        self._bytes = self._open(cache)
        self._parquet = self._parquet_file()

    def _open(self, cache: FileCache) -> pa.MemoryMappedFile:
        path = storage.join(self.location, INDEX_NAME)
        try:
            if storage.is_remote(path):
                file = RemoteFile(path, self.summary["index_bytes"], self.summary["index_sha256"])
                with os.fdopen(cache.open(file), "rb") as stream:  # the mapping stays when the cache drops the file
                    return pa.memory_map(f"/proc/self/fd/{stream.fileno()}")
            return pa.memory_map(path)
        except FileNotFoundError as error:
            raise PsclapError(
                f"no shards in {self.location}: {INDEX_NAME} is missing; run `dvc repro shard`"
            ) from error

    def _parquet_file(self, words: Sequence[str] = ()) -> pq.ParquetFile:
        try:
            parquet = pq.ParquetFile(self._bytes, read_dictionary=list(words))
        except pa.ArrowException as error:
            raise PsclapError(f"the index in {self.location} is damaged ({error}); {REBUILD}") from error
        names = parquet.schema_arrow.names
        if names != INDEX_SCHEMA.names:
            raise PsclapError(
                f"the index in {self.location} has the columns {names}, expected {INDEX_SCHEMA.names}; {REBUILD}"
            )
        return parquet

    def __len__(self) -> int:
        return self._parquet.metadata.num_rows

    @property
    def sha256(self) -> str:
        """The hash of the index file, which stands for the whole data set: it names every shard's content."""
        return self.summary["index_sha256"]

    def column(self, name: str) -> pa.Array:
        """A column, or by a dotted path a part of one, read from the file at each call."""
        parts = [*self._groups(name)]
        if not parts:
            return INDEX_SCHEMA.empty_table()[name.partition(".")[0]].combine_chunks()
        return pa.concat_arrays(pa.concat_tables(parts).unify_dictionaries().column(0).chunks)

    def _groups(self, name: str) -> Iterator[pa.Table]:
        """One group at a time: Arrow cannot read lists of dictionary codes over several."""
        words = self._parquet_file(_WORDS)
        return (words.read_row_group(group, columns=[name]) for group in range(words.num_row_groups))

    def phonemes(self) -> Iterator[pa.ListArray]:
        """The phonemes of all clips, as words of a dictionary, part by part: there may be thousands of millions."""
        return (group["phonemes"].combine_chunks() for group in self._groups("phonemes"))

    def _numbers(self, name: str) -> np.ndarray:
        return _numpy(self.column(name))

    @cached_property
    def num_samples(self) -> np.ndarray:
        """(len,) samples of each clip."""
        return self._numbers("num_samples")

    @cached_property
    def num_phonemes(self) -> np.ndarray:
        """(len,) phonemes of each clip: 0 where nothing is said, and of all clips that were sharded without."""
        lengths = (np.diff(_numpy(lists.offsets)) for lists in self.phonemes())
        return np.concatenate([np.zeros(0, np.int32), *lengths])

    @cached_property
    def shard_number(self) -> np.ndarray:
        """(len,) the shard of each clip, as a number of `shard_names`."""
        return _numpy(self._shards.indices)

    @cached_property
    def shard_names(self) -> list[str]:
        """The shards' names, in the order of `shard_number`."""
        return self._shards.dictionary.to_pylist()

    @cached_property
    def _shards(self) -> pa.DictionaryArray:
        return self.column("shard")

    @cached_property
    def _places(self) -> tuple[np.ndarray, ...]:
        return tuple(self._numbers(name) for name in ("byte_offset", "byte_length", "metadata_length"))

    def place(self, number: int) -> Place:
        """Where one clip lies."""
        offset, length, metadata_length = (int(values[number]) for values in self._places)
        shard = self.shard_names[self.shard_number[number]]
        return Place(shard, offset, length, metadata_length, int(self.num_samples[number]))

    def take(self, numbers: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of these numbers, ascending; only the row groups that hold them are read."""
        numbers = np.asarray(numbers, np.int64)
        metadata = self._parquet.metadata
        ends = np.cumsum([metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)])
        group = np.searchsorted(ends, numbers, side="right")
        parts = []
        for k in np.unique(group):
            first = int(ends[k - 1]) if k else 0
            table = self._parquet.read_row_group(int(k), columns=list(columns) if columns else None)
            parts.append(table.take(numbers[group == k] - first))
        return pa.concat_tables(parts) if parts else INDEX_SCHEMA.empty_table()

    def row(self, number: int) -> dict[str, Any]:
        """All columns of one clip."""
        return self.take([number]).to_pylist()[0]

    def rows_of(self, split: Split) -> np.ndarray:
        """The rows of one split, ascending."""
        return np.flatnonzero(_equal(self.column("split"), split))

    def view(self, split: Split, caption_set: CaptionSet, source: str | None = None) -> View:
        """The clips of `split` (and of the corpus `source`) with a caption of `caption_set`.

        Raises PsclapError where there is none.
        """
        chosen = np.zeros(len(self), bool)
        chosen[self._rows_with_caption(caption_set)] = True
        chosen &= _equal(self.column("split"), split)
        if source is not None:
            chosen &= _equal(self.column("source"), source)
        rows = np.flatnonzero(chosen)
        if not len(rows):
            where = f" of the corpus {source!r}" if source is not None else ""
            raise PsclapError(f"{self.location} has no {split} clip{where} with a caption of the set {caption_set!r}")
        return View(caption_set, rows)

    def _rows_with_caption(self, caption_set: CaptionSet) -> np.ndarray:
        sets = self.column("captions.list.element.set")
        return _numpy(sets.value_parent_indices())[_equal(sets.flatten().field("set"), caption_set)]

    def captions(self, view: View) -> pa.LargeListArray:
        """The captions of the view's set, for each of its rows."""
        assert view.caption_set is not None
        parts = [_texts(part, view.caption_set) for part in self.take(view.rows, ["captions"])["captions"].chunks]
        return pa.concat_arrays(parts)

    def read_flac(self, number: int) -> bytes:
        """The FLAC bytes of one clip. Raises PsclapError where the shard is missing or damaged."""
        return self.store.flac(self.place(number))

    def read_clip(self, number: int, start: int = 0, num_samples: int | None = None) -> audio.Wave:
        """Decodes a clip, or at most `num_samples` of it from sample `start`; float32 (num_samples,)."""
        place = self.place(number)
        left = place.num_samples - start
        try:
            return audio.decode_flac(
                self.store.flac(place), start, left if num_samples is None else min(num_samples, left)
            )
        except AudioError as error:
            raise PsclapError(f"clip {self.row(number)['key']!r} of {self.location} is damaged: {error}") from error


def _read_summary(location: Path | str) -> dict[str, Any]:
    path = storage.join(location, SUMMARY_NAME)
    try:
        return json.loads(storage.read(path))
    except FileNotFoundError as error:
        raise _no_shards(location, SUMMARY_NAME) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PsclapError(f"{path} is damaged ({error}); {REBUILD}") from error


def _where(summary: dict[str, Any], location: Path | str) -> str:
    """The folder or URL of the shards: where the summary lies, or the URL that it names."""
    url = summary.get("url")
    if url is None:
        return str(location if storage.is_remote(location) else Path(location).absolute())
    if not isinstance(url, str) or not storage.is_remote(url):
        raise PsclapError(
            f"{SUMMARY_NAME} of {location} says that its shards lie at {url!r}, which is no URL; {REBUILD}"
        )
    return url


def _texts(captions: pa.ListArray, caption_set: CaptionSet) -> pa.LargeListArray:
    """The texts of one set of each row's captions; large, as those of ten million clips have over 2 GB."""
    structs, parents = captions.flatten(), _numpy(captions.value_parent_indices())
    of_set = _equal(structs.field("set").dictionary_encode(), caption_set)
    counts = np.bincount(parents[of_set], minlength=len(captions))
    texts = structs.field("text").filter(pa.array(of_set)).cast(pa.large_string())
    return pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)])), texts)


def _numpy(array: pa.Array) -> np.ndarray:
    """The values of an array without nulls. Arrow's to_numpy and comparisons import pandas: 0.2 s and 50 MB."""
    return np.from_dlpack(array)


def _equal(words: pa.DictionaryArray, word: str) -> np.ndarray:
    """(len(words),) whether each is `word`."""
    dictionary = words.dictionary.to_pylist()
    return _numpy(words.indices) == (dictionary.index(word) if word in dictionary else -1)


def _no_shards(location: Path | str, missing: str) -> PsclapError:
    return PsclapError(f"no shards in {location}: {missing} is missing; run `dvc repro shard`")
