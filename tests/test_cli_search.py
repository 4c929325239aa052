# ruff: noqa: F401, F811  (fixtures)
"""`psclap index` and `psclap search` as processes, with a model and real audio."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import psclap
from scored import metadata, unit_vectors, write_scored
from test_cli import answer, checkpoint, clips

from psclap.embedding import Embedder
from psclap.files import sha256_file

ROWS = 1200
TEXTS = ["a raspy voice", "a silky voice"]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return unit_vectors(ROWS, 64)


@pytest.fixture(scope="module")
def output(checkpoint: Path, vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = sha256_file(checkpoint / "model.safetensors")
    folder = tmp_path_factory.mktemp("scored") / "embeddings"
    return write_scored(folder, vectors, model=str(checkpoint), weights=weights)


def nearest(vectors: np.ndarray, query: np.ndarray, top: int, rows: list[int] | None = None) -> list[str]:
    rows = [*range(len(vectors))] if rows is None else rows
    scores = vectors[rows].astype(np.float64) @ query.astype(np.float64)
    return [f"clip-{rows[best]:05d}" for best in np.argsort(-scores, kind="stable")[:top]]


def test_an_output_is_searched_by_text_and_by_sound(
    output: Path,
    checkpoint: Path,
    clips: list[str],
    vectors: np.ndarray,
) -> None:
    rows = answer("search", output, *TEXTS, "--audio", clips[0], "--top", "3")
    embedder = Embedder(checkpoint)
    queries = np.concatenate([embedder.embed_text(TEXTS), embedder.embed_files(clips[:1])])
    expected = [
        (name, key)
        for name, query in zip([*TEXTS, clips[0]], queries, strict=True)
        for key in nearest(vectors, query, 3)
    ]
    assert [(row["query"], row["key"]) for row in rows] == expected
    assert rows[0]["duration_s"] == metadata(ROWS)[int(rows[0]["key"][5:])]["duration_s"]


def test_an_index_is_made_and_searched(output: Path, checkpoint: Path, vectors: np.ndarray, tmp_path: Path) -> None:
    made = psclap("index", output, tmp_path / "index", "--approximate")
    assert made.returncode == 0, made.stderr
    assert "1,200 rows of 64 dimensions in float32" in made.stdout
    assert "recall at 10" in made.stdout
    lists = json.loads((tmp_path / "index" / "index.json").read_text())["approximate"]["lists"]
    query = Embedder(checkpoint).embed_text(TEXTS[:1])[0]
    filtered = [row for row, values in enumerate(metadata(ROWS)) if values["speaker"] == "Zoë"]
    for arguments, rows in (
        (["--exact"], None),
        (["--probes", lists], None),
        (["--where", "speaker = 'Zoë'"], filtered),
    ):
        found = answer("search", tmp_path / "index", TEXTS[0], "--columns", "key", "--top", "4", *arguments)
        assert [clip["key"] for clip in found] == nearest(vectors, query, 4, rows)
        assert all(set(clip) == {"key", "score"} for clip in found)


def test_the_table_shows_the_columns_that_are_asked_for(output: Path) -> None:
    header, first, *_ = psclap("search", output, TEXTS[0]).stdout.splitlines()
    assert header.split() == ["score", "key", "tags"]
    assert first.startswith(("+", "-"))
    asked = psclap("search", output, TEXTS[0], "--columns", "speaker, num_samples", "--windows").stdout.splitlines()
    assert asked[0].split() == ["score", "speaker", "num_samples"]
    nothing = psclap("search", output, TEXTS[0], "--where", "key = ''")
    assert (nothing.returncode, nothing.stdout) == (0, "no clips that the filter leaves\n")
    assert answer("search", output, TEXTS[0], "--where", "key = ''") == []


def test_an_index_stands_beside_its_output_by_default(output: Path) -> None:
    assert psclap("index", output).returncode == 0
    assert psclap("index", f"{output}/", "--windows").returncode == 0
    assert (output.parent / "embeddings.index" / "vectors.npy").is_file()
    assert (output.parent / "embeddings.windows.index" / "vectors.npy").is_file()


def test_other_weights_are_refused_or_noted(tmp_path: Path, checkpoint: Path, vectors: np.ndarray) -> None:
    output = write_scored(tmp_path / "output", vectors, model=str(checkpoint), weights="f" * 64)
    refused = psclap("search", output, TEXTS[0])
    assert refused.returncode == 1
    assert "other weights now than those that made the embeddings" in refused.stderr
    noted = psclap("search", output, TEXTS[0], "--model", checkpoint)
    assert noted.returncode == 0
    assert noted.stderr == f"note: {checkpoint} has other weights than those that made the embeddings\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{output}", "x", "--where", "spkr = 'x'"], "'spkr', which is no column; there are key, speaker"),
        (["{output}", "x", "--columns", "kye"], "no column 'kye'"),
        (["{output}", "x", "--probes", "3"], "psclap index --approximate"),
        (["{narrow}", "x"], "has 64 dimensions and the embeddings have 8"),
        (["{output}", "--audio", "nowhere.wav"], "nowhere.wav: missing"),
    ],
)
def test_bad_input_ends_with_one_sentence(
    output: Path,
    checkpoint: Path,
    tmp_path: Path,
    arguments: list[Any],
    message: str,
) -> None:
    weights = sha256_file(checkpoint / "model.safetensors")
    narrow = write_scored(tmp_path / "narrow", unit_vectors(9, 8), model=str(checkpoint), weights=weights)
    result = psclap("search", *(argument.format(output=output, narrow=narrow) for argument in arguments))
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
