import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import webdataset
from conftest import SHARDING, shard

from psclap import audio
from psclap.errors import PsclapError
from psclap.files import sha256_file
from psclap.schema import CAPTION_SETS, INDEX_SCHEMA, SPLITS, Caption, Utterance, utterances_to_table
from psclap.shards import writer
from psclap.shards.index import ShardIndex
from psclap.shards.writer import ShardJob, fingerprint_of, split_into_units
from psclap.text.symbols import symbols_of
from psclap.tts.vocabulary import Vocabulary

CONFIG = replace(SHARDING, max_samples_per_shard=3, max_duration_s=2.0, max_reject_rate=0.5)
REASONS = ("missing", "empty", "unreadable", "non-finite", "too short", "too long", "silent")


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * 16000)).astype(np.float32)


def utterance(path: Path, key: str, **changes) -> Utterance:
    values = {"speaker": "s", "source": "test", "split": "train", "captions": (Caption("combined", f"A {key}."),)}
    return Utterance(key=key, audio=str(path), **{**values, **changes})


@pytest.fixture
def good(tmp_path):
    """Eight usable utterances."""
    utterances = []
    for number in range(8):
        path = tmp_path / f"good-{number}.wav"
        soundfile.write(path, noise(0.3 + number / 10), 16000, subtype="FLOAT")
        utterances.append(utterance(path, f"good-{number}"))
    return utterances


@pytest.fixture
def bad(tmp_path):
    """One utterance for each reason to reject it."""
    broken = noise(1.0)
    broken[7] = np.nan
    waves = {"non-finite": broken, "too short": noise(0.19), "too long": noise(2.01), "silent": np.zeros(16000)}
    paths = {reason: tmp_path / f"{reason.replace(' ', '-')}.wav" for reason in REASONS}
    for reason, wave in waves.items():
        soundfile.write(paths[reason], wave, 16000, subtype="FLOAT")
    paths["empty"].write_bytes(b"")
    paths["unreadable"].write_bytes(b"these are not samples" * 100)
    return [utterance(path, f"bad-{path.stem}") for path in paths.values()]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "shards").mkdir()
    return tmp_path / "shards"


@pytest.fixture
def damaged(mini_shards, tmp_path):
    """A copy of the shards, to be damaged."""
    return Path(shutil.copytree(mini_shards, tmp_path / "damaged"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("processes", [1, 2])
def test_the_bytes_do_not_depend_on_the_run_the_processes_or_the_order(mini_corpus, mini_shards, out, processes):
    shard(reversed(mini_corpus[1]), out, SHARDING, processes)
    assert files(out) == files(mini_shards)


def test_index_rows_point_at_the_flac_bytes_and_equal_the_json_of_the_tar(mini_shards):
    index = ShardIndex(mini_shards)
    assert len(index) == 168
    seen = set()
    for tar_path in sorted(mini_shards.glob("*.tar")):
        with tarfile.open(tar_path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for number in np.flatnonzero(np.array(index.column("shard").to_pylist()) == tar_path.name):
            row = index.row(int(number))
            assert index.read_flac(int(number)) == members[f"{row['key']}.flac"]
            location = {name: row.pop(name) for name in ("shard", "byte_offset", "byte_length", "metadata_length")}
            assert location["byte_length"] == len(members[f"{row['key']}.flac"])
            assert location["metadata_length"] == len(members[f"{row['key']}.json"])
            assert json.loads(members[f"{row['key']}.json"]) == row
            seen.add(row["key"])
        assert len(members) <= 2 * 40
    assert len(seen) == len(index)


def test_the_webdataset_library_reads_the_shards(mini_shards):
    index = ShardIndex(mini_shards)
    shards = [str(path) for split in SPLITS for path in sorted(mini_shards.glob(f"{split}-*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == index.column("key").to_pylist()
    for number in range(0, len(index), 20):
        assert samples[number]["flac"] == index.read_flac(number)
        assert json.loads(samples[number]["json"])["transcript"] == index.row(number)["transcript"]


def test_clips_keep_their_metadata_and_their_sound(mini_corpus, mini_shards):
    index, known = ShardIndex(mini_shards), {u.key: u for u in mini_corpus[1]}
    assert sorted(index.column("key").to_pylist()) == sorted(known)
    for number in range(0, len(index), 12):
        row, wave = index.row(number), index.read_clip(number)
        original = known[row["key"]]
        assert [Caption(**caption) for caption in row["captions"]] == list(original.captions)
        assert (row["speaker"], row["split"], row["language"]) == (original.speaker, original.split, "en")
        assert tuple(row["intrinsic_tags"] + row["situational_tags"]) == (
            original.intrinsic_tags + original.situational_tags
        )
        assert len(wave) == row["num_samples"] == index.num_samples[number]
        np.testing.assert_allclose(wave, audio.load(original.audio, 16000).clip(-1, 1), atol=1 / 32768)


def test_a_partial_read_is_the_slice_of_the_clip(mini_shards):
    index, rng = ShardIndex(mini_shards), np.random.default_rng(0)
    for number in rng.integers(len(index), size=20):
        whole = index.read_clip(int(number))
        start, length = int(rng.integers(len(whole))), int(rng.integers(1, 16000))
        np.testing.assert_array_equal(index.read_clip(int(number), start, length), whole[start : start + length])


def test_shards_are_of_one_split_mixed_and_at_most_the_given_size(mini_shards):
    table = pq.read_table(mini_shards / "index.parquet")
    assert table.schema.equals(INDEX_SCHEMA)
    shards = table.group_by("shard").aggregate([("key", "count"), ("split", "count_distinct")]).to_pylist()
    assert [(s["shard"], s["key_count"]) for s in sorted(shards, key=lambda s: s["shard"])] == [
        *(("test-00000.tar", 40), ("test-00001.tar", 8)),
        *(("train-00000.tar", 40), ("train-00001.tar", 40), ("train-00002.tar", 16)),
        ("val-00000.tar", 24),
    ]
    assert all(shard["split_count_distinct"] == 1 for shard in shards)
    keys = table["key"].to_pylist()[:40]
    assert keys != sorted(keys)


def test_the_summary_counts_and_hashes_what_is_there(mini_shards):
    summary = json.loads((mini_shards / "summary.json").read_text())
    index = ShardIndex(mini_shards)
    assert (summary["clips"], summary["rejected"], summary["reject_reasons"]) == (168, 0, {})
    assert summary["index_sha256"] == index.sha256 == sha256_file(mini_shards / "index.parquet")
    tars = {path.name: (path.stat().st_size, sha256_file(path)) for path in mini_shards.glob("*.tar")}
    assert {name: (shard["bytes"], shard["sha256"]) for name, shard in summary["shards"].items()} == tars
    assert sum(shard["clips"] for shard in summary["shards"].values()) == 168
    for split in SPLITS:
        rows = [row for row in index.take(range(len(index))).to_pylist() if row["split"] == split]
        hours = sum(row["num_samples"] for row in rows) / 16000 / 3600
        assert summary["splits"][split]["clips"] == len(rows)
        assert summary["splits"][split]["speakers"] == len({row["speaker"] for row in rows})
        assert summary["splits"][split]["hours"] == pytest.approx(hours, abs=1e-4)


def test_view_selects_by_split_and_caption_set(tmp_path, good, out):
    sets = [("train", ["intrinsic"]), ("train", ["situational"]), ("train", ["intrinsic", "situational"])]
    sets += [("val", ["intrinsic"]), ("test", ["combined", "combined"])]
    for number, (split, names) in enumerate(sets):
        captions = tuple(Caption(name, f"{name}.") for name in names)
        good[number] = utterance(good[number].audio, f"clip-{number}", split=split, captions=captions)
    shard(good[: len(sets)], out, CONFIG, 1)
    index = ShardIndex(out)
    for split in SPLITS:
        for caption_set in CAPTION_SETS:
            wanted = {f"clip-{n}" for n, (s, names) in enumerate(sets) if s == split and caption_set in names}
            if wanted:
                view = index.view(split, caption_set)
                assert view.caption_set == caption_set
                assert {index.row(int(row))["key"] for row in view.rows} == wanted
                assert (np.diff(view.rows) > 0).all()
            else:
                with pytest.raises(PsclapError, match=f"no {split} clip with a caption of the set '{caption_set}'"):
                    index.view(split, caption_set)


def test_every_bad_clip_is_rejected_with_its_reason_and_the_good_ones_stay(good, bad, out):
    summary = shard(good + bad, out, CONFIG, 2)
    assert (summary["clips"], summary["rejected"]) == (8, len(REASONS))
    assert summary["reject_reasons"] == dict.fromkeys(sorted(REASONS), 1)
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert {(r["key"], r["reason"]) for r in rejects} == {(u.key, r) for u, r in zip(bad, REASONS, strict=True)}
    assert all(reject["detail"] and Path(reject["audio"]).suffix == ".wav" for reject in rejects)
    assert sorted(ShardIndex(out).column("key").to_pylist()) == [u.key for u in good]


SAID = ("You're No. 1!", "2 cats, 2 dogs.", " ", "Grüß dich!", "")


def test_what_a_transcript_is_said_as_is_in_the_index_and_in_the_tar(good, out, tmp_path, monkeypatch):
    """Of several row groups, by however many processes. A transcript that cannot be said is a reject."""
    monkeypatch.setattr(writer, "_ROWS_PER_GROUP", 2)
    texts = [*SAID, "🙂", "Привет", "Hallo"]
    languages = ["de" if text == "Grüß dich!" else "xx" if text == "Hallo" else "en" for text in texts]
    clips = [
        replace(clip, transcript=text, language=language)
        for clip, text, language in zip(good, texts, languages, strict=True)
    ]
    expected = {
        clip.key: symbols_of(clip.transcript, clip.language) if clip.transcript.strip() else () for clip in clips[:5]
    }
    config = replace(CONFIG, phonemes=True)
    summary = shard(clips, out, config, 1)
    shard(clips, tmp_path / "again", config, 2)
    assert files(tmp_path / "again") == files(out)

    index = ShardIndex(out)
    rows = {row["key"]: row for row in index.take(np.arange(len(index))).to_pylist()}
    assert {key: tuple(row["phonemes"]) for key, row in rows.items()} == expected
    assert rows["good-1"]["phonemes"] == ["t", "ˈuː", "k", "ˈa", "t", "s", ",", "t", "ˈuː", "d", "ˈɒ", "ɡ", "z", "."]
    numbers = range(len(index))
    assert index.num_phonemes.tolist() == [len(index.row(number)["phonemes"]) for number in numbers]
    assert [index.store.clip(index.place(number))[0]["phonemes"] for number in numbers] == [
        index.row(number)["phonemes"] for number in numbers
    ]
    assert pa.types.is_dictionary(index.column("phonemes").type.value_type)
    some = np.array([number for number in numbers if index.row(number)["key"] in ("good-1", "good-3")])
    assert Vocabulary.of_train(index, some).symbols == sorted({*symbols_of(SAID[1], "en"), *symbols_of(SAID[3], "de")})

    assert summary["reject_reasons"] == {"cannot be said": 3}
    details = {json.loads(line)["detail"] for line in (out / "rejects.jsonl").read_text().splitlines()}
    for text, why in (("🙂", "no letter and no digit"), ("Привет", "'en'"), ("Hallo", "language 'xx'")):
        assert any(detail.startswith(f"{text!r}: ") and why in detail for detail in details)


def test_phonemes_that_nobody_asks_for_are_not_made(good, out, tmp_path):
    clips = [replace(clip, transcript="🙂") for clip in good]
    shard(clips, out, CONFIG, 1)
    assert not ShardIndex(out).num_phonemes.any()
    jobs = [
        ShardJob(utterances_to_table(clips), Path("/"), config, str(out), str(tmp_path))
        for config in (CONFIG, replace(CONFIG, phonemes=True))
    ]
    assert len({fingerprint_of(split_into_units(job)) for job in jobs}) == 2


def test_the_duration_bounds_are_inside(tmp_path, out):
    for seconds in (0.2, 2.0):
        soundfile.write(tmp_path / f"{seconds}.wav", noise(seconds), 16000)
    clips = [utterance(tmp_path / f"{seconds}.wav", f"clip-{number}") for number, seconds in enumerate((0.2, 2.0))]
    assert shard(clips, out, CONFIG, 1)["clips"] == 2


@pytest.mark.parametrize(("rate", "fails"), [(0.0, True), (1 / 10, True), (1 / 9, False), (1.0, False)])
def test_more_rejects_than_allowed_fail_by_clip_and_reason(good, bad, out, rate, fails):
    config = replace(CONFIG, max_reject_rate=rate)
    clips = [*good, bad[REASONS.index("too short")]]
    if not fails:
        assert shard(clips, out, config, 1)["rejected"] == 1
        return
    with pytest.raises(PsclapError, match=r"1 of 9 clips rejected \(too short 1\)") as error:
        shard(clips, out, config, 1)
    assert "bad-too-short" in str(error.value)
    assert bad[REASONS.index("too short")].audio in str(error.value)
    assert "max_reject_rate" in str(error.value)
    assert not (out / "summary.json").exists()


def test_a_corpus_without_one_usable_clip_fails_at_any_rate(bad, out):
    with pytest.raises(PsclapError, match="7 of 7 clips rejected"):
        shard(bad, out, replace(CONFIG, max_reject_rate=1.0), 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key": "good-1"}, "1 keys occur twice, such as 'good-1'"),
        ({"key": "good.0"}, "key 'good.0' cannot name a file"),
        ({"key": "good/0"}, "key 'good/0' cannot name a file"),
        ({"key": "k" * 91}, "1 to 90 bytes"),
        ({"captions": ()}, "'good-0' has no caption and no transcript"),
        ({"captions": (Caption("combined", " \n"),), "transcript": " "}, "'good-0' has no caption and no transcript"),
        ({"intrinsic_tags": ("raspyy",)}, "unknown tag 'raspyy'.*did you mean raspy"),
        ({"situational_tags": ("shouted",)}, "unknown tag 'shouted'"),
    ],
)
def test_an_utterance_that_breaks_a_rule_is_named_before_anything_is_written(good, out, changes, said):
    good[0] = utterance(**{"path": good[0].audio, "key": "good-0", **changes})
    with pytest.raises(PsclapError, match=said):
        shard(good, out, CONFIG, 1)
    assert not list(out.iterdir())


def test_an_empty_corpus_is_refused(out):
    with pytest.raises(PsclapError, match="the corpus has no utterances"):
        shard([], out, CONFIG, 1)


def test_an_index_of_several_row_groups_reads_like_one_of_one(mini_corpus, mini_shards, out, monkeypatch):
    """A million clips are in fifteen groups, which have dictionaries of their own."""
    monkeypatch.setattr(writer, "_ROWS_PER_GROUP", 50)
    shard(mini_corpus[1], out, SHARDING)
    assert pq.ParquetFile(out / "index.parquet").num_row_groups == 4
    several, one = ShardIndex(out), ShardIndex(mini_shards)
    for name in ("key", "split", "shard", "intrinsic_tags", "captions.list.element.set", "num_samples"):
        assert several.column(name).to_pylist() == one.column(name).to_pylist()
    numbers = [3, 49, 50, 51, 160]
    assert several.take(numbers).to_pylist() == [one.row(number) for number in numbers]
    for split, caption_set in (("train", "intrinsic"), ("test", "combined")):
        views = [index.view(split, caption_set) for index in (several, one)]
        assert views[0].rows.tolist() == views[1].rows.tolist()
        assert several.captions(views[0]).to_pylist() == one.captions(views[1]).to_pylist()
    assert [several.place(number) for number in range(168)] == [one.place(number) for number in range(168)]


@pytest.mark.parametrize("name", ["index.parquet", "summary.json"])
def test_an_incomplete_folder_is_refused(damaged, name):
    (damaged / name).unlink()
    with pytest.raises(PsclapError, match=r"no shards in .*damaged: .* is missing; run `dvc repro shard`"):
        ShardIndex(damaged)


@pytest.mark.parametrize("summary", ["[]", "{}", '{"shards": 3}', '{"shards": {"a.tar": 5}, "sample_rate_hz": 16000}'])
def test_a_summary_of_another_version_is_refused(damaged, summary):
    (damaged / "summary.json").write_text(summary)
    with pytest.raises(PsclapError, match=r"summary\.json of .* is not of this version .*; rebuild it with"):
        ShardIndex(damaged)


def test_shards_may_be_links(mini_shards, tmp_path):
    """As DVC makes them where its cache is on another disk."""
    for path in mini_shards.iterdir():
        (tmp_path / path.name).symlink_to(path)
    index = ShardIndex(tmp_path)
    index.store.check_files()
    assert index.read_flac(3) == ShardIndex(mini_shards).read_flac(3)


def test_an_index_of_other_columns_is_refused(damaged):
    table = pq.read_table(damaged / "index.parquet")
    pq.write_table(table.drop_columns(["language"]), damaged / "index.parquet")
    with pytest.raises(PsclapError, match=r"has the columns .*expected"):
        ShardIndex(damaged)


def test_a_cut_off_or_missing_shard_is_named(damaged):
    index = ShardIndex(damaged)
    last = len(index) - 1
    shard = damaged / index.row(last)["shard"]
    with open(shard, "r+b") as stream:
        stream.truncate(index.row(last)["byte_offset"] + 100)
    with pytest.raises(PsclapError, match=rf"{shard.name} is damaged"):
        index.read_clip(last)
    shard.unlink()
    with pytest.raises(PsclapError, match=rf"cannot read shard .*{shard.name}: No such file"):
        index.read_clip(last)


@pytest.mark.parametrize(("place", "named"), [(0, "shard"), (0.5, "key"), (0.9, "key")])
def test_flipped_bytes_are_named_by_shard_or_clip(damaged, place, named):
    index = ShardIndex(damaged)
    row = index.row(5)
    with open(damaged / row["shard"], "r+b") as stream:
        stream.seek(row["byte_offset"] + int(place * row["byte_length"]))
        flipped = bytes(byte ^ 0xFF for byte in stream.read(4))
        stream.seek(-4, io.SEEK_CUR)
        stream.write(flipped)
    with pytest.raises(PsclapError, match=f"{row[named]}.*is damaged|damaged.*{row[named]}"):
        index.read_clip(5)
    assert len(index.read_clip(6)) == index.num_samples[6]
