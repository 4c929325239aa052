"""Text to speech from end to end: real DVC, Ray and MLflow, and `psclap say` with the model that was registered."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PRESETS_FOLDER
from test_pipeline import Project, clone

from psclap import audio

STAGES = ("tts_prepare", "tts_shard", "speech_clip", "clip_tts", "tts_evaluate", "tts_register")


def small_voices() -> dict[str, Any]:
    params = yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())
    base = params["tts"]["base"]
    base["model"] |= {"hidden_size": 32, "num_blocks": 1, "conv_size": 48, "aligner_size": 16}
    base["train"] |= {"validate_every": 5, "log_every": 5, "global_batch_size": 8, "warmup_steps": 2}
    base["speech_clip"]["max_steps"] = base["clip_tts"]["max_steps"] = 10
    options = {"speakers": 1, "train_clips": 24, "val_clips": 4, "test_clips": 4}
    return {
        "voices": ["narrator"],
        "tts": {"base": base, "narrator": {"corpus": {"name": "demo_tts", "options": options}}},
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, server: str) -> Project:
    project = Project(clone(tmp_path_factory.mktemp("voices"), small_voices()), server)
    output = project.run("dvc", "repro", "tts_register@narrator")
    assert [f"Running stage '{name}@narrator'" in output for name in STAGES] == [True] * len(STAGES)
    return project


def test_a_second_run_does_nothing(project: Project) -> None:
    assert "Running stage" not in project.run("dvc", "repro", "tts_register@narrator")


def test_what_was_measured(project: Project) -> None:
    matched, said = (project.json(f"metrics/tts/narrator/{name}.json") for name in ("speech_clip", "clip_tts"))
    assert 0.25 <= matched["retrieval"]["mel_to_text"]["chance_R@1"] <= 0.5  # of at most 4 clips
    assert matched["alignment"]["predicted"]["matched"] > 20
    assert said["copy_synthesis"]["mcd_db"] < said["model"]["mcd_db"]
    reports = project.folder / "tts/narrator/reports"
    assert (reports / "clip_tts/report.html").read_text().count("data:audio") >= 3
    assert "Speech-Clip narrator" in (reports / "speech_clip/report.html").read_text()
    card = (project.folder / "registered/tts/narrator.md").read_text()
    assert "psclap say" in card
    assert "by 1 speaker;" in card


def test_the_registered_model_speaks(project: Project) -> None:
    uri = project.json("registered/tts/narrator.json")["uri"]
    assert uri == "models:/psclap-tts-narrator/1"
    out = project.folder / "said.wav"
    project.run("psclap", "say", "The small cat waited.", "-n", "1", "-o", str(out), "--tts", uri)
    wave, rate_hz = audio.decode(out)
    assert rate_hz == 16000
    assert 0.2 < len(wave) / rate_hz < 30
    assert json.loads(out.with_suffix(".json").read_text())["ranked"][0]["speaker"] == "voice-00"


def test_the_served_model_answers(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `mlflow models serve` would: text to base64 FLAC."""
    import base64

    import mlflow
    import pandas as pd

    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.environment["MLFLOW_TRACKING_URI"])
    mlflow.set_tracking_uri(project.environment["MLFLOW_TRACKING_URI"])
    try:
        model = mlflow.pyfunc.load_model("models:/psclap-tts-narrator@challenger")
        said = model.predict(pd.DataFrame({"text": ["The small cat waited."]}), params={"pace": 1.5})
        wave, rate_hz = audio.decode(base64.b64decode(said["audio"][0]))
        assert (rate_hz, said["sample_rate_hz"][0]) == (16000, 16000)
        assert len(wave) > 0
        with pytest.raises(mlflow.exceptions.MlflowException, match="speaker 'nobody' is none of the model's"):
            model.predict(pd.DataFrame({"text": ["Hello."], "speaker": ["nobody"]}))
    finally:
        mlflow.set_tracking_uri(None)


def test_a_voice_that_there_is_not(project: Project) -> None:
    process = project.start("python", "-m", "stages.tts_prepare", "nobody")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no voice 'nobody' in params.yaml; voices: narrator" in err


def test_the_folder_of_the_page_is_an_artefact(project: Project, server: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(server)
    version = client.get_model_version("psclap-tts-narrator", "1")
    names = {entry.path for entry in client.list_artifacts(version.run_id, "reports/clip_tts")}
    assert "reports/clip_tts/report.html" in names
    assert Path(project.folder / "tts/narrator/clip_tts/training/history.csv").is_file()
