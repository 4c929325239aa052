"""What a training of speech pays for its texts: phonemes from the shards' index against saying each text on the fly.

The texts are those of --shards, made with shard.phonemes: true; for the start of a training they are repeated up to
--sentences clips. One thread, CPU time:

    said            each different transcript normalised and given to espeak-ng, as sharding does, once and for good
    from the row    the phonemes that the shards have of it, as numbers
    start           which clips can be used, and their vocabulary; without the index, each transcript would be said

    PYTHONPATH=. python benchmarks/tts_texts.py --shards tts/cast/shards
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from psclap.markdown import table
from psclap.schema import INDEX_SCHEMA
from psclap.shards import INDEX_NAME, SUMMARY_NAME
from psclap.shards.index import ShardIndex
from psclap.text.symbols import symbols_of
from psclap.tts.clips import check_phonemes, usable
from psclap.tts.mel import MelConfig
from psclap.tts.vocabulary import Vocabulary

_ROWS_PER_GROUP = 1 << 16


def cpu_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The least of the repeats."""
    took = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


def write_repeated(index: ShardIndex, num_clips: int, folder: Path) -> None:
    """An index of the same train clips over and over."""
    rows = index.take(index.rows_of("train"))
    with pq.ParquetWriter(folder / INDEX_NAME, INDEX_SCHEMA, compression="zstd") as writer:
        for first in range(0, num_clips, _ROWS_PER_GROUP):
            numbers = np.arange(first, min(first + _ROWS_PER_GROUP, num_clips)) % len(rows)
            writer.write_table(rows.take(numbers), row_group_size=_ROWS_PER_GROUP)
    shutil.copy(Path(index.location) / SUMMARY_NAME, folder)


def column_bytes(path: Path) -> dict[str, float]:
    """The compressed bytes a clip of each column of an index."""
    metadata, sizes = pq.read_metadata(path), dict[str, float]()
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            sizes[name] = sizes.get(name, 0.0) + column.total_compressed_size / metadata.num_rows
    return sizes


def start(folder: Path, mel: MelConfig) -> Vocabulary:
    """What a training does with the texts before its first step."""
    index = ShardIndex(folder)
    return Vocabulary.of_train(index, usable(index, "train", mel).rows)


def measure(index: ShardIndex, num_clips: int, folder: Path) -> list[list[str]]:
    """The lines of the table."""
    rows = [
        *{row["transcript"]: row for row in index.take(np.arange(len(index))).to_pylist() if row["phonemes"]}.values()
    ]
    for language in {row["language"] for row in rows}:
        symbols_of("One.", language)  # a grammar is loaded once in a process
    # Once: a sentence that was said is remembered.
    said_s = cpu_seconds(lambda: [symbols_of(row["transcript"], row["language"]) for row in rows], repeats=1)
    vocabulary = Vocabulary.of_train(index, np.arange(len(index)))
    read_s = cpu_seconds(lambda: [vocabulary.encode(row["phonemes"]) for row in rows])
    write_repeated(index, num_clips, folder)
    start_s = cpu_seconds(lambda: start(folder, MelConfig(sample_rate_hz=index.sample_rate_hz)))
    said_ms, read_ms = 1000 * said_s / len(rows), 1000 * read_s / len(rows)
    return [
        ["a clip, said on the fly", f"{said_ms:.2f} ms"],
        ["a clip, from the row", f"{read_ms:.3f} ms"],
        [f"start with {num_clips:,} clips, each said", f"{said_ms * num_clips / 1000:.0f} s (computed)"],
        [f"start with {num_clips:,} clips, by the index", f"{start_s:.2f} s"],
    ]


def main() -> None:
    """Prints the table, and what phonemes add to the index."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=375_000)
    options = parser.parse_args()
    index = ShardIndex(options.shards)
    check_phonemes(index)
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(table(["text side", "CPU"], measure(index, options.sentences, Path(folder)))))
    sizes = column_bytes(options.shards / INDEX_NAME)
    print(f"\n{len(index)} clips with {index.num_phonemes.mean():.0f} phonemes on average; bytes a clip in the index:")
    print(", ".join(f"{name} {size:.1f}" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
