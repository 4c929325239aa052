from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import SHARDING, shard

from psclap.corpora import build_corpus
from psclap.errors import ConfigError, PsclapError
from psclap.schema import Caption
from psclap.shards.index import ShardIndex

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
    (tmp_path / "shards").mkdir()
    summary = shard(
        utterances(options, tmp_path).values(), tmp_path / "shards", replace(SHARDING, max_samples_per_shard=2)
    )
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
    write_set(tmp_path / "combined", {"other.parquet": [row("ears", "p003/b.wav", "Both.")]})
    with pytest.raises(PsclapError, match=r"other\.parquet must begin with one of \['train', 'val', .*'holdout'\]"):
        utterances({**options, "combined": str(tmp_path / "combined")}, tmp_path)


def test_options_without_a_folder_name_the_options(tmp_path):
    with pytest.raises(PsclapError, match=r"set one of \['intrinsic', 'situational', 'combined'\]"):
        utterances({"audio_root": str(tmp_path)}, tmp_path)


def test_options_without_an_audio_root_are_refused():
    with pytest.raises(ConfigError, match=r"corpus\.options\.audio_root: missing key"):
        build_corpus("paraspeechcaps", {"intrinsic": "somewhere"})


TEST_SCHEMA = pa.schema([*SCHEMA, ("classification_tag", pa.string())])


def test_the_classification_tag_of_a_test_set_is_kept(options, tmp_path):
    rows = [
        {**row("ears", "p009/a.wav", "A shrill voice.", intrinsic=["shrill"]), "classification_tag": "shrill"},
        {**row("ears", "p009/b.wav", "A voice."), "classification_tag": None},
    ]
    write_set(tmp_path / "combined", {"test.parquet": rows}, TEST_SCHEMA)
    found = utterances({**options, "combined": str(tmp_path / "combined")}, tmp_path)
    tags = {key: u.classification_tags for key, u in found.items()}
    assert (tags["test-ears--p009--a_wav"], tags["test-ears--p009--b_wav"]) == (("shrill",), ())
    assert tags["train-ears--p001--a_wav"] == ()


@pytest.mark.parametrize(("second", "both"), [("nasal", ("nasal",)), ("angry", ("nasal", "angry"))])
def test_a_clip_of_two_test_sets_has_the_labels_of_both(options, tmp_path, second, both):
    for name, tag in (("a", "nasal"), ("b", second)):
        rows = [{**row("ears", "p002/a.wav", "A voice."), "classification_tag": tag}]
        write_set(tmp_path / name, {"test.parquet": rows}, TEST_SCHEMA)
    sets = {**options, "situational": str(tmp_path / "a"), "combined": str(tmp_path / "b")}
    assert utterances(sets, tmp_path)["test-ears--p002--a_wav"].classification_tags == both


def test_a_set_may_be_a_file_or_a_name_with_wildcards(options, tmp_path):
    single = {"audio_root": options["audio_root"], "intrinsic": f"{options['intrinsic']}/test-00000-of-00001.parquet"}
    assert set(utterances(single, tmp_path)) == {"test-ears--p002--a_wav"}
    wild = {**single, "intrinsic": f"{options['intrinsic']}/train-*-of-00002.parquet"}
    assert {u.split for u in utterances(wild, tmp_path).values()} == {"train"}
    assert len(utterances(wild, tmp_path)) == 3


PUBLISHED = {
    name: [row("emilia", f"EN/{name}.mp3", f"Of {name}.")]
    for name in ("train_base", "train_scaled", "dev", "holdout", "test")
}


def published(folder: Path) -> Path:
    write_set(folder, {f"{name}-00000-of-00001.parquet": rows for name, rows in PUBLISHED.items()})
    return folder


@pytest.mark.parametrize(
    ("train_split", "train"),
    [("train_base", {"train_base"}), ("train_scaled", {"train_scaled"}), (None, {"train_base", "train_scaled"})],
)
def test_published_splits_are_mapped_and_the_training_split_is_chosen(tmp_path, train_split, train):
    folder = published(tmp_path / "published")
    options = {"audio_root": "/audio", "combined": str(folder), "train_split": train_split}
    splits = {Path(u.audio).stem: u.split for u in utterances(options, tmp_path).values()}
    assert splits == {**dict.fromkeys(train, "train"), "dev": "val", "holdout": "test", "test": "test"}


def test_a_training_split_that_is_not_there_is_refused(options, tmp_path):
    folder = published(tmp_path / "published")
    (folder / "train_base-00000-of-00001.parquet").unlink()
    with pytest.raises(PsclapError, match=r"published \(corpus.options.combined\) has no file train_base\*\.parquet"):
        utterances({"audio_root": "a", "combined": str(folder), "train_split": "train_base"}, tmp_path)


def test_a_clip_that_repeats_within_one_set_is_one_utterance(tmp_path):
    one, two = (row("emilia", "EN/a.mp3", text) for text in ("One.", "Two."))
    write_set(tmp_path / "set", {"train_base.parquet": [one], "train_scaled.parquet": [two]})
    (found,) = utterances({"audio_root": "/audio", "combined": str(tmp_path / "set")}, tmp_path).values()
    assert [caption.text for caption in found.captions] == ["One.", "Two."]


def test_keys_are_short_and_differ_where_paths_do(tmp_path):
    paths = ["a/b.wav", "a--b.wav", "a/b_wav", f"{'long' * 40}/1.wav", f"{'long' * 40}/2.wav", "id1/-Xy_-/1.m4a"]
    write_set(tmp_path / "set", {"train.parquet": [row("voxceleb", path, "A voice.") for path in paths]})
    found = list(
        build_corpus("paraspeechcaps", {"audio_root": "/", "combined": str(tmp_path / "set")}).utterances(tmp_path, 1)
    )
    assert len({u.key for u in found}) == len(paths)
    assert all(len(u.key) <= 90 and "." not in u.key and "/" not in u.key for u in found)


COMMIT = "c0ffee12" * 5


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache of the Hugging Face Hub, offline, that holds one data set at one revision."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "datasets--someone--captions"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    published(repository / "snapshots" / COMMIT / "data")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["someone/captions", "someone/captions@main", f"someone/captions@{COMMIT}"])
@pytest.mark.usefixtures("hub_cache")
def test_a_set_may_be_a_data_set_of_the_hub(tmp_path, name):
    assert len(utterances({"audio_root": "/audio", "combined": name}, tmp_path)) == 5


@pytest.mark.parametrize("name", ["someone/other", "someone/captions@v2", "a/b--c"])
@pytest.mark.usefixtures("hub_cache")
def test_a_name_that_is_neither_here_nor_on_the_hub_is_refused(tmp_path, name):
    said = rf"{name.split('@')[0]} \(corpus\.options\.combined\) is no file or folder here, and no data set"
    with pytest.raises(PsclapError, match=said):
        utterances({"audio_root": "/audio", "combined": name}, tmp_path)
