"""The `psclap` command as a process, on a small trained-nowhere checkpoint and real audio files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psclap import audio
from psclap.config import parse_params
from psclap.embedding import Embedder
from psclap.models.build import build_model
from psclap.tags import default_prompt


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import yaml

    from psclap.config import PRESETS_FOLDER

    folder = tmp_path_factory.mktemp("checkpoint")
    params = parse_params(yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text()))
    model, processor = build_model(params.model, ["a raspy voice", "a silky voice"], 16000, seed=1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    paths = []
    for number, rate_hz in enumerate((8000, 44100)):
        path = folder / f"{number}.flac"
        path.write_bytes(audio.encode_flac(rng.normal(0, 0.1, rate_hz).astype(np.float32), rate_hz))
        paths.append(str(path))
    return paths


def psclap(*arguments: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "psclap.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def answer(*arguments: Any) -> list[dict[str, Any]]:
    result = psclap(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_score_gives_every_file_with_every_caption(checkpoint: Path, clips: list[str]) -> None:
    texts = ["a raspy voice", "a silky voice"]
    rows = answer("score", *clips, "--text", texts[0], "--text", texts[1], "--model", checkpoint)
    embedder = Embedder(checkpoint)
    expected = (embedder.embed_files(clips) @ embedder.embed_text(texts).T).ravel()
    assert [(row["audio"], row["text"]) for row in rows] == [(clip, text) for clip in clips for text in texts]
    assert [row["score"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-4)

    table = psclap("score", *clips, "--text", texts[0], "--model", checkpoint).stdout.splitlines()
    assert table[0].split() == ["audio", "text", "score"]
    assert len(table) == 3


def test_classify_names_the_nearest_prompt(checkpoint: Path, clips: list[str]) -> None:
    rows = answer("classify", *clips, "--tags", "gender", "--model", checkpoint)
    embedder = Embedder(checkpoint)
    prompts = embedder.embed_text([default_prompt(tag) for tag in ("male", "female")])
    for row, cosines in zip(rows, embedder.embed_files(clips) @ prompts.T, strict=True):
        assert row["tag"] == ("male", "female")[int(cosines.argmax())]
        assert [row["male"], row["female"]] == pytest.approx(cosines.tolist(), abs=1e-4)
    (row,) = answer("classify", clips[0], "--tags", "raspy, husky", "--ensemble", "--model", checkpoint)
    (found,) = embedder.classify(clips[:1], ["raspy", "husky"], ensemble=True)
    assert set(row) == {"audio", "tag", "raspy", "husky"}
    assert [row["raspy"], row["husky"]] == pytest.approx([*found.scores.values()], abs=1e-4)


def write_embeddings(folder: Path, checkpoint: Path, dim: int) -> np.ndarray:
    embeddings = np.random.default_rng(0).normal(size=(5, dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    table = pa.table(
        {
            "key": [f"clip-{number}" for number in range(5)],
            "intrinsic_tags": [["raspy"]] * 5,
            "situational_tags": [["fast"]] * 5,
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), dim),
        }
    )
    folder.mkdir()
    pq.write_table(table, folder / "part-0.parquet")
    (folder / "_summary.json").write_text(json.dumps({"model": str(checkpoint)}))
    return embeddings


def test_search_returns_the_nearest_clips_in_order(checkpoint: Path, tmp_path: Path) -> None:
    embeddings = write_embeddings(tmp_path / "embeddings", checkpoint, 64)
    rows = answer("search", tmp_path / "embeddings", "a raspy voice", "--top", "3")
    scores = embeddings @ Embedder(checkpoint).embed_text(["a raspy voice"])[0]
    best = np.argsort(-scores)[:3]
    assert [row["key"] for row in rows] == [f"clip-{number}" for number in best]
    assert [row["score"] for row in rows] == pytest.approx(scores[best].tolist(), abs=1e-5)
    assert "raspy, fast" in psclap("search", tmp_path / "embeddings", "a raspy voice").stdout


def test_search_in_the_embeddings_of_another_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "embeddings", checkpoint, 8)
    result = psclap("search", tmp_path / "embeddings", "a raspy voice")
    assert result.returncode == 1
    assert "64 dimensions" in result.stderr
    assert "8" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "nowhere.wav", "--text", "x", "--model", "{checkpoint}"], "nowhere.wav: missing"),
        (["score", "{empty}", "--text", "x", "--model", "{checkpoint}"], "empty.wav: empty"),
        (["score", "{clip}", "--text", "x", "--model", "{empty}"], "no checkpoint folder"),
        (["score", "{clip}", "--text", "x", "--model", "models:/no-such@champion"], "no registry"),
        (["score", "{clip}", "--text", "x", "--model", "models:/nonsense"], "no model URI"),
        (["score", "{clip}", "--text", "x", "--model", "ftp://host/model"], "can fetch"),
        (["classify", "{clip}", "--tags", "raspyy,husky", "--model", "{checkpoint}"], "did you mean raspy"),
        (["classify", "{clip}", "--tags", "raspy", "--model", "{checkpoint}"], "at least 2 candidate"),
        (["search", "{empty}", "x"], "no folder of embeddings"),
        (["config", "check", "nowhere.yaml"], "cannot read the params file"),
        (["config", "use", "papier"], "presets: demo, paper"),
    ],
)
def test_bad_input_ends_with_one_sentence(
    checkpoint: Path, clips: list[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty.wav").touch()
    values = {"checkpoint": checkpoint, "clip": clips[0], "empty": tmp_path / "empty.wav"}
    result = psclap(*(argument.format(**values) for argument in arguments), cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.wav"]  # nothing is left behind


def test_presets_are_chosen_by_one_command(tmp_path: Path) -> None:
    target = tmp_path / "params.yaml"
    assert psclap("config", "use", "paper", "--path", target).returncode == 0
    assert "paraspeechcaps" in psclap("config", "check", target).stdout
    target.write_text(target.read_text().replace("3407", "1"))
    refused = psclap("config", "use", "demo", "--path", target)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert psclap("config", "use", "demo", "--path", target, "--force").returncode == 0
