"""The words of the project: the Utterance, the columns of every table, the splits and caption sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa

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
    """One clip as a corpus yields it. `audio` is a path; its duration is measured when the clip is sharded."""

    key: str
    audio: str
    speaker: str
    source: str
    split: Split
    captions: tuple[Caption, ...]
    intrinsic_tags: tuple[str, ...] = ()
    situational_tags: tuple[str, ...] = ()
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
    ("transcript", pa.string()),
    ("language", pa.string()),
]

UTTERANCES_SCHEMA = pa.schema([*_METADATA, ("audio", pa.string())])
"""The manifest that `prepare` writes; `audio` is relative to the manifest's folder, or absolute."""

INDEX_SCHEMA = pa.schema(
    [
        *_METADATA,
        ("shard", pa.string()),
        ("byte_offset", pa.int64()),
        ("byte_length", pa.int64()),
        ("num_samples", pa.int64()),
    ]
)
"""One row per clip. The FLAC bytes are `shard[byte_offset : byte_offset + byte_length]`."""

METADATA_COLUMNS: tuple[str, ...] = tuple(name for name, _ in _METADATA)


def utterances_to_table(utterances: Iterable[Utterance]) -> pa.Table:
    """The manifest table of `utterances`, in the order given."""
    return pa.Table.from_pylist([asdict(utterance) for utterance in utterances], schema=UTTERANCES_SCHEMA)


def table_to_utterances(table: pa.Table, folder: Path) -> list[Utterance]:
    """The utterances of a manifest table; relative audio paths are taken from `folder`."""
    utterances = []
    for row in table.to_pylist():
        row["audio"] = str(folder / row["audio"])
        row["captions"] = tuple(Caption(**caption) for caption in row["captions"])
        row["intrinsic_tags"] = tuple(row["intrinsic_tags"])
        row["situational_tags"] = tuple(row["situational_tags"])
        utterances.append(Utterance(**row))
    return utterances


OPTIMIZER_NAME = "optimizer.safetensors"
"""The one file of a checkpoint folder that only training needs."""
