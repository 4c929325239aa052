from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from psclap.config import ShardConfig
from psclap.corpora import build_corpus
from psclap.errors import ConfigError, PsclapError
from psclap.schema import Caption
from psclap.shards.index import ShardIndex
from psclap.shards.writer import write_shards

TEXTS = pa.list_(pa.string())
TYPES = {
    **dict.fromkeys(("text_description", "intrinsic_tags", "situational_tags", "basic_tags", "all_tags"), TEXTS),
    **dict.fromkeys(("duration", "snr"), pa.float64()),
    "utterance_pitch_mean": pa.float32(),
}
COLUMNS = (
    *("source", "relative_audio_path", "text_description", "transcription", "intrinsic_tags", "situational_tags"),
    *("basic_tags", "all_tags", "speakerid", "name", "duration", "gender", "accent", "pitch", "speaking_rate"),
    *("noise", "utterance_pitch_mean", "snr", "phonemes"),
)
SCHEMA = pa.schema([(name, TYPES.get(name, pa.string())) for name in COLUMNS])


def row(source, path, *texts, intrinsic=None, situational=None, speaker="id1", transcription="Hello there."):
    values = {"source": source, "relative_audio_path": path, "text_description": list(texts)}
    values |= {"transcription": transcription, "speakerid": speaker, "duration": 1.0, "gender": "male"}
    return {**values, "intrinsic_tags": intrinsic, "situational_tags": situational}


INTRINSIC = {
    "train-00000-of-00002.parquet": [
        row("voxceleb", "id1/clip/1.wav", "A raspy man.", "A rough voice.", intrinsic=["raspy", "male"]),
        row("expresso", "ex01.wav", "A deep voice.", intrinsic=["deep"], speaker="ex01", transcription=None),
    ],
    "train-00001-of-00002.parquet": [row("ears", "p001/a.wav", "A silky voice.", intrinsic=["silky"], speaker="p001")],
    "test-00000-of-00001.parquet": [row("ears", "p002/a.wav", "A nasal voice.", intrinsic=["nasal"], speaker="p002")],
}
SITUATIONAL = {
    "train.parquet": [
        row("voxceleb", "id1/clip/1.wav", "He is angry.", intrinsic=["raspy"], situational=["angry"]),
    ],
    "dev.parquet": [row("ears", "p003/b.wav", "A whisper.", situational=["whispered"], speaker="p003")],
}


def write_set(folder: Path, files: dict, schema: pa.Schema = SCHEMA) -> None:
    folder.mkdir()
    for name, rows in files.items():
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name)


@pytest.fixture
def options(tmp_path):
    """The options of a small data set on disk, with 5 clips of audio."""
    write_set(tmp_path / "intrinsic", INTRINSIC)
    write_set(tmp_path / "situational", SITUATIONAL)
    rng = np.random.default_rng(0)
    for entry in (entry for files in (INTRINSIC, SITUATIONAL) for rows in files.values() for entry in rows):
        path = tmp_path / "audio" / entry["source"] / entry["relative_audio_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.1, 0.1, 24000), 24000)
    sets = {name: str(tmp_path / name) for name in ("intrinsic", "situational")}
    return {"audio_root": str(tmp_path / "audio"), **sets}


def utterances(options, folder):
    return {u.key: u for u in build_corpus("paraspeechcaps", options).utterances(folder, None)}


def test_a_row_becomes_an_utterance_whose_audio_is_where_it_lies(options, tmp_path):
    found = utterances(options, tmp_path / "corpus")
    assert {key: u.split for key, u in found.items()} == {
        "train-voxceleb--id1--clip--1_wav": "train",
        "train-expresso--ex01_wav": "train",
        "train-ears--p001--a_wav": "train",
        "test-ears--p002--a_wav": "test",
        "val-ears--p003--b_wav": "val",
    }
    expresso = found["train-expresso--ex01_wav"]
    assert (expresso.source, expresso.speaker, expresso.transcript) == ("expresso", "expresso-ex01", "")
    assert expresso.captions == (Caption("intrinsic", "A deep voice."),)
    assert (expresso.intrinsic_tags, expresso.situational_tags) == (("deep",), ())
    assert all(Path(u.audio).is_absolute() and Path(u.audio).is_file() for u in found.values())


def test_a_clip_of_two_sets_has_the_captions_and_tags_of_both(options, tmp_path):
    merged = utterances(options, tmp_path)["train-voxceleb--id1--clip--1_wav"]
    intrinsic = [Caption("intrinsic", text) for text in ("A raspy man.", "A rough voice.")]
    assert merged.captions == (*intrinsic, Caption("situational", "He is angry."))
    assert (merged.intrinsic_tags, merged.situational_tags) == (("raspy", "male"), ("angry",))


def test_the_corpus_becomes_shards(options, tmp_path):
    config = ShardConfig(16000, 2, 0.2, 60.0, 0.0)
    (tmp_path / "shards").mkdir()
    summary = write_shards(utterances(options, tmp_path).values(), tmp_path / "shards", config, 1)
    assert {split: counts["clips"] for split, counts in summary["splits"].items()} == {"train": 3, "val": 1, "test": 1}
    index = ShardIndex(tmp_path / "shards")
    (number,) = index.view("train", "situational").rows
    assert index.row(number)["captions"][2] == {"set": "situational", "text": "He is angry."}
    assert len(index.view("train", "intrinsic").rows) == 3
    assert all(len(index.read_clip(number)) == 16000 for number in range(len(index)))


def test_a_relative_audio_root_gives_absolute_paths(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = utterances({**options, "audio_root": "audio"}, tmp_path)
    assert all(Path(u.audio).is_absolute() and Path(u.audio).is_file() for u in found.values())


@pytest.mark.parametrize("name", ["speakerid", "text_description", "intrinsic_tags"])
def test_a_missing_column_is_named_with_its_file_and_set(options, tmp_path, name):
    schema = pa.schema([field for field in SCHEMA if field.name != name])
    write_set(tmp_path / "combined", {"test.parquet": [row("ears", "p003/b.wav", "Both.")]}, schema)
    with pytest.raises(
        PsclapError, match=rf"combined/test\.parquet lacks the columns \['{name}'\]; its set is combined"
    ):
        utterances({**options, "combined": str(tmp_path / "combined")}, tmp_path)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_parquet_files_is_named_with_its_option(options, tmp_path, exists):
    if exists:
        (tmp_path / "combined").mkdir()
    with pytest.raises(PsclapError, match=r"no \*\.parquet in .*/combined \(corpus\.options\.combined\)"):
        utterances({**options, "combined": str(tmp_path / "combined")}, tmp_path)


def test_a_file_of_no_split_is_refused_by_name(options, tmp_path):
    write_set(tmp_path / "combined", {"holdout.parquet": [row("ears", "p003/b.wav", "Both.")]})
    with pytest.raises(PsclapError, match=r"holdout\.parquet must begin with one of \['train', 'val', 'dev', 'test'\]"):
        utterances({**options, "combined": str(tmp_path / "combined")}, tmp_path)


def test_options_without_a_folder_name_the_options(tmp_path):
    with pytest.raises(PsclapError, match=r"set one of \['intrinsic', 'situational', 'combined'\]"):
        utterances({"audio_root": str(tmp_path)}, tmp_path)


def test_options_without_an_audio_root_are_refused():
    with pytest.raises(ConfigError, match=r"corpus\.options\.audio_root: missing key"):
        build_corpus("paraspeechcaps", {"intrinsic": "somewhere"})
