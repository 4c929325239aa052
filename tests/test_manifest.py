import csv
import json
import os
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import SHARDING, shard
from hypothesis import given
from hypothesis import strategies as st

from psclap import storage
from psclap.corpora import build_corpus
from psclap.corpora.keys import MAX_KEY_BYTES, safe_key
from psclap.corpora.record import split_of_speaker
from psclap.errors import ConfigError, PsclapError
from psclap.schema import Caption, utterances_to_table, write_utterances

ROWS = [
    {
        **{"audio": "ä/1.wav", "speaker": "Jörg", "source": "own", "split": "train", "language": "de"},
        **{"captions": ["Ein Mann; er ruft.", 'Eine "laute" Stimme.'], "intrinsic_tags": ["deep", "male"]},
        **{"situational_tags": ["angry"], "transcript": "Halt!\nStehen bleiben."},
    },
    {
        **{"audio": "b/2.wav", "speaker": "Ute", "source": "own", "split": "valid", "language": "de"},
        **{"captions": ["Eine Frau."], "intrinsic_tags": [], "situational_tags": [], "transcript": ""},
    },
]


def write(path: Path, rows: list[dict]) -> str:
    """The rows as the format that the path's suffix names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            cells = [{k: "|".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
            writer.writerows(cells)
    return str(path)


def read(path, **options):
    return list(build_corpus("manifest", {"path": str(path), **options}).utterances(Path("unused"), None))


def labelled(**changes):
    """A row with labels instead of captions."""
    row = {"audio": "1.wav", "speaker": "s1", "source": "own", "split": "train", "gender": "female", "emotion": "anger"}
    return {**row, **changes}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_utterances(tmp_path, suffix):
    one, two = read(write(tmp_path / f"clips.{suffix}", ROWS))
    assert (one.key, two.key) == (safe_key("ä/1.wav"), "b--2_wav")
    assert (one.audio, two.audio) == (str(tmp_path / "ä/1.wav"), str(tmp_path / "b/2.wav"))
    assert (one.speaker, one.source, one.language, one.split, two.split) == ("Jörg", "own", "de", "train", "val")
    assert one.captions == tuple(Caption("combined", text) for text in ROWS[0]["captions"])
    assert (one.intrinsic_tags, one.situational_tags) == (("deep", "male"), ("angry",))
    assert (two.intrinsic_tags, two.situational_tags, two.transcript) == ((), (), "")
    assert one.transcript == "Halt!\nStehen bleiben."


def test_columns_of_other_names_are_mapped_and_null_leaves_one_out(tmp_path):
    row = {
        "id": "k-1",
        "file": "s3://b/x.wav",
        "who": 7,
        "fold": "a",
        "text": "A voice.",
        "key": "no key!",
        "label": "deep",
    }
    (found,) = read(
        write(tmp_path / "a.jsonl", [row]),
        columns={"key": "id", "audio": "file", "speaker": "who", "split": "fold", "intrinsic_captions": "text"}
        | {"classification_tags": "label"},
        split_map={"a": "test"},
        defaults={"source": "web", "language": "sv"},
    )
    assert (found.key, found.audio, found.speaker, found.split) == ("k-1", "s3://b/x.wav", "7", "test")
    assert (found.source, found.language, found.classification_tags) == ("web", "sv", ("deep",))
    assert found.captions == (Caption("intrinsic", "A voice."),)
    rows = [labelled(captions="A voice.", split="nonsense")]
    (found,) = read(write(tmp_path / "b.csv", rows), columns={"split": None}, defaults={"split": "val"})
    assert found.split == "val"


def test_captions_of_each_set_have_their_set(tmp_path):
    row = labelled(captions="C.", intrinsic_captions="I.|J.", situational_captions="", combined_captions="B.")
    (found,) = read(write(tmp_path / "a.csv", [row]), caption_set="situational")
    assert [(c.set, c.text) for c in found.captions] == [
        *(("situational", "C."), ("intrinsic", "I."), ("intrinsic", "J."), ("combined", "B."))
    ]


def test_the_list_separator_and_the_delimiter_are_options(tmp_path):
    (tmp_path / "a.csv").write_text(
        "﻿audio;speaker;source;split;captions\n1.wav;s;o;train;One, two/Three|four\n", "utf-8"
    )
    (found,) = read(tmp_path / "a.csv", delimiter=";", list_separator="/")
    assert [caption.text for caption in found.captions] == ["One, two", "Three|four"]


def test_the_manifest_that_prepare_writes_can_be_read(tmp_path, mini_corpus):
    _, utterances = mini_corpus
    write_utterances(utterances, tmp_path / "utterances.parquet", rows_at_once=50)
    assert read(tmp_path / "utterances.parquet") == utterances


def test_utterances_are_written_in_batches(tmp_path, mini_corpus):
    _, utterances = mini_corpus
    assert write_utterances(iter(utterances), tmp_path / "a.parquet", rows_at_once=50) == len(utterances) == 168
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 4
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == utterances_to_table(utterances).to_pylist()
    assert write_utterances([], tmp_path / "none.parquet") == 0
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_captions_come_from_a_template_and_tags_from_maps(tmp_path):
    rows = [labelled(), labelled(audio="2.wav", emotion="neutral", gender="male")]
    one, two = read(
        write(tmp_path / "a.csv", rows),
        caption_template="A {gender} voice, {emotion}.",
        caption_set="situational",
        intrinsic_tag_map={"gender": {"male": "male", "female": "female"}},
        situational_tag_map={"emotion": {"anger": "angry", "neutral": None}},
    )
    assert one.captions == (Caption("situational", "A female voice, anger."),)
    assert (one.intrinsic_tags, one.situational_tags) == (("female",), ("angry",))
    assert (two.intrinsic_tags, two.situational_tags) == (("male",), ())


def test_values_that_a_tag_map_lacks_are_all_listed(tmp_path):
    rows = [labelled(emotion=emotion) for emotion in ("anger", "joy", "", "joy")]
    with pytest.raises(PsclapError) as error:
        read(
            write(tmp_path / "a.csv", rows),
            caption_template="A voice.",
            situational_tag_map={"emotion": {"anger": "angry"}},
        )
    assert f"{tmp_path}/a.csv line 3: values that their tag map lacks: emotion: 'joy' (2 times), '' (1 times);" in str(
        error.value
    )


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_manifest_for_text_to_speech_needs_no_captions(tmp_path, suffix):
    row = {
        "audio": "1.wav",
        "speaker": "s1",
        "source": "own",
        "split": "train",
        "transcript": "你好。",
        "language": "cmn",
    }
    (found,) = read(write(tmp_path / f"a.{suffix}", [row]))
    assert (found.captions, found.transcript, found.language) == ((), "你好。", "cmn")
    with pytest.raises(PsclapError, match="there is no caption and no transcript; every clip needs one of them"):
        read(write(tmp_path / f"b.{suffix}", [row, {**row, "transcript": " "}]))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_empty_list_of_captions_says_that_there_are_none_and_an_empty_text_is_a_slip(tmp_path, suffix):
    row = {**CAPTIONED, "captions": ["A voice."], "transcript": "Hello."}
    one, two = read(write(tmp_path / f"a.{suffix}", [row, {**row, "audio": "2.wav", "captions": []}]))
    assert ([caption.text for caption in one.captions], two.captions) == (["A voice."], ())
    with pytest.raises(PsclapError, match="captions is empty; every clip needs a caption"):
        read(write(tmp_path / f"b.{suffix}", [row, {**row, "captions": [" "]}]))


def test_only_chooses_rows(tmp_path):
    rows = [labelled(audio=f"{n}.wav", emotion=emotion) for n, emotion in enumerate(["anger", "joy", "", "fear"])]
    options = {"caption_template": "A voice in {emotion}.", "only": {"emotion": ["joy", "fear"]}}
    assert [u.key for u in read(write(tmp_path / "a.csv", rows), **options)] == ["1_wav", "3_wav"]


CAPTIONED = {"audio": "1.wav", "speaker": "s1", "source": "own", "split": "train", "captions": "A voice."}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audio": ""}, "audio is empty; every clip needs its audio"),
        ({"speaker": " "}, "speaker is empty; every clip needs its speaker"),
        ({"source": ""}, "source is empty; every clip needs its source"),
        ({"split": ""}, "split is empty; it must be one of train, val, valid"),
        ({"split": "eval"}, "split 'eval' must be one of train, val, valid, validation, dev, test, holdout; map it"),
        ({"captions": " "}, "captions is empty; every clip needs a caption"),
        ({"intrinsic_tags": "deap"}, "unknown tag 'deap'"),
        ({"classification_tags": "deap"}, "unknown tag 'deap'"),
        ({"key": "a b"}, "key 'a b' must be 1 to 90 letters, digits, - and _"),
        ({"key": ""}, "key '' must be 1 to 90"),
        ({"language": ""}, "language is empty"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_bad_cell_is_named_with_its_file_and_its_line(tmp_path, suffix, changes, said):
    fine = {
        **CAPTIONED,
        **{name: {"key": "k", "language": "de"}.get(name, "deep") for name in changes.keys() - CAPTIONED},
    }
    path = write(tmp_path / f"a.{suffix}", [fine, {**fine, **changes}])
    with pytest.raises(PsclapError) as error:
        read(path)
    place = {"csv": "line 3", "jsonl": "line 2", "parquet": "row 2"}[suffix]
    assert str(error.value).startswith(f"{path} {place}: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"columns": {"speaker": "who"}}, r"a\.csv lacks the columns \['who'\] that corpus.options names; it has"),
        ({"columns": {"captions": None}}, r"a\.csv has no captions and no transcript; name a field of either, or"),
        ({"columns": {"audio": None}}, r"a\.csv has no column audio; set columns\.audio to one of"),
        ({"columns": {"speaker": None}}, r"a\.csv has no field for speaker; name it, or set defaults\.speaker"),
        ({"columns": {"split": None}}, r"has no field for split; name it, or set defaults\.split, val_share"),
        ({"val_share": 0.1}, r"has the split 'split', and val_share or test_share ask for one by speaker"),
        ({"caption_template": "A {speaker}."}, r"has captions \(\['captions'\]\) and there is a caption_template"),
        ({"columns": {"captions": None}, "caption_template": "A {mood} voice."}, r"lacks the columns \['mood'\]"),
        ({"only": {"mood": ["x"]}}, r"lacks the columns \['mood'\]"),
        ({"intrinsic_tag_map": {"mood": {"x": "deep"}}}, r"lacks the columns \['mood'\]"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, options, said):
    with pytest.raises(PsclapError, match=said):
        read(write(tmp_path / "a.csv", [CAPTIONED]), **options)


def test_an_empty_value_of_a_placeholder_is_named_with_its_line(tmp_path):
    path = write(tmp_path / "a.csv", [labelled(), labelled(gender="")])
    with pytest.raises(PsclapError, match=r"a\.csv line 3: gender is empty; the caption_template needs it"):
        read(path, caption_template="A {gender} voice.")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"columns": {"spaker": "who"}}, r"corpus\.options: columns: \['spaker'\] must be among our names key, audio"),
        ({"path": "clips.xlsx"}, r"path: 'clips\.xlsx' must end in one of \.csv, \.tsv, \.jsonl, \.parquet"),
        ({"delimiter": "||"}, r"delimiter: '\|\|' must be one character"),
        ({"val_share": 0.6, "test_share": 0.5}, r"val_share 0\.6 and test_share 0\.5 must be 1 at most together"),
        ({"val_share": -0.1}, r"corpus\.options\.val_share: -0\.1 must lie in \[0, 1\]"),
        ({"val_share": 0.1, "defaults": {"split": "val"}}, r"defaults\.split 'val' and val_share or test_share"),
        ({"defaults": {"split": "dev"}}, r"defaults\.split: 'dev' must be one of train, val, test"),
        ({"defaults": {"speakr": "x"}}, r"defaults\.speakr: unknown key .* did you mean 'speaker'"),
        ({"caption_template": "A {gender voice"}, r"caption_template: 'A \{gender voice' has a brace without"),
        ({"situational_tag_map": {"e": {"x": "angri"}}}, r"tag map of e: unknown tag 'angri'.* did you mean angry"),
        ({"intrinsic_tag_map": {"age": {7: "deep"}}}, r"intrinsic_tag_map\.age: the key 7 must be text"),
        ({"caption_set": "rich"}, r"caption_set: 'rich' must be one of"),
    ],
)
def test_broken_options_are_refused_before_anything_is_read(options, said):
    with pytest.raises(ConfigError, match=said):
        build_corpus("manifest", {"path": "absent.csv", **options})


HEADER = b"audio,speaker,source,split,captions\n"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", b"", r"a\.csv is empty; its first line must name the columns"),
        ("a.csv", HEADER + b"1.wav,s,o,train\n", r"a\.csv line 2: 4 cells, such as '1\.wav', for 5 columns"),
        ("a.csv", HEADER + b'1.wav,s,o,train,"open\n', r"a\.csv line 2: unexpected end of data; the file must be CSV"),
        ("a.csv", HEADER + b"1.wav,J\xf6rg,o,train,A.\n", r"a\.csv line \d: .*codec can't decode.*CSV in UTF-8"),
        ("a.csv", b"audio,audio\n", r"a\.csv has columns of the same name"),
        ("a.jsonl", b"", r"a\.jsonl is empty; it must hold a JSON object per line"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl line 1: \[1\] must be an object"),
        ("a.jsonl", b"\n{'a': 1}\n", r"a\.jsonl line 2 is not JSON in UTF-8"),
        ("a.jsonl", json.dumps(CAPTIONED).encode() + b'\n{"audio": "2.wav"}\n', r"line 2: the keys \['captions', "),
        ("a.jsonl", json.dumps({**CAPTIONED, "speaker": [1]}).encode(), r"line 1: speaker \[1\] must be text"),
        ("a.parquet", b"no parquet", r"a\.parquet is no readable parquet file"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PsclapError, match=said):
        read(tmp_path / name)


def test_an_absent_manifest_is_named(tmp_path):
    with pytest.raises(PsclapError, match=r"there is no file .*/absent\.csv"):
        read(tmp_path / "absent.csv")
    with pytest.raises(PsclapError, match=r"no file matches .*/\*\.csv \(corpus\.options\.path\)"):
        read(tmp_path / "*.csv")


def test_several_files_have_their_audio_beside_each(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "m.csv", [{**CAPTIONED, "audio": f"{name}.wav"}])
    expected = [str(tmp_path / "a" / "a.wav"), str(tmp_path / "b" / "b.wav")]
    assert [u.audio for u in read(tmp_path / "*" / "m.csv")] == expected
    assert [u.audio for u in read(f"{tmp_path}/{{a,b}}/m.csv", audio_root="/audio")] == ["/audio/a.wav", "/audio/b.wav"]


@given(st.lists(st.text(min_size=1, max_size=120), unique=True, min_size=2, max_size=8))
def test_keys_are_safe_short_and_unique(paths):
    keys = [safe_key(path) for path in paths]
    assert len(set(keys)) == len(paths)
    assert all(key.isascii() and len(key) <= MAX_KEY_BYTES for key in keys)
    assert not set("".join(keys)) & set("./ \\")


def test_the_split_by_speaker_is_stable_and_about_as_large_as_asked():
    speakers = [f"speaker-{number}" for number in range(4000)]
    counts = Counter(split_of_speaker(speaker, 0.1, 0.2) for speaker in speakers)
    assert counts["val"] == pytest.approx(400, rel=0.2)
    assert counts["test"] == pytest.approx(800, rel=0.2)
    assert split_of_speaker("speaker-0", 0.1, 0.2) == "train"  # a fixed point: a new hash would move speakers


def test_speakers_are_split_as_wholes(tmp_path):
    rows = [
        {**CAPTIONED, "audio": f"{number}.wav", "speaker": f"speaker-{number % 40}", "split": ""}
        for number in range(120)
    ]
    options = {"columns": {"split": None}, "val_share": 0.2, "test_share": 0.2}
    found = read(write(tmp_path / "a.csv", rows), **options)
    of_speaker = defaultdict(set)
    for utterance in found:
        of_speaker[utterance.speaker].add(utterance.split)
    assert all(len(splits) == 1 for splits in of_speaker.values())
    assert {split for splits in of_speaker.values() for split in splits} == {"train", "val", "test"}
    more = read(write(tmp_path / "b.csv", [*rows, {**rows[0], "audio": "x.wav", "speaker": "new"}]), **options)
    assert more[: len(found)] == found


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_manifest_and_its_audio_may_lie_on_s3(tmp_path, s3_server, suffix):
    folder = f"{s3_server}/manifest-{suffix}"
    soundfile.write(tmp_path / "2.wav", np.linspace(-0.5, 0.5, 8000), 16000)
    filesystem = fsspec.filesystem("s3")
    write(tmp_path / f"m.{suffix}", [{**CAPTIONED, "audio": "b/2.wav"}])
    filesystem.pipe(f"{folder}/m-1.{suffix}", (tmp_path / f"m.{suffix}").read_bytes())
    filesystem.pipe(f"{folder}/b/2.wav", (tmp_path / "2.wav").read_bytes())
    (found,) = read(f"{folder}/m-*.{suffix}")
    assert (found.key, found.audio) == ("b--2_wav", f"{folder}/b/2.wav")
    assert storage.read(found.audio) == (tmp_path / "2.wav").read_bytes()
    with pytest.raises(PsclapError, match=rf"there is no file {folder}/none\.{suffix}"):
        read(f"{folder}/none.{suffix}")


SPEECH = Path(os.environ.get("PSCLAP_SPEECH_DATA", Path(__file__).parent.parent / "../shared/data/speech")).resolve()
EMOTIONS = {
    **{"anger": "angry", "boredom": "bored", "happiness": "happy", "fear": "scared", "sadness": "saddened"},
    **{"disgust": "disgusted", "neutral": None},
}


@pytest.mark.skipif(not (SPEECH / "manifest.csv").is_file(), reason="PSCLAP_SPEECH_DATA has no manifest.csv")
def test_the_manifest_of_real_speech_becomes_shards(tmp_path):
    utterances = read(
        SPEECH / "manifest.csv",
        columns={"audio": "path", "source": "corpus"},
        only={"corpus": ["EmoDB"]},
        caption_template="A {gender} voice, {age} years old, in a tone of {emotion}.",
        intrinsic_tag_map={"gender": {"male": "male", "female": "female"}},
        situational_tag_map={"emotion": EMOTIONS},
    )
    assert len(utterances) == 535
    assert {u.split for u in utterances} == {"train", "val", "test"}
    assert {u.language for u in utterances} == {"de"}
    assert any("ü" in u.transcript for u in utterances)
    assert Counter(tag for u in utterances for tag in u.situational_tags)["angry"] == 127
    first = next(u for u in utterances if u.key == "emodb--03a01Fa_flac")
    assert first.captions == (Caption("combined", "A male voice, 31 years old, in a tone of happiness."),)
    (tmp_path / "shards").mkdir()
    summary = shard(utterances[:12], tmp_path / "shards", SHARDING)
    assert (summary["clips"], summary["rejected"]) == (12, 0)
    with tarfile.open(tmp_path / "shards" / "train-00000.tar") as tar:
        assert len(tar.getnames()) == 24
