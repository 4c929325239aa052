"""The index of a folder of shards: which clips there are, and where each one's bytes lie."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from psclap import audio
from psclap.errors import PsclapError
from psclap.schema import INDEX_SCHEMA, CaptionSet, Split
from psclap.shards import INDEX_NAME, SUMMARY_NAME


@dataclass(frozen=True)
class View:
    """The clips of one split that have captions of one set: row numbers of the index, ascending."""

    caption_set: CaptionSet
    rows: np.ndarray


class ShardIndex:
    """A folder of shards, opened by its index. Rows are numbered in the order of the index."""

    def __init__(self, folder: Path | str):
        """Raises PsclapError where the folder holds no complete set of shards."""
        self.folder = Path(folder)
        path = self.folder / INDEX_NAME
        if not path.is_file() or not (self.folder / SUMMARY_NAME).is_file():
            raise PsclapError(
                f"no shards in {self.folder}: {path.name} or {SUMMARY_NAME} is missing; run `dvc repro shard`"
            )
        try:
            self.summary: dict[str, Any] = json.loads((self.folder / SUMMARY_NAME).read_text())
            self.table: pa.Table = pq.read_table(path).combine_chunks()
        except ValueError as error:  # Arrow's and JSON's errors are ValueErrors
            raise PsclapError(f"the index in {self.folder} is damaged ({error}); run `dvc repro -f shard`") from error
        self.sample_rate_hz: int = self.summary["sample_rate_hz"]
        if self.table.schema.names != INDEX_SCHEMA.names:
            raise PsclapError(
                f"{path} has the columns {self.table.schema.names}, expected {INDEX_SCHEMA.names}; "
                "rebuild it with `dvc repro shard`"
            )

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def sha256(self) -> str:
        """The hash of the index file, which stands for the whole data set: it names every shard's content."""
        return self.summary["index_sha256"]

    @cached_property
    def num_samples(self) -> np.ndarray:
        """(len,) samples of each clip."""
        return self.table["num_samples"].to_numpy()

    def row(self, number: int) -> dict[str, Any]:
        """All columns of one clip."""
        return self.table.slice(number, 1).to_pylist()[0]

    def view(self, split: Split, caption_set: CaptionSet) -> View:
        """The clips of `split` with a caption of `caption_set`. Raises PsclapError where there is none."""
        in_split = pc.equal(self.table["split"], split).to_numpy()
        captions = self.table["captions"].combine_chunks()
        parents = captions.value_parent_indices().to_numpy()
        of_set = pc.equal(captions.flatten().field("set"), caption_set).to_numpy(zero_copy_only=False)
        has_caption = np.zeros(len(self), bool)
        has_caption[parents[of_set]] = True
        rows = np.flatnonzero(in_split & has_caption)
        if not len(rows):
            raise PsclapError(f"{self.folder} has no {split} clip with a caption of the set {caption_set!r}")
        return View(caption_set, rows)

    def read_flac(self, number: int) -> bytes:
        """The FLAC bytes of one clip; errors as `read_bytes`."""
        row = {name: self.table[name][number].as_py() for name in ("shard", "byte_offset", "byte_length")}
        return read_bytes(self.folder / row["shard"], row["byte_offset"], row["byte_length"])

    def read_clip(self, number: int, start: int = 0, num_samples: int | None = None) -> audio.Wave:
        """Decodes a clip, or just `num_samples` of it from sample `start`; float32 (num_samples,)."""
        try:
            return audio.decode(self.read_flac(number), start, num_samples)[0]
        except audio.AudioError as error:
            key = self.table["key"][number].as_py()
            raise PsclapError(f"clip {key!r} of {self.folder} is damaged: {error}") from error


def captions_of(row: dict[str, Any], caption_set: CaptionSet) -> list[str]:
    """The texts of a row's captions of one set."""
    return [caption["text"] for caption in row["captions"] if caption["set"] == caption_set]


def read_bytes(shard: Path, offset: int, length: int) -> bytes:
    """The bytes of one clip. Raises PsclapError where the shard is missing or cut off."""
    try:
        with open(shard, "rb") as stream:
            data = os.pread(stream.fileno(), length, offset)
    except OSError as error:
        raise PsclapError(f"cannot read shard {shard}: {error.strerror}; run `dvc repro shard`") from error
    if len(data) != length or data[:4] != b"fLaC":
        raise PsclapError(
            f"shard {shard} is damaged: no FLAC stream of {length} bytes at offset {offset}; "
            "rebuild it with `dvc repro --force shard`"
        )
    return data
