"""The clips of a job, cut into blocks and written down once, so that every worker reads its own and no more.

A worker's memory does not grow with the corpus: item files hold a row group for each block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psclap import storage
from psclap.errors import PsclapError

ITEMS = "_items"
_BLOCKS_PER_FILE = 256


@dataclass(frozen=True)
class Items:
    """How many clips in how many blocks, and the hash of all their rows."""

    clips: int
    blocks: int
    sha256: str


def count_items(tables: Iterable[pa.Table], block_clips: int) -> Items:
    """What `write_items` would write."""
    return _items(_blocks(tables, block_clips), lambda number, block: None)


def write_items(tables: Iterable[pa.Table], block_clips: int, output: str) -> Items:
    """Writes the item files of a job under `output`. Raises PsclapError for tables of different columns."""
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None

        def write(number: int, block: pa.Table) -> None:
            nonlocal writer
            if number % _BLOCKS_PER_FILE == 0:
                stack.pop_all().close()
                path = stack.enter_context(storage.writing(_file(output, number)))
                writer = stack.enter_context(pq.ParquetWriter(path, block.schema))
            assert writer is not None
            writer.write_table(block, row_group_size=len(block))

        return _items(_blocks(tables, block_clips), write)


def _items(blocks: Iterator[pa.Table], write) -> Items:  # type: ignore[no-untyped-def]
    digest, clips, number = hashlib.sha256(), 0, -1
    for number, block in enumerate(blocks):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, block.schema) as stream:
            stream.write_table(block.take(np.arange(len(block))).combine_chunks())  # a slice shows what it is cut from
        digest.update(sink.getvalue())
        clips += len(block)
        write(number, block)
    return Items(clips, number + 1, digest.hexdigest())


def _blocks(tables: Iterable[pa.Table], block_clips: int) -> Iterator[pa.Table]:
    """The same rows in tables of `block_clips` rows; the last may have fewer."""
    held: list[pa.Table] = []
    for table in tables:
        if held and table.schema != held[0].schema:
            raise PsclapError(
                f"the input's files differ in their columns: {table.schema.to_string()} after "
                f"{held[0].schema.to_string()}; score them one by one, or give them the same columns"
            )
        held = [pa.concat_tables([*held, table])]
        while len(held[0]) > block_clips:  # one row at least stays, for its schema
            yield held[0].slice(0, block_clips)
            held = [held[0].slice(block_clips)]
    if held and len(held[0]):
        yield held[0]


def read_block(output: str, number: int) -> pa.Table:
    """The items of one block. Raises PsclapError where they are gone."""
    location = _file(output, number)
    try:
        with storage.reaching(location):
            filesystem, path = storage.resolve(location)
            with filesystem.open(path, "rb") as stream:
                return pq.ParquetFile(stream).read_row_group(number % _BLOCKS_PER_FILE)
    except FileNotFoundError as error:
        raise PsclapError(
            f"{location} is gone: another run of this job has finished meanwhile, or removed it"
        ) from error


def _file(output: str, number: int) -> str:
    return storage.join(output, f"{ITEMS}/items-{number // _BLOCKS_PER_FILE:05d}.parquet")
