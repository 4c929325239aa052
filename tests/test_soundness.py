"""Is this data set sound: for each finding a data set with exactly that fault, and a sound one with none."""

import json
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import psclap
from hypothesis import given
from hypothesis import strategies as st

from psclap import storage
from psclap.errors import PsclapError
from psclap.files import sha256_file
from psclap.schema import CAPTION_SETS, INDEX_SCHEMA, SPLITS, utterances_to_table
from psclap.soundness.card import CARD_NAME, PICTURE_NAME, write_card
from psclap.soundness.checks import check, duration_fences_s
from psclap.soundness.findings import Report
from psclap.soundness.integrity import check_location
from psclap.tags import KNOWN_TAGS

RATE_HZ = 16000
CLIP_BYTES = 100


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "key": f"clip-{number}",
        "speaker": f"speaker-{number}",
        "source": "made",
        "split": SPLITS[number % 3],
        "captions": [{"set": CAPTION_SETS[number % 3], "text": f"A voice of kind {number}."}],
        "intrinsic_tags": ["raspy"],
        "situational_tags": ["slow"],
        "classification_tags": [],
        "transcript": "Hello there.",
        "language": "en",
        "shard": f"shard-{number % 2}.tar",
        "byte_offset": 1000 * number,
        "byte_length": CLIP_BYTES,
        "num_samples": RATE_HZ + 100 * number,
        **changes,
    }


def rows(changes: dict[int, dict[str, Any]] | None = None, count: int = 12) -> list[dict[str, Any]]:
    """A sound data set, with `changes` to some of its rows."""
    return [row(number, **(changes or {}).get(number, {})) for number in range(count)]


def index(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def checked(changes: dict[int, dict[str, Any]], summary: dict[str, Any] | None = None) -> Report:
    return check(index(rows(changes)), RATE_HZ, summary)


def found(report: Report) -> dict[str, tuple[str, int, tuple[str, ...]]]:
    return {finding.name: (finding.severity, finding.count, finding.examples) for finding in report.findings}


def test_a_sound_data_set_has_no_findings() -> None:
    report = checked({})
    assert report.findings == ()
    assert report.sound
    assert report.verdict == "sound"


ALL = range(12)
FAULTS: list[tuple[str, dict[int, dict[str, Any]], str, int, tuple[str, ...]]] = [
    ("duplicate keys", {3: {"key": "clip-0"}, 4: {"key": "clip-0"}}, "error", 1, ("clip-0",)),
    ("clips without key", {3: {"key": " "}, 4: {"key": None}}, "error", 2, (" ", "")),
    ("speakers in several splits", {1: {"speaker": "speaker-0"}}, "error", 1, ("made/speaker-0",)),
    (
        "speakers in several splits",
        {number: {"speaker": "narrator"} for number in ALL},
        "warning",
        1,
        ("made/narrator",),
    ),
    ("clips without speaker", {0: {"speaker": ""}, 1: {"speaker": None}}, "warning", 2, ("clip-0", "clip-1")),
    ("unknown intrinsic tags", {5: {"intrinsic_tags": ["raspy", "raspyy"]}}, "error", 1, ("raspyy",)),
    ("unknown situational tags", {5: {"situational_tags": ["slow", "Slow"]}}, "error", 1, ("Slow",)),
    ("unknown classification tags", {5: {"classification_tags": ["gruff"]}}, "error", 1, ("gruff",)),
    ("unknown splits", {3: {"split": "dev"}, 6: {"split": None}}, "error", 2, ("dev", "")),
    ("unknown caption sets", {2: {"captions": [{"set": "mood", "text": "Sad."}]}}, "error", 1, ("mood",)),
    ("clips without caption", {2: {"captions": []}, 3: {"captions": None}}, "warning", 2, ("clip-2", "clip-3")),
    ("blank captions", {7: {"captions": [{"set": "combined", "text": "\t "}] * 2}}, "error", 1, ("clip-7",)),
    ("clips without samples", {1: {"num_samples": 0}, 2: {"num_samples": -5}}, "error", 2, ("clip-1", "clip-2")),
    ("impossible byte ranges", {1: {"byte_offset": -1}, 2: {"byte_length": 0}}, "error", 2, ("clip-1", "clip-2")),
    ("overlapping byte ranges", {4: {"byte_offset": 2000 + CLIP_BYTES - 1}}, "error", 1, ("clip-4",)),
    ("duration outliers", {8: {"num_samples": 60 * RATE_HZ}}, "warning", 1, ("clip-8: 60.00 s",)),
    ("missing splits", {number: {"split": "train"} for number in ALL}, "warning", 2, ("val", "test")),
    ("clips without transcript", {9: {"transcript": "  "}}, "warning", 1, ("clip-9",)),
    ("rare tags", {9: {"intrinsic_tags": ["raspy", "deep"]}}, "warning", 1, ("deep: 1",)),
]


@pytest.mark.parametrize(
    ("name", "changes", "severity", "count", "examples"), FAULTS, ids=[fault[0] for fault in FAULTS]
)
def test_each_fault_is_found_and_nothing_else(
    name: str, changes: dict[int, dict[str, Any]], severity: str, count: int, examples: tuple[str, ...]
) -> None:
    report = checked(changes)
    assert found(report) == {name: (severity, count, examples)}
    assert report.sound == (severity == "warning")
    assert report.findings[0].advice
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "changes",
    [
        {1: {"speaker": "speaker-0", "source": "other"}},
        {3: {"speaker": "speaker-0"}},
        {4: {"byte_offset": 2000 + CLIP_BYTES}},
        {1: {"byte_offset": 0}},
        {5: {"classification_tags": ["hushed"]}},
        {number: {"num_samples": RATE_HZ} for number in ALL},
    ],
    ids=["namesake", "same split", "touching ranges", "another shard", "candidate tag", "one length"],
)
def test_what_only_looks_like_a_fault_is_none(changes: dict[int, dict[str, Any]]) -> None:
    assert checked(changes).findings == ()


def test_a_clip_needs_a_caption_or_a_transcript() -> None:
    assert found(checked({2: {"captions": [], "transcript": " "}})) == {
        "clips without caption and transcript": ("error", 1, ("clip-2",)),
        "clips without transcript": ("warning", 1, ("clip-2",)),
    }


def test_an_empty_table_is_not_sound() -> None:
    assert found(check(index([]), RATE_HZ)) == {
        "no clips": ("error", 1, ()),
        "missing splits": ("warning", 3, SPLITS),
    }


def test_a_caption_of_very_many_clips_is_a_warning() -> None:
    same = {"captions": [{"set": "combined", "text": "A voice."}] * 2}
    many = dict.fromkeys(range(101), same)
    assert found(check(index(rows(many, 300)), RATE_HZ)) == {
        "captions of very many clips": ("warning", 1, ("101 clips: A voice.",))
    }
    del many[0]
    assert check(index(rows(many, 300)), RATE_HZ).findings == ()


def test_the_summary_is_compared_and_its_rejects_reported() -> None:
    assert checked({}, {"clips": 12, "rejected": 0}).findings == ()
    assert set(found(checked({}, {"clips": 13}))) == {"wrong summary"}
    report = checked({}, {"clips": 12, "rejected": 4, "reject_reasons": {"silent": 3, "too short": 1}})
    assert found(report) == {"rejects": ("warning", 4, ("silent: 3", "too short: 1"))}
    assert report.statistics["rejects"] == {"count": 4, "rate": 0.25, "reasons": {"silent": 3, "too short": 1}}


def test_errors_come_first_and_only_some_examples_are_shown() -> None:
    report = checked({number: {"transcript": "", "key": f"clip-{number // 2}"} for number in ALL})
    assert [finding.severity for finding in report.findings] == ["error", "warning"]
    assert [(finding.count, len(finding.examples)) for finding in report.findings] == [(6, 5), (12, 5)]
    assert report.verdict == "not sound: 1 error, 1 warning"


def test_extra_columns_and_dictionary_columns_are_taken_missing_and_wrong_ones_named() -> None:
    table = index(rows())
    wider = table.append_column("more", pa.array(range(12), pa.int32()))
    wider = wider.set_column(0, "key", wider["key"].dictionary_encode())
    assert check(wider, RATE_HZ) == check(table, RATE_HZ)
    assert check(pa.concat_tables([table[:5], table[5:5], table[5:]]), RATE_HZ) == check(table, RATE_HZ)
    with pytest.raises(PsclapError, match="speaker, language are missing"):
        check(table.drop_columns(["speaker", "language"]))
    with pytest.raises(PsclapError, match="'captions' is of type int64"):
        check(table.set_column(4, "captions", pa.array(range(12))))


def test_the_fences_are_tukeys_on_the_logarithm() -> None:
    durations_s = np.exp(np.random.default_rng(0).normal(1, 0.5, 1000))
    low, high = duration_fences_s(durations_s)
    lower, upper = (float(np.quantile(np.log(durations_s), q)) for q in (0.25, 0.75))
    assert np.log([low, high]) == pytest.approx([4 * lower - 3 * upper, 4 * upper - 3 * lower])


texts = st.sampled_from(["", " ", "a", "b b", "c  c c"])
tag_lists = st.lists(st.sampled_from(["raspy", "slow", "Slow", "male"]), max_size=3)
random_row = st.fixed_dictionaries(
    {
        "key": st.sampled_from("pqrstuvw"),
        "speaker": st.sampled_from("xyz"),
        "source": st.sampled_from("mn"),
        "split": st.sampled_from([*SPLITS, "dev"]),
        "captions": st.lists(
            st.fixed_dictionaries({"set": st.sampled_from([*CAPTION_SETS, "mood"]), "text": texts}), max_size=3
        ),
        "intrinsic_tags": tag_lists,
        "situational_tags": tag_lists,
        "classification_tags": tag_lists,
        "transcript": texts,
        "language": st.sampled_from(["en", "de"]),
        "shard": st.sampled_from(["1.tar", "2.tar"]),
        "byte_offset": st.integers(0, 20),
        "byte_length": st.integers(1, 5),
        "num_samples": st.integers(0, 3 * RATE_HZ),
    }
)


def walk_findings(rows: list[dict[str, Any]]) -> dict[str, int]:
    """The obvious way to count the faults, clip by clip."""
    splits_of = defaultdict(set)
    for r in rows:
        splits_of[r["source"], r["speaker"]].add(r["split"])
    keys = Counter(r["key"] for r in rows)
    counts = {
        "duplicate keys": sum(count > 1 for count in keys.values()),
        "speakers in several splits": sum(len(splits) > 1 for splits in splits_of.values()),
        "unknown intrinsic tags": len({t for r in rows for t in r["intrinsic_tags"]} - KNOWN_TAGS),
        "unknown situational tags": len({t for r in rows for t in r["situational_tags"]} - KNOWN_TAGS),
        "unknown classification tags": len({t for r in rows for t in r["classification_tags"]} - KNOWN_TAGS),
        "unknown splits": len({r["split"] for r in rows} - set(SPLITS)),
        "unknown caption sets": len({c["set"] for r in rows for c in r["captions"]} - set(CAPTION_SETS)),
        "clips without caption and transcript": sum(not r["captions"] and not r["transcript"].strip() for r in rows),
        "clips without caption": sum(not r["captions"] and bool(r["transcript"].strip()) for r in rows),
        "blank captions": sum(any(not c["text"].strip() for c in r["captions"]) for r in rows),
        "clips without samples": sum(r["num_samples"] <= 0 for r in rows),
        "missing splits": len(set(SPLITS) - {r["split"] for r in rows}),
        "clips without transcript": sum(not r["transcript"].strip() for r in rows),
    }
    return {name: count for name, count in counts.items() if count}


def walk_groups(rows: list[dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    groups = defaultdict(list)
    for r in rows:
        groups[r[name]].append(r)
    return {
        value: {
            "clips": len(members),
            "hours": round(sum(r["num_samples"] for r in members) / RATE_HZ / 3600, 4),
            "speakers": len({(r["source"], r["speaker"]) for r in members}),
        }
        for value, members in groups.items()
    }


def walk_captions(rows: list[dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    of_set = defaultdict(list)
    for r in rows:
        for caption in r["captions"]:
            of_set[caption["set"]].append((r["number"], caption["text"]))
    return {
        name: (
            len(pairs),
            len({text for _, text in pairs}),
            len({number for number, _ in pairs}),
            min(len(text.split()) for _, text in pairs),
            max(len(text.split()) for _, text in pairs),
        )
        for name, pairs in of_set.items()
    }


def overlaps(rows: list[dict[str, Any]]) -> bool:
    ranges = [(r["shard"], r["byte_offset"], r["byte_offset"] + r["byte_length"]) for r in rows]
    return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for number, a in enumerate(ranges) for b in ranges[:number])


@given(st.lists(random_row, min_size=1, max_size=12))
def test_every_count_is_that_of_a_slow_walk(rows: list[dict[str, Any]]) -> None:
    report = check(index(rows), RATE_HZ)
    counts = {finding.name: finding.count for finding in report.findings}
    assert ("overlapping byte ranges" in counts) == overlaps(rows)
    for name in ("overlapping byte ranges", "rare tags", "duration outliers"):
        counts.pop(name, None)
    assert counts == walk_findings(rows)

    numbers = report.statistics
    for plural, name in (("splits", "split"), ("sources", "source"), ("languages", "language")):
        assert numbers[plural] == walk_groups(rows, name)
    for level in ("intrinsic", "situational"):
        expected = Counter(tag for r in rows for tag in r[f"{level}_tags"])
        assert {tag: entry["count"] for tag, entry in numbers["tags"][level].items()} == expected
    keys = ("total", "distinct", "clips", "min_words", "max_words")
    assert {name: tuple(entry[key] for key in keys) for name, entry in numbers["captions"].items()} == walk_captions(
        [{**r, "number": number} for number, r in enumerate(rows)]
    )
    splits_of = defaultdict(set)
    for r in rows:
        for caption in r["captions"]:
            splits_of[caption["text"]].add(r["split"])
    assert numbers["captions_in_several_splits"] == sum(len(splits) > 1 for splits in splits_of.values())


@pytest.fixture
def shards(mini_shards: Path, tmp_path: Path) -> Path:
    """A copy of the demo corpus' shards, to be damaged."""
    return Path(shutil.copytree(mini_shards, tmp_path / "shards"))


def test_the_demo_corpus_is_sound(mini_shards: Path) -> None:
    report = check_location(mini_shards, deep=True)
    assert report.findings == ()
    summary = json.loads((mini_shards / "summary.json").read_text())
    assert report.statistics["splits"] == summary["splits"]
    assert report.statistics["clips"] == summary["clips"] == 168
    assert check_location(mini_shards / "index.parquet") == check_location(mini_shards) == report


def test_a_manifest_is_checked_without_durations(mini_corpus: tuple[Path, Any], tmp_path: Path) -> None:
    pq.write_table(utterances_to_table(mini_corpus[1]), tmp_path / "utterances.parquet")
    report = check_location(tmp_path)
    assert report == check_location(tmp_path / "utterances.parquet")
    assert report.findings == ()
    assert report.statistics["durations_s"] is None
    assert report.statistics["splits"]["train"] == {"clips": 96, "hours": None, "speakers": 96}


def test_missing_and_cut_off_shards_are_named(shards: Path) -> None:
    (shards / "val-00000.tar").unlink()
    rows = pq.read_table(shards / "index.parquet").to_pylist()
    end = max(r["byte_offset"] + r["byte_length"] for r in rows if r["shard"] == "test-00001.tar")
    os.truncate(shards / "test-00001.tar", end)
    assert found(check_location(shards)) == {"missing shards": ("error", 1, ("val-00000.tar",))}
    os.truncate(shards / "test-00001.tar", end - 1)
    report = check_location(shards)
    assert set(found(report)) == {"missing shards", "shards cut off"}
    assert report.findings[1].examples == (f"test-00001.tar: {end - 1} bytes, its clips end at {end}",)


def test_deep_finds_flipped_bytes_that_the_sizes_do_not_show(shards: Path) -> None:
    clip = pq.read_table(shards / "index.parquet").to_pylist()[5]
    with open(shards / clip["shard"], "r+b") as stream:
        stream.seek(clip["byte_offset"])
        stream.write(b"\0\0\0\0")
    assert check_location(shards).findings == ()
    report = check_location(shards, deep=True)
    assert set(found(report)) == {"changed files", "damaged clips"}
    assert found(report)["changed files"] == ("error", 1, (clip["shard"],))
    (example,) = report.findings[1].examples
    assert example.startswith(f"{clip['key']}: unreadable")


def test_deep_finds_a_wrong_number_of_samples_and_a_changed_index(shards: Path) -> None:
    table = pq.read_table(shards / "index.parquet")
    num_samples = table["num_samples"].to_pylist()
    num_samples[3] += 1
    place = table.schema.names.index("num_samples")
    pq.write_table(table.set_column(place, "num_samples", pa.array(num_samples)), shards / "index.parquet")
    report = check_location(shards, deep=True)
    assert found(report)["changed files"] == ("error", 1, ("index.parquet",))
    key = table["key"][3].as_py()
    expected = f"{key}: {num_samples[3] - 1} samples at 16000 Hz, the index says {num_samples[3]} at 16000 Hz"
    assert found(report)["damaged clips"] == ("error", 1, (expected,))


def test_a_data_set_behind_a_url_is_checked_as_a_local_one(shards: Path) -> None:
    filesystem, bare = storage.resolve("memory://soundness/shards")
    filesystem.put(f"{shards}/", f"{bare}/", recursive=True)
    try:
        assert check_location("memory://soundness/shards", deep=True) == check_location(shards)
        filesystem.rm(f"{bare}/val-00000.tar")
        assert found(check_location("memory://soundness/shards/index.parquet")) == {
            "missing shards": ("error", 1, ("val-00000.tar",))
        }
    finally:
        filesystem.rm(bare, recursive=True)


def test_the_command_says_sound_in_tables_and_in_json(mini_shards: Path) -> None:
    result = psclap("data", "check", mini_shards)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "sound"
    assert "| train | 96    | 0.08  | 96       |" in result.stdout
    result = psclap("data", "check", mini_shards, "--json", "--deep")
    assert result.returncode == 0
    assert json.loads(result.stdout) == {"path": str(mini_shards), **check_location(mini_shards).to_json()}


def test_the_command_ends_with_1_where_the_data_set_is_not_sound(shards: Path) -> None:
    (shards / "val-00000.tar").unlink()
    result = psclap("data", "check", shards)
    assert (result.returncode, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "not sound: 1 error"
    assert lines[2:4] == ["error    missing shards: 1 shard", "           val-00000.tar"]
    assert "dvc repro" in lines[4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, "holds neither index.parquet nor utterances.parquet"),
        ("nowhere.parquet", None, "there is no such file"),
        ("nofs://bucket/shards", None, "cannot reach nofs://"),
        ("index.parquet", b"PAR1 nonsense", "cannot read"),
        ("index.parquet", b"", "cannot read"),
        ("summary.json", b"{", "is no summary"),
        ("summary.json", b"[]", "is no summary"),
        ("summary.json", b'{"sample_rate_hz": 0}', "expected a positive number"),
        ("summary.json", None, "is missing"),
    ],
)
def test_what_cannot_be_read_ends_with_2_and_a_sentence(
    shards: Path, name: str, content: bytes | None, message: str
) -> None:
    path: Path | str = shards
    if name == "summary.json" and content is None:
        (shards / name).unlink()
    elif content is None:
        path = name if "://" in name else shards / name
    else:
        (shards / name).write_bytes(content)
    result = psclap("data", "check", path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_folder_in_place_of_a_shard_ends_with_2_and_its_name(shards: Path) -> None:
    (shards / "val-00000.tar").unlink()
    (shards / "val-00000.tar").mkdir()
    result = psclap("data", "check", shards, "--deep")
    assert (result.returncode, result.stdout) == (2, "")
    assert "val-00000.tar" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_card_shows_the_data_set_and_is_the_same_every_time(shards: Path) -> None:
    table = pq.read_table(shards / "index.parquet")
    summary = json.loads((shards / "summary.json").read_text())
    summary |= {"rejected": 56, "reject_reasons": {"silent": 56}}
    report = write_card(shards, table, summary)
    assert report == check(table, RATE_HZ, summary)
    card, picture = (shards / CARD_NAME).read_text(), (shards / PICTURE_NAME).read_bytes()
    for line in (
        "168 clips, 0.14 hours, 144 speakers.",
        "Sound: 1 warning.",
        "- warning: rejects: 56 clips. rejects.jsonl beside the index names each clip.",
        "| silent | 56    |",
    ):
        assert line in card.splitlines()
    assert sha256_file(shards / "index.parquet") in card
    assert picture.startswith(b"\x89PNG")
    assert b"Software" not in picture
    write_card(shards, table, summary)
    assert (shards / CARD_NAME).read_text() == card
    assert (shards / PICTURE_NAME).read_bytes() == picture


def test_a_card_is_drawn_of_many_sources_tags_and_odd_names(tmp_path: Path) -> None:
    tags = sorted(KNOWN_TAGS)
    changes = {
        number: {"source": f"source_{number % 20}$", "intrinsic_tags": [tags[number % len(tags)]]}
        for number in range(200)
    }
    write_card(tmp_path, index(rows(changes, 200)), {"sample_rate_hz": RATE_HZ, "shards": {}})
    assert (tmp_path / PICTURE_NAME).stat().st_size > 10_000
    assert "| source_19$ | 10    |" in (tmp_path / CARD_NAME).read_text()
