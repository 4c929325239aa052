"""`psclap export`: the embeddings of each form against the model's, on clips and texts it was not checked with."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import psclap
from conftest import WAVLM, XLM_R
from safetensors.torch import load_file
from test_encoders import SPEECH, TEXT

from psclap.config import PRESETS_FOLDER, EncoderConfig, ModelConfig, parse_params
from psclap.embedding import Embedder
from psclap.errors import CheckpointError, PsclapError
from psclap.export import bf16, onnx
from psclap.export.bf16 import export_bf16
from psclap.export.onnx import export_onnx
from psclap.export.session import OnnxModel
from psclap.models.build import build_model

TEXTS = ("a deep voice", "a woman who whispers, slowly and with long pauses", "?", "a raspy, loud man")
OVER_TIME = WAVLM | {"feat_extract_norm": "group", "do_stable_layer_norm": False}


def demo() -> ModelConfig:
    return parse_params(yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())).model


def with_encoders(speech: dict, text: dict) -> ModelConfig:
    return replace(
        demo(),
        speech=EncoderConfig(pooling="mean", config=speech),
        text=EncoderConfig(pooling="cls", config=text),
        max_text_tokens=64,
    )


CONFIGS = {
    "demo": demo,
    "wavlm and xlm-r": lambda: with_encoders(WAVLM, XLM_R),
    "wavlm of base's kind and xlm-r": lambda: with_encoders(OVER_TIME, XLM_R),
    "whisper and distilbert": lambda: with_encoders(
        SPEECH["whisper"], {"model_type": "distilbert", **TEXT["distilbert"]}
    ),
    "wav2vec2 and modernbert": lambda: with_encoders(
        SPEECH["wav2vec2, layer norm"], {"model_type": "modernbert", **TEXT["modernbert"]}
    ),
}


def save(config: ModelConfig, folder: Path) -> Path:
    """A model whose weights are large enough for its embeddings to differ, and to show a wrong one."""
    model, processor = build_model(config, TEXTS, 16000, seed=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_projection." not in name and name != "log_logit_scale":
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# Each takes 20 s. Of these the encoders are nearly another one's.
SOAKED = ("wavlm of base's kind and xlm-r", "wav2vec2 and modernbert")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.soak) if name in SOAKED else name for name in CONFIGS],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(CONFIGS[request.param](), tmp_path_factory.mktemp("export") / "model")


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(demo(), tmp_path_factory.mktemp("export") / "model")


def clips(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [np.cumsum(rng.normal(0, 0.05, length)).astype(np.float32) for length in lengths]


BATCHES = ((16000,), (9000, 5000, 23456, 7001, 1200), (40000, 8001))


def test_onnx_gives_the_models_embeddings(model: Path, tmp_path: Path) -> None:
    deviation = export_onnx(model, tmp_path / "onnx")
    assert deviation.max_difference <= 1e-4
    embedder, exported = Embedder(model), OnnxModel(tmp_path / "onnx", threads=1)
    embeddings = []
    for lengths in BATCHES:
        expected = embedder.embed_audio(clips(*lengths))
        embeddings.append(exported.embed_audio(clips(*lengths)))
        np.testing.assert_allclose(embeddings[-1], expected, rtol=0, atol=1e-4)
    for texts in (TEXTS[:1], TEXTS, TEXTS[::-1] * 3):
        expected = embedder.embed_text(texts)
        embeddings.append(exported.embed_text(texts))
        np.testing.assert_allclose(embeddings[-1], expected, rtol=0, atol=1e-4)
    for several in (embeddings[1], embeddings[4]):  # they differ from row to row, or equality would say nothing
        assert np.ptp(several, axis=0).max() > 0.01
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx"]


def test_bf16_is_half_as_large_and_as_near_as_it_promises(model: Path, tmp_path: Path) -> None:
    deviation = export_bf16(model, tmp_path / "bf16")
    assert deviation.min_cosine >= 0.99
    weights = load_file(tmp_path / "bf16" / "model.safetensors")
    encoders = {name: weight for name, weight in weights.items() if name.startswith(("audio_model.", "text_model."))}
    matrices = [weight for weight in encoders.values() if weight.is_floating_point() and weight.ndim == 2]
    assert sum(weight.dtype == torch.bfloat16 for weight in matrices) >= len(matrices) - 1  # mel filters
    assert {weight.dtype for name, weight in weights.items() if "norm" in name.lower()} == {torch.float32}
    embedder, exported = Embedder(model), Embedder(tmp_path / "bf16")
    assert {parameter.dtype for parameter in exported.model.parameters()} == {torch.float32, torch.bfloat16}
    for found, expected in (
        *((exported.embed_audio(clips(*lengths)), embedder.embed_audio(clips(*lengths))) for lengths in BATCHES),
        (exported.embed_text(TEXTS), embedder.embed_text(TEXTS)),
    ):
        assert found.dtype == np.float32
        assert (found * expected).sum(1).min() >= 0.99
        assert np.abs(found - expected).max() > 1e-5  # it does compute in bfloat16
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_what_differs_too_much_is_not_kept(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16, "MIN_COSINE", 1.1)
    with pytest.raises(CheckpointError, match=r"was not kept.*smallest cosine 0\.99.*the rule is a cosine of 1\.1"):
        export_bf16(demo_model, tmp_path / "bf16")
    monkeypatch.setattr(onnx, "MAX_DIFFERENCE", 1e-12)
    with pytest.raises(CheckpointError, match=r"was not kept.*the rule is 1e-12"):
        export_onnx(demo_model, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["bf16", "onnx"])
def test_the_command_overwrites_nothing(demo_model: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "out").mkdir()
    result = psclap("export", demo_model, tmp_path / "out", "--format", form)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "overwritten" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command_says_what_it_measured(demo_model: Path, tmp_path: Path) -> None:
    result = psclap("export", demo_model, tmp_path / "out", "--format", "bf16")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{tmp_path / 'out'}: bf16, " in result.stdout
    assert "smallest cosine" in result.stdout
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {0o666 & ~umask}  # others may read it as they may read any new file


def test_an_encoder_that_onnx_cannot_run_is_refused(tmp_path: Path) -> None:
    wav2vec2 = WAVLM | {"model_type": "wav2vec2", "feat_extract_norm": "group", "do_stable_layer_norm": False}
    folder = save(with_encoders(wav2vec2, XLM_R), tmp_path / "model")
    with pytest.raises(PsclapError, match="wav2vec2 runs clips of one length at a time"):
        export_onnx(folder, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_the_extra_is_asked_for(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "_PACKAGES", ("onnx", "package_that_nobody_has"))
    with pytest.raises(PsclapError, match=r"needs package_that_nobody_has.*psclap\[onnx\]"):
        export_onnx(demo_model, tmp_path / "onnx")


def test_scoring_loads_nothing_that_it_does_not_need(demo_model: Path) -> None:
    """What it loads is nearly all that a short command waits for."""
    others = ("onnx", "onnxruntime", "ray", "mlflow", "dvc", "matplotlib", "sentence_transformers")
    code = (
        "import sys; from psclap import Embedder; Embedder(sys.argv[1]).embed_text(['x']);"
        f"print([name for name in {(*others, 'transformers.models.wavlm.modeling_wavlm')} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, demo_model], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
