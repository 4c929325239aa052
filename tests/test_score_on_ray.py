"""The scoring job as users run it: processes of Ray, killed and gone on with, local and on S3."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from small_model import noise, save_small_model, wav
from typer.testing import CliRunner

from pipelines.cluster import Node
from pipelines.score import Workers, app
from psclap import storage
from psclap.config import PRESETS_FOLDER, load_params
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.shards.index import ShardIndex
from stages import score as score_stage

pytestmark = pytest.mark.slow

CLIPS, BLOCK = 300, 4
BAD = {"077.wav": b"no sound", "150.wav": b""}
OPTIONS = ["--caption", "a deep voice", "--attribute", "rate", "--window-s", "1", "--block-clips", str(BLOCK)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(CLIPS):
        name = f"{number:03d}.wav"
        seconds = 0.3 + number % 5 / 2
        (folder / name).write_bytes(BAD.get(name, wav(noise(seconds, seed=number))))
    return folder


def start(model: Path, source: object, output: object, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.score", "--model", str(model), "--input", str(source)]
    return subprocess.Popen(
        [*command, "--output", str(output), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def ended(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def table(output: object, name: str = "clips") -> pa.Table:
    filesystem, path = fsspec.core.url_to_fs(f"{output}/{name}")
    found = ds.dataset(path, filesystem=filesystem, format="parquet").to_table()
    return found.sort_by([("key", "ascending"), *([("start_s", "ascending")] if name == "windows" else [])])


@pytest.fixture(scope="module")
def undisturbed(model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "scored"
    said = ended(start(model, corpus, output, *OPTIONS))
    assert f"{CLIPS - 2:,} clips" in said
    assert "rejects: 1 empty, 1 unreadable" in said
    return output


def check_equal(output: object, expected: Path) -> None:
    for name in ("clips", "windows", "rejects"):
        found, wanted = (table(each, name).replace_schema_metadata() for each in (output, expected))
        assert found["key"].to_pylist() == wanted["key"].to_pylist(), name
        columns = [column for column in wanted.column_names if column not in ("embedding", "scores", "detail")]
        columns = [column for column in columns if not column.endswith("_score")]
        assert found.select(columns) == wanted.select(columns), name
        if name != "rejects":
            vectors = [np.array(each["embedding"].to_pylist()) for each in (found, wanted)]
            np.testing.assert_allclose(*vectors, atol=1e-6)


def wait_for_parts(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while len([*(output / "clips").glob("part-*")]) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end_session(process: subprocess.Popen[str]) -> None:
    """Kills the driver and all that Ray started for it."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=30)
    process.communicate()


def test_every_clip_has_its_row(undisturbed: Path, corpus: Path, model: Path) -> None:
    clips = table(undisturbed)
    good = [f"{number:03d}.wav" for number in range(CLIPS) if f"{number:03d}.wav" not in BAD]
    assert clips["key"].to_pylist() == good
    assert [(row["key"], row["reason"]) for row in table(undisturbed, "rejects").to_pylist()] == [
        ("077.wav", "unreadable"),
        ("150.wav", "empty"),
    ]
    short = [number for number, key in enumerate(good) if int(key[:3]) % 5 < 2][:20]
    embedder = Embedder(model)
    np.testing.assert_allclose(
        np.array(clips["embedding"].to_pylist())[short],
        embedder.embed_files([corpus / good[number] for number in short]),
        atol=1e-6,
    )
    assert not [*undisturbed.glob("_items"), *undisturbed.glob("_attempts")]


def kill(process: subprocess.Popen[str], output: Path) -> None:
    end_session(process)


def interrupt(process: subprocess.Popen[str], output: Path) -> None:
    """A worker is killed first, which costs nothing and stops nothing."""
    workers = [
        member
        for member in psutil.Process(process.pid).children(recursive=True)
        if any("MapWorker" in word for word in member.cmdline())
    ]
    assert workers
    workers[0].kill()
    wait_for_parts(output, len(written(output)) + 5, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "the same command goes on from here" in said


def test_a_job_that_was_killed_and_then_interrupted_goes_on(
    model: Path, corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output, done = tmp_path / "out", dict[str, int]()
    for stop in (kill, interrupt):
        process = start(model, corpus, output, *OPTIONS)
        wait_for_parts(output, len(done) + 5, process)
        stop(process, output)
        parts = written(output)
        assert len(done) + 5 <= len(parts) < CLIPS // BLOCK
        assert done.items() <= parts.items()  # what was done is not done again
        done = parts
    assert "goes on: " in ended(start(model, corpus, output, *OPTIONS))
    assert done.items() <= written(output).items()
    check_equal(output, undisturbed)


def written(output: Path) -> dict[str, int]:
    """When each part was."""
    return {path.name: path.stat().st_mtime_ns for path in (output / "clips").glob("part-*")}


@pytest.mark.soak  # test_storms.py scores from S3 to S3, without Ray
def test_from_s3_to_s3(model: Path, corpus: Path, undisturbed: Path, s3_server: str) -> None:
    s3 = fsspec.filesystem("s3")
    s3.put(str(corpus), f"{s3_server}/scoring/corpus", recursive=True)
    output = f"{s3_server}/scoring/out"
    ended(start(model, f"{s3_server}/scoring/corpus", output, *OPTIONS))
    check_equal(output, undisturbed)
    assert ended(start(model, f"{s3_server}/scoring/corpus", output, *OPTIONS)).count("clips") == 1


def test_the_stage_by_way_of_a_url(
    model: Path, mini_shards: Path, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(PRESETS_FOLDER / "demo.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shards").symlink_to(mini_shards)
    (tmp_path / "registered").mkdir()
    (tmp_path / "registered/combined.json").write_text(json.dumps({"uri": str(model)}))
    url = f"{s3_server}/scoring/stage"
    score_stage.main(replace(params, score=replace(params.score, url=url)))
    clips = table("embeddings")
    index = ShardIndex(mini_shards)
    assert clips["key"].to_pylist() == sorted(index.take(index.rows_of("test"), ["key"])["key"].to_pylist())
    assert json.loads((tmp_path / "embeddings/_summary.json").read_text())["clips"] == len(clips)
    assert storage.folders(url) == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.soak  # test_scoring.py reads each kind of input, without Ray
def test_shards_and_a_manifest(model: Path, mini_shards: Path, tmp_path: Path) -> None:
    ended(start(model, mini_shards, tmp_path / "shards", "--split", "test"))
    index = ShardIndex(mini_shards)
    rows = index.rows_of("test")
    clips = table(tmp_path / "shards")
    assert clips["key"].to_pylist() == sorted(index.take(rows, ["key"])["key"].to_pylist())
    expected = {index.row(int(row))["key"]: index.read_clip(int(row)) for row in rows}
    vectors = Embedder(model).embed_audio([expected[key] for key in clips["key"].to_pylist()])
    np.testing.assert_allclose(np.array(clips["embedding"].to_pylist()), vectors, atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "count", "expected"),
    [
        ([(2, 0)], None, Workers(2, 1, 0)),
        ([(16, 0), (64, 0)], None, Workers(80, 1, 0)),
        ([(8, 0)], 2, Workers(2, 4, 0)),
        ([(4, 0), (4, 0)], 1, Workers(1, 4, 0)),  # no actor is larger than a node
        ([(2, 0)], 5, Workers(5, 1, 0)),
        ([(16, 1)], None, Workers(1, 16, 1, blocks=9)),
        ([(96, 8), (96, 8)], None, Workers(16, 12, 1, blocks=9)),
        ([(16, 4), (64, 0)], None, Workers(4, 4, 1, blocks=5)),  # cores of a node without GPUs are no help
        ([(12, 1)], 3, Workers(3, 4, 1 / 3, blocks=5)),
        ([(2, 4)], None, Workers(4, 1, 1, blocks=2)),
        ([(8, 2), (8, 2)], 1, Workers(1, 4, 1, blocks=5)),
        ([(8, 2)], 3, Workers(3, 2, 1 / 2, blocks=3)),
    ],
)
def test_actors_fit_the_nodes(nodes: list[tuple[int, int]], count: int | None, expected: Workers) -> None:
    assert Workers.of([Node(*node) for node in nodes], count) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere/at-all", "--input", "{corpus}"], "nowhere/at-all"),
        (["--model", "{model}", "--input", "/absent"], "/absent holds no audio file"),
        (["--model", "{model}", "--input", "{corpus}", "--attribute", "colour"], "attributes ['colour'] must be among"),
        (["--model", "{model}", "--input", "{corpus}", "--split", "night"], "split 'night' must be one of"),
        (["--model", "{model}", "--input", "{corpus}", "--captions", "/absent.txt"], "cannot read the captions"),
    ],
)
def test_bad_input_is_refused_at_the_door(
    options: list[str], message: str, model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [word.format(model=model, corpus=corpus) for word in options]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out")])
    assert isinstance(result.exception, PsclapError)
    assert message in str(result.exception)


def test_what_only_a_worker_finds_ends_with_a_sentence(model: Path, corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.score", "--model", str(model), "--input", str(corpus)]
    command += ["--window-s", "0.01", "--output", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    last = result.stderr.splitlines()[-1]
    assert last == "error: window_s 0.01: too short: it has 0.010 s, and the speech encoder needs 0.032 s"
    assert "Traceback" not in result.stderr
