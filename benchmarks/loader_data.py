"""The data sets of benchmarks/loader.py: the same clips as shards, as plain files and as MDS, made without network.

A clip is phrases of the demo corpus, which espeak-ng speaks, one after the other with short pauses, so FLAC
has the work it has with speech. Shards are written by psclap; files and MDS hold the same FLAC bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from loader_systems import CAPTION_SET, FILES_MANIFEST, SAMPLE_RATE_HZ, SPLIT, import_streaming

from psclap import audio
from psclap.corpora import build_corpus
from psclap.data_config import ShardConfig
from psclap.parallel import process_map
from psclap.schema import INDEX_SCHEMA, Caption, Utterance, utterances_to_table
from psclap.shards.index import ShardIndex
from psclap.shards.writer import ShardJob, write_shards

NUM_SHARDS = 8  # so that each of two loader processes has several
_NUM_PHRASES, _SEED = 240, 0


@dataclass(frozen=True)
class DataSet:
    """A data set to be made, and the crop to be taken of its clips."""

    name: str
    num_clips: int
    shortest_s: float
    longest_s: float
    crop_s: float


def make(data_set: DataSet, root: Path) -> Path:
    """The folder of a data set with `shards/` and `files/`; made where it is not there yet."""
    folder = root / data_set.name
    stamp = folder / "made.json"
    made = {**asdict(data_set), "columns": INDEX_SCHEMA.names}
    if stamp.is_file() and json.loads(stamp.read_text()) == made:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "shards").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        clips = _utterances(data_set, Path(scratch))
        per_shard = -(-data_set.num_clips // NUM_SHARDS)
        config = ShardConfig(None, SAMPLE_RATE_HZ, None, per_shard, 10**9, 0.1, data_set.longest_s + 1, 0.0)
        table = utterances_to_table(clips)
        write_shards(ShardJob(table, Path("/"), config, str(folder / "shards"), f"{scratch}/receipts"))
    _write_files(folder)
    stamp.write_text(json.dumps(made))
    return folder


def records(folder: Path) -> Iterator[tuple[str, bytes, str, int]]:
    """(key, FLAC bytes, caption, length in samples) of every clip of the shards."""
    index = ShardIndex(folder / "shards")
    for number in range(len(index)):
        row = index.row(number)
        yield row["key"], index.read_flac(number), row["captions"][0]["text"], row["num_samples"]


def write_mds(folder: Path) -> None:
    """Writes `folder/mds`: the same FLAC bytes and captions in MosaicML's own format."""
    shutil.rmtree(folder / "mds", ignore_errors=True)  # of a writer that was killed
    columns = {"flac": "bytes", "caption": "str", "num_samples": "int"}
    with import_streaming().MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
        for _, flac, caption, num_samples in records(folder):
            writer.write({"flac": flac, "caption": caption, "num_samples": num_samples})


def _write_files(folder: Path) -> None:
    (folder / "files").mkdir()
    with open(folder / FILES_MANIFEST, "w") as manifest:
        for key, flac, caption, _ in records(folder):
            (folder / "files" / f"{key}.flac").write_bytes(flac)
            manifest.write(json.dumps([f"{key}.flac", caption]) + "\n")


def _utterances(data_set: DataSet, scratch: Path) -> list[Utterance]:
    corpus = build_corpus("demo", {"train_clips": _NUM_PHRASES, "val_clips": 24, "test_clips": 24})
    spoken = [utterance for utterance in corpus.utterances(scratch, None) if utterance.split == SPLIT]
    phrases = [audio.load(scratch / utterance.audio, SAMPLE_RATE_HZ) for utterance in spoken]
    texts = [utterance.captions[-1].text for utterance in spoken]
    write = partial(_write_clip, data_set=data_set, phrases=phrases, texts=texts, folder=scratch)
    return list(process_map(write, range(data_set.num_clips), None, chunk=16))


def _write_clip(
    number: int, data_set: DataSet, phrases: Sequence[audio.Wave], texts: Sequence[str], folder: Path
) -> Utterance:
    rng = np.random.default_rng([_SEED, number])
    key = f"{data_set.name}-{number:06d}"
    path = folder / f"{key}.flac"
    num_samples = round(rng.uniform(data_set.shortest_s, data_set.longest_s) * SAMPLE_RATE_HZ)
    audio.write_flac(path, _wave(num_samples, phrases, rng), SAMPLE_RATE_HZ)
    # The number makes captions unique: by them a batch is known again after a resume.
    caption = f"{texts[number % len(texts)]} (clip {number})"
    return Utterance(key, str(path), f"speaker-{number % 50}", "benchmark", SPLIT, (Caption(CAPTION_SET, caption),))


def _wave(num_samples: int, phrases: Sequence[audio.Wave], rng: np.random.Generator) -> audio.Wave:
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < num_samples:
        parts.append(phrases[rng.integers(len(phrases))])
        parts.append(np.zeros(rng.integers(SAMPLE_RATE_HZ // 10, SAMPLE_RATE_HZ // 2), np.float32))
    return np.concatenate(parts)[:num_samples]
