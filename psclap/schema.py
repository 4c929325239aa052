"""The words of the project: the Utterance, the columns of every table, the splits and caption sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from psclap.storage import is_remote

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

CaptionSet = Literal["intrinsic", "situational", "combined"]
CAPTION_SETS: tuple[CaptionSet, ...] = get_args(CaptionSet)
"""What a caption talks about: the speaker, this utterance, or both (ParaSpeechCLAP, section on data)."""


@dataclass(frozen=True)
class Caption:
    """One description of a clip's style, and what it talks about."""

    set: CaptionSet
    text: str


@dataclass(frozen=True)
class Utterance:
    """One clip as a corpus yields it; its duration is measured when it is sharded.

    `audio` is a path, a URL, or a reference with a byte range (psclap/storage.py). `classification_tags` are
    those that a test set labels the clip with, where it does.
    """

    key: str
    audio: str
    speaker: str
    source: str
    split: Split
    captions: tuple[Caption, ...]
    intrinsic_tags: tuple[str, ...] = ()
    situational_tags: tuple[str, ...] = ()
    classification_tags: tuple[str, ...] = ()
    transcript: str = ""
    language: str = "en"


_CAPTION = pa.struct([("set", pa.string()), ("text", pa.string())])

_METADATA = [
    ("key", pa.string()),
    ("speaker", pa.string()),
    ("source", pa.string()),
    ("split", pa.string()),
    ("captions", pa.list_(_CAPTION)),
    ("intrinsic_tags", pa.list_(pa.string())),
    ("situational_tags", pa.list_(pa.string())),
    ("classification_tags", pa.list_(pa.string())),
    ("transcript", pa.string()),
    ("language", pa.string()),
]

UTTERANCES_SCHEMA = pa.schema([*_METADATA, ("audio", pa.string())])
"""The manifest that `prepare` writes; `audio` is relative to the manifest's folder, absolute, or a URL."""

INDEX_SCHEMA = pa.schema(
    [
        *_METADATA,
        ("phonemes", pa.list_(pa.string())),
        ("shard", pa.string()),
        ("byte_offset", pa.int64()),
        ("byte_length", pa.int64()),
        ("metadata_length", pa.int64()),
        ("num_samples", pa.int64()),
    ]
)
"""One row per clip. The FLAC bytes are `shard[byte_offset : byte_offset + byte_length]`; the row's metadata, as JSON
of `metadata_length` bytes, is the member of the tar that follows them. `phonemes` are what the transcript is said as
(`psclap.text.symbols.symbols_of`), empty where it is blank, and of all clips where sharding was not asked for them.
"""

METADATA_COLUMNS: tuple[str, ...] = tuple(name for name, _ in _METADATA)


def utterances_to_table(utterances: Iterable[Utterance]) -> pa.Table:
    """The manifest table of `utterances`, in the order given."""
    return pa.Table.from_pylist([asdict(utterance) for utterance in utterances], schema=UTTERANCES_SCHEMA)


def write_utterances(utterances: Iterable[Utterance], path: Path, rows_at_once: int = 10_000) -> int:
    """Writes the manifest of `utterances`, in the order given, and returns their number.

    Memory is needed for `rows_at_once` of them only, however many a corpus has.
    """
    remaining = iter(utterances)
    count = 0
    with pq.ParquetWriter(path, UTTERANCES_SCHEMA) as writer:
        while batch := list(islice(remaining, rows_at_once)):
            writer.write_table(utterances_to_table(batch))
            count += len(batch)
    return count


def locate(audio: str, folder: Path) -> str:
    """Where an utterance's audio is; a relative path starts from `folder`."""
    return audio if is_remote(audio) else str(folder / audio)


TRAINER_STATE_NAME = "trainer.safetensors"
"""The one file of a checkpoint folder that only training needs."""
