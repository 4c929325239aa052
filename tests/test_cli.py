"""The `psclap` command as a process, on a small trained-nowhere checkpoint and real audio files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import psclap, psclap_process

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
        (["search", "{empty}", "x"], "no output of the scoring job"),
        (["search", "{empty}"], "nothing to look for"),
        (["index", "{empty}", "{empty}.index"], "no output of the scoring job"),
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


def test_a_process_of_the_command_ends_with_the_sentence_too() -> None:
    result = psclap_process("config", "check", "/absent.yaml")
    assert result.returncode == 1
    assert result.stderr.startswith("error: cannot read the params file /absent.yaml")
    assert "Traceback" not in result.stderr
