"""Corpora of fixed folder layouts, each written here as its makers did, with their encodings and their slips."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SHARDING, shard

from psclap.corpora import CORPORA, build_corpus
from psclap.errors import ConfigError, PsclapError
from psclap.schema import Utterance
from psclap.shards.index import ShardIndex
from psclap.soundness.integrity import check_location
from psclap.text.phonemes import phonemize


def record(path: Path, seconds: float = 0.4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * 22050))
    soundfile.write(path, noise, 22050, subtype="PCM_16")


def put(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def read(name: str, root: Path, **options) -> list[Utterance]:
    return list(build_corpus(name, {"root": str(root), **options}).utterances(root / "unused", processes=1))


def texts(utterances: list[Utterance]) -> list[str]:
    return [utterance.transcript for utterance in utterances]


@pytest.fixture
def ljspeech(tmp_path):
    put(
        tmp_path / "metadata.csv",
        'LJ001-0001|He had 2 "cats" |He had two "cats" \r\n'
        "LJ001-0002|Né à Köln, 1999|Né à Köln, nineteen ninety-nine\r\n"
        "LJ001-0003|Left\u2028alone.|Left\u2028alone.\r\n",
        "utf-8-sig",
    )
    for name in ("LJ001-0001", "LJ001-0002", "LJ001-0003"):
        record(tmp_path / "wavs" / f"{name}.wav")
    return tmp_path


def test_ljspeech(ljspeech):
    one, two, three = read("ljspeech", ljspeech)
    assert (one.key, one.audio) == ("LJ001-0001", str(ljspeech / "wavs/LJ001-0001.wav"))
    assert (one.speaker, one.source, one.language) == ("ljspeech", "ljspeech", "en-us")
    assert one.intrinsic_tags == ("female",)
    assert texts([one, two, three]) == [
        'He had two "cats"',
        "Né à Köln, nineteen ninety-nine",
        "Left\u2028alone.",
    ]
    assert texts(read("ljspeech", ljspeech, text="raw")[:1]) == ['He had 2 "cats"']
    assert phonemize(one.transcript, one.language)
    assert {u.language for u in read("ljspeech", ljspeech, language="en")} == {"en"}


def test_a_clip_keeps_its_split_when_others_come(tmp_path):
    lines = [f"LJ{number:05d}|text|text" for number in range(2000)]
    put(tmp_path / "metadata.csv", "\n".join(lines))
    splits = {u.key: u.split for u in read("ljspeech", tmp_path, val_share=0.1, test_share=0.2)}
    counts = Counter(splits.values())
    assert abs(counts["val"] - 200) < 50
    assert abs(counts["test"] - 400) < 70
    put(tmp_path / "metadata.csv", "\n".join(lines[::3]))
    assert {u.key: u.split for u in read("ljspeech", tmp_path, val_share=0.1, test_share=0.2)}.items() <= splits.items()
    assert {u.split for u in read("ljspeech", tmp_path, val_share=0, test_share=0)} == {"train"}
    with pytest.raises(ConfigError, match=r"val_share 0\.6 and test_share 0\.6 must be 1 at most together"):
        read("ljspeech", tmp_path, val_share=0.6, test_share=0.6)


@pytest.fixture
def libritts(tmp_path):
    def clip(subset: str, speaker: str, name: str, text: str | None) -> None:
        folder = tmp_path / subset / speaker / "10"
        record(folder / f"{name}.wav")
        if text is not None:
            put(folder / f"{name}.normalized.txt", text)
            put(folder / f"{name}.original.txt", f"{text} (1)")

    clip("train-clean-100", "103", "103_10_000001_000000", "Mister Hyde’s hat.\n")
    clip("train-clean-100", "103", "103_10_000002_000000", None)
    clip("dev-clean", "84", "84_10_000001_000000", "In the end,\r\nit rained.")
    clip("test-clean", "61", "61_10_000001_000000", "No.")
    put(
        tmp_path / "speakers.tsv",
        "READER\tGENDER\tSUBSET\tNAME\n103\tF\ttrain-clean-100\tK. Hand\n84\tM\tdev-clean\tX\n",
    )
    (tmp_path / "train-clean-100" / "README").write_text("a file among the speakers")
    return tmp_path


def test_libritts(libritts, capsys):
    train, val, test = read("libritts", libritts)
    assert [u.split for u in (train, val, test)] == ["train", "val", "test"]
    assert train.key == "train-clean-100-103_10_000001_000000"
    assert train.audio == str(libritts / "train-clean-100/103/10/103_10_000001_000000.wav")
    assert (train.speaker, train.transcript) == ("libritts-103", "Mister Hyde’s hat.")
    assert val.transcript == "In the end, it rained."
    assert [u.intrinsic_tags for u in (train, val, test)] == [("female",), ("male",), ()]
    assert [[c.text for c in u.captions] for u in (train, val, test)] == [
        ["A woman is speaking."],
        ["A man is speaking."],
        [],
    ]
    assert "libritts: 1 wav files have no .normalized.txt, such as" in capsys.readouterr().out
    assert texts(read("libritts", libritts, subsets=["test-clean"], text="original")) == ["No. (1)"]


def test_clips_of_libritts_can_be_held_out_of_all_speakers(libritts):
    everything = read("libritts", libritts, clip_shares={"val_share": 0.0, "test_share": 0.0})
    assert {utterance.split for utterance in everything} == {"train"}
    assert {u.split for u in read("libritts", libritts, clip_shares={"val_share": 0.0, "test_share": 1.0})} == {"test"}


def test_libritts_knows_the_list_of_speakers_with_bars_and_does_without_one(libritts):
    (libritts / "speakers.tsv").unlink()
    assert [u.intrinsic_tags for u in read("libritts", libritts)] == [(), (), ()]
    put(libritts / "SPEAKERS.txt", "; ID | SEX | SUBSET\n61   | F | test-clean | 8.1 | Someone\n")
    assert [u.intrinsic_tags for u in read("libritts", libritts)] == [(), (), ("female",)]


@pytest.fixture
def aishell3(tmp_path):
    put(
        tmp_path / "spk-info.txt",
        "#\tThis file is a part\n#\n#\tspeaker id\tage\tgender\taccent\n"
        "SSB0005\tB\tfemale\tnorth\nSSB0073\tC\tmale\tsouth\n",
    )
    put(
        tmp_path / "train" / "content.txt",
        "SSB00050001.wav\t广 guang3 州 zhou1 女 nv3 儿 er2\r\nSSB00730002.wav\t这儿 zher4 有 you3 A A 股 gu3\r\n",
    )
    put(tmp_path / "test" / "content.txt", "SSB99990003.wav\t好 hao3 \n")
    record(tmp_path / "train/wav/SSB0005/SSB00050001.wav")
    record(tmp_path / "test/wav/SSB9999/SSB99990003.wav")
    return tmp_path


def test_aishell3(aishell3):
    one, two, three = read("aishell3", aishell3)
    assert texts([one, two, three]) == ["广州女儿", "这儿有AA股", "好"]
    assert (one.key, one.audio) == ("train-SSB00050001", str(aishell3 / "train/wav/SSB0005/SSB00050001.wav"))
    assert [u.speaker for u in (one, two, three)] == ["SSB0005", "SSB0073", "SSB9999"]
    assert [u.intrinsic_tags for u in (one, two, three)] == [("female",), ("male",), ()]
    assert {u.language for u in (one, two, three)} == {"cmn"}
    assert three.split == "test"
    assert [u.split for u in read("aishell3", aishell3, val_share=1.0)] == ["val", "val", "test"]
    assert [u.split for u in read("aishell3", aishell3, subsets=["train"], val_share=0.0)] == ["train", "train"]


LABELLING = (
    "000001\t卡尔普#2陪外孙#1玩滑梯#4。\r\n\tka2 er2 pu3 pei2 wai4 sun1 wan2 hua2 ti1\r\n"
    "000002\t假语村言#2别再#1拥抱我#4。\r\n\tjia2 yu3 cun1 yan2 bie2 zai4 yong1 bao4 wo3\r\n"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le"])
def test_baker_in_every_encoding(tmp_path, encoding):
    put(tmp_path / "ProsodyLabeling" / "000001-010000.txt", LABELLING, encoding)
    one, two = read("baker", tmp_path)
    assert texts([one, two]) == ["卡尔普陪外孙玩滑梯。", "假语村言别再拥抱我。"]
    assert (one.key, one.audio) == ("baker-000001", str(tmp_path / "Wave/000001.wav"))
    assert (one.language, one.intrinsic_tags, one.captions[0].text) == ("cmn", ("female",), "A woman is speaking.")


@pytest.fixture
def esd(tmp_path):
    put(
        tmp_path / "0001" / "0001.txt",
        "0001_000001\t打远一看，它们的确很是美丽，\t中立\r\n\r\n0001_000351\t打远一看。\t生气\r\n",
        "gb2312",
    )
    put(
        tmp_path / "0011" / "0011.txt",
        "0011_000021\tThe nine the eggs, I keep.\tNeutral\n0011_001051 I did go.\tSad\n"
        "0011_001421\tSurprise is no answer.  Surprise\nno line of this list\n0011_001452\tTom’s pigtail\tSurprise\n",
        "utf-16",
    )
    put(tmp_path / "0016" / "0016.txt", "0016_000701\tTom’s café is happy.\tHappy\n", "cp1252")
    for name in ("0001/Neutral/0001_000001", "0001/Angry/0001_000351", "0011/Neutral/test/0011_000021"):
        record(tmp_path / f"{name}.wav")
    for name in ("0011/Sad/evaluation/0011_001051", "0011/Surprise/0011_001421", "0011/Surprise/train/0011_001452"):
        record(tmp_path / f"{name}.wav")
    for name in ("0016/Happy/0016_000701", "0016/Happy/0016_000702", "0016/Happy/copy of 0016_000701"):
        record(tmp_path / f"{name}.wav")
    put(tmp_path / "ReadMe.txt", "about it")
    return tmp_path


def test_esd(esd, capsys):
    found = {u.key: u for u in read("esd", esd)}
    assert list(found) == [
        *("esd-0001_000351", "esd-0001_000001", "esd-0011_000021", "esd-0011_001051"),
        *("esd-0011_001421", "esd-0011_001452", "esd-0016_000701"),
    ]
    values = [(u.transcript, u.language, u.split, u.situational_tags) for u in found.values()]
    assert values == [
        ("打远一看。", "cmn", "val", ("angry",)),
        ("打远一看，它们的确很是美丽，", "cmn", "val", ()),
        ("The nine the eggs, I keep.", "en", "test", ()),
        ("I did go.", "en", "val", ("saddened",)),
        ("Surprise is no answer.", "en", "test", ("awed",)),
        ("Tom’s pigtail", "en", "train", ("awed",)),
        ("Tom’s café is happy.", "en", "val", ("happy",)),
    ]
    assert [c.text for c in found["esd-0011_001051"].captions] == ["A person is speaking in a saddened style."]
    assert found["esd-0001_000001"].captions == ()
    assert found["esd-0016_000701"].speaker == "esd-0016"
    said = capsys.readouterr().out
    assert "esd: 1 lines are no name, text and emotion, such as" in said
    assert "esd: 1 wav files of 0016 have no text, such as" in said


def test_esd_by_language_and_emotion(esd):
    assert {u.language for u in read("esd", esd, languages=["cmn"])} == {"cmn"}
    assert [u.key for u in read("esd", esd, emotions=["Sad", "Happy"])] == ["esd-0011_001051", "esd-0016_000701"]


def test_clips_without_captions_are_sharded_and_missing_audio_is_a_reject(aishell3, tmp_path):
    utterances = read("aishell3", aishell3, val_share=0.0)
    bare = [replace(u, captions=()) for u in utterances]
    summary = shard(bare, tmp_path / "shards", replace(SHARDING, max_reject_rate=0.5))
    assert summary["reject_reasons"] == {"missing": 1}
    index = ShardIndex(tmp_path / "shards")
    rows = {row["key"]: row for row in (index.row(number) for number in range(len(index)))}
    assert {key: (row["transcript"], row["language"], row["captions"]) for key, row in rows.items()} == {
        "train-SSB00050001": ("广州女儿", "cmn", []),
        "test-SSB99990003": ("好", "cmn", []),
    }
    with pytest.raises(PsclapError, match="no train clip with a caption of the set 'combined'"):
        index.view("train", "combined")
    findings = {finding.name: finding.severity for finding in check_location(tmp_path / "shards").findings}
    assert findings["clips without caption"] == "warning"
    assert "error" not in findings.values()
    options = {"urls": str(tmp_path / "shards" / "*.tar"), "fields": "psclap"}
    again = {u.key: u for u in build_corpus("webdataset", options).utterances(tmp_path, processes=1)}
    assert {key: (u.transcript, u.captions) for key, u in again.items()} == {
        "train-SSB00050001": ("广州女儿", ()),
        "test-SSB99990003": ("好", ()),
    }


@pytest.mark.parametrize(
    ("name", "file", "text", "said"),
    [
        ("ljspeech", "metadata.csv", "LJ001-0001|text", r"line 1: 'LJ001-0001\|text' has no normalised text"),
        ("ljspeech", "metadata.csv", "LJ001-0001|text| ", "has no normalised text; it must be KEY"),
        ("baker", "ProsodyLabeling/000001-010000.txt", "\n卡尔普", "line 2: '卡尔普' must be a clip's number and its"),
        ("baker", "ProsodyLabeling/000001-010000.txt", "000001\t", "'000001' must be a clip's number"),
        ("aishell3", "train/content.txt", "SSB00050001.wav\thao3", r"'SSB00050001\.wav\\thao3' must be FILE\.wav and"),
        ("aishell3", "train/content.txt", "x 好", "'x 好' must be FILE"),
        ("libritts", "train-clean-100/1/2/1_2_3_4.normalized.txt", " \n", r"normalized\.txt is empty; restore it"),
    ],
)
def test_a_broken_line_is_named(tmp_path, name, file, text, said):
    put(tmp_path / "spk-info.txt", "")
    put(tmp_path / file, text)
    options = {"libritts": {"subsets": ["train-clean-100"]}}.get(name, {})
    with pytest.raises(PsclapError, match=said) as error:
        read(name, tmp_path, **options)
    assert str(tmp_path / file) in str(error.value)


@pytest.mark.parametrize("name", ["ljspeech", "libritts", "aishell3", "baker", "esd"])
def test_another_folder_is_refused_by_name(tmp_path, name):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(PsclapError, match=rf"^{name}: {re.escape(str(root))}.*set corpus\.options\.root to the"):
            read(name, root)


def test_what_no_encoding_reads_is_an_error(tmp_path):
    (tmp_path / "metadata.csv").write_bytes(b"LJ001-0001|a|\x81\x8d\n")
    with pytest.raises(PsclapError, match=r"metadata\.csv: 'utf-8' codec .*; convert it to UTF-8"):
        read("ljspeech", tmp_path)


def test_options_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="subsets: 'clean' must begin with train-, dev- or test-"):
        read("libritts", tmp_path, subsets=["clean"])
    with pytest.raises(ConfigError, match=r"languages: .'fr'.* must be"):
        read("esd", tmp_path, languages=["fr"])
    assert {"ljspeech", "libritts", "aishell3", "baker", "esd"} <= CORPORA.keys()
