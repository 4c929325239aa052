"""A model folder in sentence-transformers: its embeddings are the Embedder's, for texts and for speech."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import WAVLM
from sentence_transformers import SentenceTransformer

from psclap.config import EncoderConfig, ModelConfig
from psclap.embedding import Embedder
from psclap.models.build import build_model

RATE_HZ = 16000
TEXTS = ["A deep voice.", "x", "A loud man, speaking fast in a raspy way: he is angry!", "word " * 200, ""]
SPEECH = {
    "logmel": EncoderConfig("mean_std", config={"model_type": "logmel_conv", "num_layers": 2, "hidden_size": 32}),
    "wavlm": EncoderConfig("mean", config=WAVLM),
}
TEXT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
# No psclap here, and transformers' copies of the folder's code in a cache of its own.
STRANGER = """
import json, sys
import numpy as np
sys.modules["psclap"] = None
from sentence_transformers import SentenceTransformer

folder, texts, waves = sys.argv[1], json.loads(sys.argv[2]), np.load(sys.argv[3])
model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
speech = model.encode([{"array": wave, "sampling_rate": 16000} for wave in waves])
np.save(sys.argv[4], np.concatenate([speech, model.encode(texts)]))
"""


@pytest.fixture(scope="module", params=SPEECH)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as training writes it, with random weights."""
    config = ModelConfig(
        speech=SPEECH[request.param],
        text=EncoderConfig("mean", config=TEXT),
        projection_dim=24,
        projection_dropout=0.1,
        initial_logit_scale=10.0,
        normalise_audio=request.param == "wavlm",
        max_text_tokens=32,
        tokenizer_vocab_size=128,
    )
    path = tmp_path_factory.mktemp(request.param)
    for part in build_model(config, TEXTS, RATE_HZ, seed=3):
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(folder, device="cpu")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def waves(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(len(lengths))
    return [(0.1 * rng.standard_normal(length)).astype(np.float32) for length in lengths]


def dicts(clips: list[np.ndarray], rate_hz: int = RATE_HZ) -> list[Any]:
    return [{"array": clip, "sampling_rate": rate_hz} for clip in clips]


def test_texts_are_embedded_as_the_embedder_does(encoder: SentenceTransformer, embedder: Embedder) -> None:
    expected = embedder.embed_text(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=2), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_query(TEXTS), expected, atol=1e-6)
    assert encoder.get_embedding_dimension() == embedder.dim == 24


def test_speech_of_several_lengths_is_embedded_as_the_embedder_does(
    encoder: SentenceTransformer, embedder: Embedder
) -> None:
    clips = waves(16000, 40000, 8000, 23456)
    np.testing.assert_allclose(encoder.encode(dicts(clips), batch_size=3), embedder.embed_audio(clips), atol=1e-6)
    np.testing.assert_allclose(encoder.encode(clips), embedder.embed_audio(clips), atol=1e-6)
    one = encoder.encode({"audio": {"array": clips[0], "sampling_rate": RATE_HZ}})
    np.testing.assert_allclose(one, embedder.embed_audio(clips[:1])[0], atol=1e-6)


def test_similarities_are_our_cosines(encoder: SentenceTransformer, embedder: Embedder) -> None:
    clips = waves(16000, 20000)
    found = encoder.similarity(encoder.encode(dicts(clips)), encoder.encode(TEXTS))
    np.testing.assert_allclose(found.numpy(), embedder.embed_audio(clips) @ embedder.embed_text(TEXTS).T, atol=1e-6)


@pytest.mark.parametrize(("rate_hz", "channels"), [(16000, 1), (44100, 1), (22050, 2)])
def test_files_are_decoded_and_resampled(
    encoder: SentenceTransformer, embedder: Embedder, tmp_path: Path, rate_hz: int, channels: int
) -> None:
    path = str(tmp_path / "clip.flac")
    tone = 0.3 * np.sin(2 * np.pi * 330 * np.arange(2 * rate_hz) / rate_hz)
    soundfile.write(path, np.stack([tone] * channels, 1), rate_hz)
    np.testing.assert_allclose(encoder.encode([path]), embedder.embed_files([path]), atol=1e-3)


def test_a_wrong_rate_is_refused(encoder: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="8000"):
        encoder.encode(dicts(waves(16000), 8000))


@pytest.mark.parametrize("wave", [np.zeros((2, 16000), np.float32), np.full(16000, 1000, np.int16)])
def test_what_is_no_mono_wave_of_floats_is_refused(encoder: SentenceTransformer, wave: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"mono|float"):
        encoder.encode(dicts([wave]))


def test_texts_and_speech_go_in_calls_of_their_own(encoder: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="Encode each modality separately"):
        encoder.encode(["A deep voice.", waves(16000)[0]])


def test_what_it_saves_can_be_loaded_by_both(encoder: SentenceTransformer, embedder: Embedder, tmp_path: Path) -> None:
    encoder.save(str(tmp_path))
    expected = embedder.embed_text(TEXTS)
    np.testing.assert_allclose(Embedder(tmp_path, device="cpu").embed_text(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS), expected, atol=1e-6)


def test_without_psclap_the_folder_brings_its_own_code(folder: Path, embedder: Embedder, tmp_path: Path) -> None:
    clips = waves(16000, 16000)
    np.save(tmp_path / "waves.npy", np.stack(clips))
    command = [sys.executable, "-c", STRANGER, str(folder), json.dumps(TEXTS), "waves.npy", "found.npy"]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = np.concatenate([embedder.embed_audio(clips), embedder.embed_text(TEXTS)])
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-6)
