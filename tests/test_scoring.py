"""Batch scoring without Ray: windows, inputs, items, blocks, jobs, and clips that kill."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import noise, save_small_model, wav

from psclap import audio
from psclap.config import ScoreOptions
from psclap.embedding import Embedder
from psclap.errors import AudioError, ConfigError, PsclapError
from psclap.scoring import tables
from psclap.scoring.attempts import Attempt
from psclap.scoring.block import BlockScorer
from psclap.scoring.inputs import open_input
from psclap.scoring.items import count_items, read_block, write_items
from psclap.scoring.job import ScoreJob, ScoringModel
from psclap.scoring.reading import sources
from psclap.scoring.windows import cut
from psclap.strict import from_mapping
from psclap.tags import ATTRIBUTES

RATE_HZ = 16000
OPTIONS = ScoreOptions(
    captions=("a voice", "a *deep*, “raspy” voice"), attributes=("pitch-level", "rate"), window_s=1.0
)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(save_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven clips in two folders: one long, one too short, one cut off, one that is text."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "b").mkdir()
    for number, seconds in enumerate([0.5, 0.7, 2.6, 0.01]):
        (folder / f"{number}.wav").write_bytes(wav(noise(seconds, seed=number)))
    (folder / "b" / "cut.flac").write_bytes(audio.encode_flac(noise(1.5), RATE_HZ)[:-9000])
    (folder / "b" / "text.mp3").write_text("no sound")
    (folder / "b" / "ünïcode ☃.wav").write_bytes(wav(noise(0.9, 22050, seed=9), 22050))
    (folder / "notes.txt").write_text("no audio")
    return folder


def items_of(location: object, **options: Any) -> pa.Table:
    return pa.concat_tables(open_input(str(location), **options).tables())


def scorer_of(embedder: Embedder, location: object, options: ScoreOptions = OPTIONS) -> BlockScorer:
    return BlockScorer(embedder, options, "models:/small/1", open_input(str(location)).root)


def embeddings(table: pa.Table) -> np.ndarray:
    return np.array(table["embedding"].to_pylist())


# Windows


def windows_of_whole(wave: np.ndarray, window: int, hop: int) -> list[tuple[int, list[float]]]:
    if len(wave) <= window:
        return [(0, wave.tolist())]
    starts = [*range(0, len(wave) - window + 1, hop)]
    if starts[-1] + window < len(wave):
        starts.append(len(wave) - window)
    return [(start, wave[start : start + window].tolist()) for start in starts]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 25), st.data())
@settings(max_examples=300)
def test_windows_cut_while_decoding_are_those_of_the_whole(
    lengths: list[int], window: int, data: st.DataObject
) -> None:
    hop = data.draw(st.integers(1, window))
    wave = np.arange(sum(lengths), dtype=np.float32)
    blocks = np.split(wave, np.cumsum(lengths)[:-1])
    assert [(start, part.tolist()) for start, part in cut(blocks, window, hop)] == windows_of_whole(wave, window, hop)
    ((start, whole),) = cut(blocks, None, 0)
    assert (start, whole.tolist()) == (0, wave.tolist())


# Inputs


def test_audio_files_below_a_folder_are_found_in_order(corpus: Path) -> None:
    found = items_of(corpus)
    assert found["key"].to_pylist() == [
        *("0.wav", "1.wav", "2.wav", "3.wav", "b/cut.flac", "b/text.mp3", "b/ünïcode ☃.wav")
    ]
    assert found["audio"].to_pylist() == found["key"].to_pylist()
    assert found["num_bytes"].to_pylist() == [(corpus / key).stat().st_size for key in found["key"].to_pylist()]
    assert open_input(str(corpus)).root == str(corpus)


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("*.wav", ["0.wav", "1.wav", "2.wav", "3.wav"]),
        ("[01].wav", ["0.wav", "1.wav"]),
        ("**/*.mp3", ["b/text.mp3"]),
        ("b/*", ["cut.flac", "text.mp3", "ünïcode ☃.wav"]),
        ("2.wav", ["2.wav"]),
    ],
)
def test_a_pattern_names_files(corpus: Path, pattern: str, keys: list[str]) -> None:
    found = open_input(str(corpus / pattern))
    table = pa.concat_tables(found.tables())
    assert table["key"].to_pylist() == keys
    assert all((Path(found.root) / name).is_file() for name in table["audio"].to_pylist())


def test_a_remote_folder_is_as_a_local_one(corpus: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(corpus), "/remote-corpus", recursive=True)
    found = open_input("memory://remote-corpus")
    assert pa.concat_tables(found.tables()) == items_of(corpus)
    assert found.root == "memory:///remote-corpus"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no audio file"),
        ({"x.txt": "x"}, r"holds no audio file .*no shards .*is no manifest"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, content: dict[str, str], message: str) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(PsclapError, match=message):
        items_of(tmp_path)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PsclapError, match="holds no audio file"):
        items_of(tmp_path / "absent")
    with pytest.raises(PsclapError, match="there is no manifest"):
        items_of(tmp_path / "absent.csv")
    with pytest.raises(PsclapError, match=r"summary\.json is missing"):
        items_of(tmp_path, split="test")


MANIFEST = [{"audio": f"b/{n}.wav", "speaker": f"s{n}", "age": n} for n in range(5)]


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = {".csv": ",", ".tsv": "\t"}[path.suffix]
        lines = [separator.join(rows[0]), *(separator.join(str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_manifest_takes_its_columns_along(tmp_path: Path, suffix: str) -> None:
    path = write_manifest(tmp_path / f"clips{suffix}", MANIFEST)
    found = open_input(str(path))
    table = pa.concat_tables(found.tables())
    assert table.to_pylist() == [{"key": row["audio"], **row} for row in MANIFEST]
    assert found.root == str(tmp_path)
    assert open_input(str(path), audio_root="s3://bucket/audio").root == "s3://bucket/audio"


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_keys_of_digits_stay_as_they_are(tmp_path: Path, suffix: str) -> None:
    rows = [{"key": "0001", "audio": "007", "age": 3}, {"key": "1", "audio": "7", "age": 4}]
    found = items_of(write_manifest(tmp_path / f"clips{suffix}", rows))
    assert found.to_pylist() == rows


def test_options_of_another_kind_of_input_are_refused(tmp_path: Path, corpus: Path) -> None:
    manifest = write_manifest(tmp_path / "clips.csv", MANIFEST)
    with pytest.raises(PsclapError, match="split 'test' is an option of shards"):
        open_input(str(manifest), split="test")
    for name in ("audio_column", "audio_root"):
        with pytest.raises(PsclapError, match=f"{name} 'x' is an option of manifests"):
            open_input(str(corpus), **{name: "x"})


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"path": "a.wav"}], {}, r"has no column 'audio', it has \['path'\]"),
        ([{"audio": "a.wav"}, {"audio": "a.wav"}], {}, "1 keys of .* stand in several rows"),
        ([{"audio": "a.wav", "key": "x"}, {"audio": "b.wav", "key": "x"}], {}, "1 keys of"),
        ([{"audio": "a.wav", "embedding": 1}], {}, r"has the columns \['embedding'\], which scoring makes itself"),
        ([{"audio": "a.wav", "tag_rate": "x"}], {}, r"has the columns \['tag_rate'\]"),
        ([{"audio": "a.wav", "path": "b.wav"}], {"audio_column": "path"}, "rename audio"),
        ([{"audio": "a.wav"}, {"audio": None}], {}, "has rows without 'audio'"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, str], message: str
) -> None:
    with pytest.raises(PsclapError, match=message):
        items_of(write_manifest(tmp_path / "clips.jsonl", rows), **options)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "clips.parquet", MANIFEST)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(PsclapError, match="is no readable manifest"):
        items_of(path)


# Items


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_blocks_hold_the_rows_in_order(sizes: list[int], block_clips: int) -> None:
    output = "memory://items-test"
    rows = pa.table({"key": [str(n) for n in range(sum(sizes))], "audio": ["x"] * sum(sizes)}).cast(
        pa.schema([("key", pa.string()), ("audio", pa.string())])
    )
    parts = [rows.slice(sum(sizes[:n]), size) for n, size in enumerate(sizes)]
    items = write_items(parts, block_clips, output)
    assert items == count_items([rows], block_clips)
    assert (items.clips, items.blocks) == (len(rows), -(-len(rows) // block_clips))
    if items.blocks:
        blocks = [read_block(output, number) for number in range(items.blocks)]
        assert pa.concat_tables(blocks) == rows
        assert {len(block) for block in blocks[:-1]} <= {block_clips}


def test_the_hash_tells_other_clips(corpus: Path) -> None:
    table = items_of(corpus)
    other = table.set_column(0, "key", pa.array([*table["key"].to_pylist()[:-1], "other"]))
    assert count_items([table], 2).sha256 != count_items([other], 2).sha256
    with pytest.raises(PsclapError, match="differ in their columns"):
        count_items([table, table.drop_columns("num_bytes")], 2)


# Reading


def test_neighbours_are_fetched_together_and_each_fault_is_its_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    data = np.random.default_rng(0).bytes(300_000)
    memory.pipe("/reading/shard.tar", data)
    asked = []
    cat_file = type(memory).cat_file
    monkeypatch.setattr(
        type(memory), "cat_file", lambda self, path, **range_: asked.append(range_) or cat_file(self, path, **range_)
    )
    url = "memory://reading/shard.tar"
    ranges = [(0, 1000), (1512, 2000), (3512, 10), (200_000, 5), (299_990, 10), (299_995, 10)]
    references = [f"{url}#bytes={offset}+{length}" for offset, length in ranges]
    found = [*sources([*references, "memory://reading/absent.wav", url])]
    assert found[:5] == [data[offset : offset + length] for offset, length in ranges[:5]]
    assert {"start": 0, "end": 3522} in asked
    assert [error.reason for error in found[5:7] if isinstance(error, AudioError)] == ["truncated", "missing"]
    assert found[7] == data


def test_a_storage_that_does_not_answer_is_tried_again_and_blames_no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/outage/shard.tar", b"0123456789" * 10)
    monkeypatch.setattr("psclap.scoring.reading._PAUSES_S", (0.0, 0.0))
    failures = 0

    def fails(error: Exception, times: float) -> Callable[..., Any]:
        whole = type(memory).cat_file

        def cat_file(self: Any, path: str, **options: Any) -> bytes:
            nonlocal failures
            failures += 1
            if failures <= times:
                raise error
            return whole(self, path, **options)

        return cat_file

    def no_answer(self: Any, path: str) -> int:
        raise ConnectionError("no answer")

    reference = "memory://outage/shard.tar#bytes=10+10"
    monkeypatch.setattr(type(memory), "size", no_answer)
    monkeypatch.setattr(type(memory), "cat_file", fails(ConnectionError("no answer"), 2))
    assert [*sources([reference])] == [b"0123456789"]
    failures = 0
    monkeypatch.setattr(type(memory), "cat_file", fails(ConnectionError("no answer"), np.inf))
    with pytest.raises(PsclapError, match=r"cannot reach memory://outage/shard\.tar.*no answer"):
        [*sources([reference])]
    assert failures == 3
    monkeypatch.setattr(type(memory), "cat_file", fails(PermissionError("not yours"), np.inf))
    (found,) = sources(["memory://outage/shard.tar"])
    assert isinstance(found, AudioError)
    assert found.reason == "forbidden"


# Blocks


def test_a_block_is_what_the_embedder_makes_of_its_clips(embedder: Embedder, corpus: Path) -> None:
    scored = scorer_of(embedder, corpus).score(items_of(corpus))
    good = ["0.wav", "1.wav", "2.wav", "b/ünïcode ☃.wav"]
    assert scored.clips["key"].to_pylist() == good
    assert scored.clips["num_windows"].to_pylist() == [1, 1, 3, 1]
    assert scored.clips["duration_s"].to_pylist() == pytest.approx([0.5, 0.7, 2.6, 0.9], abs=1e-4)
    assert {*scored.clips["model"].to_pylist()} == {"models:/small/1"}
    found = embeddings(scored.clips)
    short = [0, 1, 3]
    np.testing.assert_allclose(found[short], embedder.embed_files([corpus / good[n] for n in short]), atol=1e-6)

    parts = embedder.embed_audio([noise(2.6, seed=2)[start : start + RATE_HZ] for start in (0, RATE_HZ, 25600)])
    assert scored.windows["key"].to_pylist() == ["2.wav"] * 3
    assert scored.windows["start_s"].to_pylist() == [0.0, 1.0, 1.6]
    assert scored.windows["end_s"].to_pylist() == [1.0, 2.0, 2.6]
    np.testing.assert_allclose(embeddings(scored.windows), parts, atol=1e-6)
    np.testing.assert_allclose(found[2], parts.mean(0) / np.linalg.norm(parts.mean(0)), atol=1e-6)

    cosines = found @ embedder.embed_text(OPTIONS.captions).T
    scores = np.array([[*row.values()] for row in scored.clips["scores"].to_pylist()])
    assert [*scored.clips["scores"][0].as_py()] == [*OPTIONS.captions]
    np.testing.assert_allclose(scores, cosines, atol=1e-6)
    tags = found @ embedder.embed_tags(ATTRIBUTES["pitch-level"]).T
    assert scored.clips["tag_pitch_level"].to_pylist() == [ATTRIBUTES["pitch-level"][n] for n in tags.argmax(1)]
    np.testing.assert_allclose(scored.clips["tag_pitch_level_score"].to_numpy(), tags.max(1), atol=1e-6)

    assert [(row["key"], row["reason"]) for row in scored.rejects.to_pylist()] == [
        ("3.wav", "too short"),
        ("b/cut.flac", "truncated"),
        ("b/text.mp3", "unreadable"),
    ]
    assert scored.statistics.clips == 4
    assert scored.statistics.rejects == {"too short": 1, "truncated": 1, "unreadable": 1}


def test_a_clip_that_breaks_off_after_some_windows_leaves_none(embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "0.flac").write_bytes(audio.encode_flac(noise(300.0), RATE_HZ)[:-50_000])
    (tmp_path / "1.wav").write_bytes(wav(noise(0.5)))
    scored = scorer_of(embedder, tmp_path).score(items_of(tmp_path))
    assert scored.clips["key"].to_pylist() == ["1.wav"]
    assert len(scored.windows) == 0
    assert scored.rejects["key"].to_pylist() == ["0.flac"]


def test_a_block_of_rejects_alone_has_the_same_columns(embedder: Embedder, corpus: Path) -> None:
    scorer, items = scorer_of(embedder, corpus), items_of(corpus)
    whole, none = scorer.score(items), scorer.score(items.slice(3, 3))
    assert len(none.clips) == 0
    assert none.clips.schema == whole.clips.schema
    assert none.windows.schema == whole.windows.schema


@pytest.mark.parametrize(("kind", "type_"), [("float32", pa.float32()), ("float16", pa.float16())])
def test_embeddings_are_lists_of_a_fixed_size(embedder: Embedder, corpus: Path, kind: Any, type_: Any) -> None:
    scored = scorer_of(embedder, corpus, replace(OPTIONS, embedding_type=kind)).score(items_of(corpus))
    assert scored.clips["embedding"].type == pa.list_(type_, embedder.dim)


def test_without_windows_clips_are_embedded_whole(embedder: Embedder, corpus: Path) -> None:
    scored = scorer_of(embedder, corpus, replace(OPTIONS, window_s=None)).score(items_of(corpus))
    assert scored.clips["num_windows"].to_pylist() == [1] * 4
    np.testing.assert_allclose(embeddings(scored.clips)[2], embedder.embed_files([corpus / "2.wav"])[0], atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"captions": ["x", "x"]}, r"captions \['x'\] stand there twice"),
        ({"captions": [" "]}, "say nothing"),
        ({"attributes": ["colour"]}, r"attributes \['colour'\] must be among"),
        ({"window_s": 10.0, "hop_s": 20.0}, "hop_s 20 must be at most window_s"),
        ({"window_s": None, "hop_s": 2.0}, "hop_s 2 must be at most"),
        ({"window_s": 0.0}, "window_s: 0.0 must be greater than 0"),
        ({"embedding_type": "int8"}, "'int8' must be one of float32, float16"),
        ({"block_clips": 0}, "must be at least 1"),
    ],
)
def test_options_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(ScoreOptions, values, "options")


def test_windows_that_the_model_cannot_hear_are_refused(embedder: Embedder, corpus: Path) -> None:
    with pytest.raises(PsclapError, match=r"hop_s 1e-05 is less than a sample"):
        scorer_of(embedder, corpus, replace(OPTIONS, hop_s=1e-5))
    with pytest.raises(PsclapError, match=r"window_s 0\.01: too short"):
        scorer_of(embedder, corpus, replace(OPTIONS, window_s=0.01))


# Jobs


def job_of(corpus: object, output: object, options: ScoreOptions = OPTIONS, model: str = "models:/small/1") -> ScoreJob:
    return ScoreJob(ScoringModel(model, "", "0" * 64), open_input(str(corpus)), str(output), options)


def run_job(job: ScoreJob, embedder: Embedder, blocks: int | None = None, **options: Any) -> dict[str, Any]:
    """As the pipeline, in this process; with `blocks`, it stops after some."""
    items = job.begin(**options)
    scorer = BlockScorer(embedder, job.options, job.model.name, job.input.root)
    left = sorted({*range(items.blocks)} - {*tables.done_blocks(job.output)})
    for number in left[:blocks]:
        tables.write(job.output, number, scorer.score(read_block(job.output, number)))
    return job.finish(items) if blocks is None else {}


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_a_job_that_goes_on_ends_as_if_it_had_never_stopped(embedder: Embedder, corpus: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, block_clips=2)
    whole = run_job(job_of(corpus, tmp_path / "whole", options), embedder)
    assert whole["rejects"] == {"too short": 1, "truncated": 1, "unreadable": 1}
    assert (whole["clips"], whole["windows"]) == (4, 6)
    for blocks in (1, 0, 2):
        run_job(job_of(corpus, tmp_path / "parts", options), embedder, blocks)
    assert not (tmp_path / "parts" / "_summary.json").exists()
    assert run_job(job_of(corpus, tmp_path / "parts", options), embedder) == whole
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert {name.split("/")[0] for name in contents(tmp_path / "whole")} == {
        *("clips", "windows", "rejects", "_job.json", "_summary.json")
    }
    before = contents(tmp_path / "whole")
    assert run_job(job_of(corpus, tmp_path / "whole", options), embedder) == whole
    assert contents(tmp_path / "whole") == before


def test_the_corpus_may_move_between_two_runs(embedder: Embedder, corpus: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, block_clips=2)
    run_job(job_of(corpus, tmp_path / "out", options), embedder, 1)
    (tmp_path / "moved").symlink_to(corpus)
    assert run_job(job_of(tmp_path / "moved", tmp_path / "out", options), embedder)["clips"] == 4


def test_what_a_killed_attempt_left_is_not_kept(embedder: Embedder, corpus: Path, tmp_path: Path) -> None:
    scorer, items = scorer_of(embedder, corpus), items_of(corpus)
    tables.write(str(tmp_path), 0, scorer.score(items))
    tables.write(str(tmp_path), 0, scorer.score(items.slice(0, 2)))
    assert set(contents(tmp_path)) == {"clips/part-000000.parquet"}


def test_parts_that_are_removed_are_made_again_or_missed(embedder: Embedder, corpus: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, block_clips=2)
    job = job_of(corpus, tmp_path / "out", options)
    whole = run_job(job, embedder)
    before = contents(tmp_path / "out")
    Path(tables.path(job.output, tables.CLIPS, 1)).unlink()
    with pytest.raises(PsclapError, match="holds 5 clips in 3 blocks, not 7 in 4"):
        job.finish(count_items(job.input.tables(), 2))
    assert run_job(job, embedder) == whole
    assert contents(tmp_path / "out") == before


def test_an_overwrite_that_was_killed_can_be_repeated(
    embedder: Embedder, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(job_of(corpus, tmp_path / "out"), embedder)
    other = job_of(corpus, tmp_path / "out", model="models:/small/2")
    from psclap import storage

    remove = storage.remove
    removed: list[str] = []

    def killed(location: str) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(location)
        remove(location)

    monkeypatch.setattr(storage, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        other.begin(overwrite=True)
    monkeypatch.setattr(storage, "remove", remove)
    assert run_job(other, embedder, overwrite=True)["clips"] == 4


def test_a_manifest_elsewhere_is_another_job(embedder: Embedder, tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "0.wav").write_bytes(wav(noise(0.5, seed=ord(place))))
        write_manifest(tmp_path / place / "clips.csv", [{"audio": "0.wav"}])
    run_job(job_of(tmp_path / "a" / "clips.csv", tmp_path / "out"), embedder)
    with pytest.raises(PsclapError, match="some that changed or moved"):
        job_of(tmp_path / "b" / "clips.csv", tmp_path / "out").begin()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": replace(OPTIONS, captions=("other",))}, r"options\.captions was .* and is"),
        ({"options": replace(OPTIONS, block_clips=3)}, r"options\.block_clips was 256 and is 3"),
        ({"model": "models:/small/2"}, r"model\.name was 'models:/small/1' and is 'models:/small/2'"),
    ],
)
def test_another_job_is_not_mixed_in(
    embedder: Embedder, corpus: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run_job(job_of(corpus, tmp_path / "out"), embedder)
    with pytest.raises(PsclapError, match=f"holds another scoring job: .*{message}"):
        job_of(corpus, tmp_path / "out", **change).begin()
    other = job_of(corpus, tmp_path / "out", **change)
    assert run_job(other, embedder, overwrite=True)["model"] == other.model.name


def test_clips_that_came_since_are_noticed(embedder: Embedder, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "0.wav").write_bytes(wav(noise(0.5)))
    run_job(job_of(corpus, tmp_path / "out"), embedder)
    (corpus / "1.wav").write_bytes(wav(noise(0.5)))
    with pytest.raises(PsclapError, match=r"other clips \(1 then, 2 now"):
        job_of(corpus, tmp_path / "out").begin()


def test_a_folder_with_something_else_in_it_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(PsclapError, match=r"is not empty \(thesis.txt\) and of no scoring job"):
            job_of(corpus, tmp_path).begin(overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_too_many_rejects_fail_the_job_and_lose_nothing(embedder: Embedder, corpus: Path, tmp_path: Path) -> None:
    strict = job_of(corpus, tmp_path / "out", replace(OPTIONS, max_reject_rate=0.4))
    with pytest.raises(PsclapError, match=r"3 of 7 clips could not be scored \(too short: 1.*max_reject_rate 0\.4"):
        run_job(strict, embedder)
    before = contents(tmp_path / "out")
    lenient = job_of(corpus, tmp_path / "out", replace(OPTIONS, max_reject_rate=0.5))
    assert run_job(lenient, embedder)["clips"] == 4
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in after if name.startswith("clips")} == {
        name: before[name] for name in before if name.startswith("clips")
    }


def test_clips_that_were_mended_are_tried_again(embedder: Embedder, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    names = [str(corpus / "0.wav"), str(corpus / "1.wav"), str(tmp_path / "bad.wav")]
    manifest = write_manifest(tmp_path / "clips.csv", [{"audio": name} for name in names])
    options = replace(OPTIONS, block_clips=1)
    job = job_of(manifest, tmp_path / "out", options)
    assert run_job(job, embedder)["rejects"] == {"unreadable": 1}
    (tmp_path / "bad.wav").write_bytes(wav(noise(0.5)))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "clips").iterdir()}
    assert run_job(job, embedder)["clips"] == 2
    assert run_job(job, embedder, retry_rejects=True)["clips"] == 3
    assert not (tmp_path / "out" / "rejects" / "part-000002.parquet").exists()
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [after[path] == before[path] for path in sorted(before)] == [True, True, False]


def test_a_damaged_job_file_is_named(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "_job.json").write_text("{")
    with pytest.raises(PsclapError, match=r"_job\.json is damaged"):
        job_of(corpus, tmp_path).begin()


# Clips that kill


def dies_at(keys: set[str], scorer: BlockScorer) -> Callable[[pa.Table], tables.Scored]:
    def score(items: pa.Table) -> tables.Scored:
        if keys & {*items["key"].to_pylist()}:
            os._exit(9)
        return scorer.score(items)

    return score


def attempt(output: Path, number: int, items: pa.Table, scorer: BlockScorer, deadly: set[str]) -> int:
    """One worker's attempt at a block, in a process of its own; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            begun = Attempt.begin(str(output), number)
            score = dies_at(deadly, scorer)
            scored = begun.one_by_one(items, score, scorer.reject) if begun.is_careful else score(items)
            tables.write(str(output), number, scored)
            begun.end()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A forked child must not wait for threads that torch has in its parent only."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_clip_that_kills_workers_costs_one_reject(embedder: Embedder, corpus: Path, tmp_path: Path) -> None:
    items, scorer = items_of(corpus), scorer_of(embedder, corpus)
    statuses = []
    while 0 not in statuses:
        statuses.append(attempt(tmp_path, 4, items, scorer, {"1.wav", "b/ünïcode ☃.wav"}))
        assert len(statuses) < 9
    assert statuses == [9] * 6 + [0]  # twice at once, then twice for each of the two
    clips = pq.read_table(tables.path(str(tmp_path), tables.CLIPS, 4))
    rejects = pq.read_table(tables.path(str(tmp_path), tables.REJECTS, 4)).to_pylist()
    assert clips["key"].to_pylist() == ["0.wav", "2.wav"]
    assert [(row["key"], row["reason"]) for row in rejects if row["reason"] == "crashes"] == [
        ("1.wav", "crashes"),
        ("b/ünïcode ☃.wav", "crashes"),
    ]
    assert len(rejects) == 5
    whole = scorer.score(items)
    np.testing.assert_allclose(embeddings(clips), embeddings(whole.clips)[[0, 2]], atol=1e-6)
    assert not [*(tmp_path / "_attempts").iterdir()]
