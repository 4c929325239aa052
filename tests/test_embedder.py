"""The Embedder: one sound is one embedding however it comes, tags and their ensembles, and what is refused."""

import io
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_model import TEXTS, noise, save_small_model, wav

from psclap import audio, tags
from psclap.embedding import Embedder
from psclap.errors import CheckpointError, PsclapError

RATE_HZ = 22050


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def embedder(checkpoint: Path) -> Embedder:
    return Embedder(checkpoint, batch_s=1.5)


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(save_small_model(tmp_path_factory.mktemp("wavlm"), wavlm=True))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files at a rate that is not the model's."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / f"{number}.wav" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(wav(noise(0.5 + number / 4, RATE_HZ, number), RATE_HZ))
    return paths


@pytest.fixture(scope="module")
def web(clips: list[Path]) -> Iterator[str]:
    """The URL of a web server with the clips."""
    with serving(partial(SimpleHTTPRequestHandler, directory=str(clips[0].parent))) as url:
        yield url


class serving:  # noqa: N801 - a context manager
    """A web server on loopback; its URL."""

    def __init__(self, handler: object):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_sound_is_one_embedding_however_it_comes(embedder: Embedder, clips: list[Path], web: str) -> None:
    waves = [noise(0.5 + number / 4, RATE_HZ, number) for number in range(3)]
    expected = embedder.embed_audio([audio.resample(wave, RATE_HZ, 16000) for wave in waves])
    assert expected.shape == (3, embedder.dim)
    assert expected.dtype == np.float32
    assert np.linalg.norm(expected, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert (expected @ expected.T)[0, 1] < 0.9999
    ways = {
        "arrays": embedder.embed_audio(waves, RATE_HZ),
        "double precision": embedder.embed_audio([wave.astype(np.float64) for wave in waves], RATE_HZ),
        "paths": embedder.embed_files(clips),
        "names": embedder.embed_files(map(str, clips)),
        "bytes": embedder.embed_files([clip.read_bytes() for clip in clips]),
        "binary files": embedder.embed_files([io.BytesIO(clip.read_bytes()) for clip in clips]),
        "URLs": embedder.embed_files([f"{web}/{clip.name}" for clip in clips]),
    }
    for way, embeddings in ways.items():
        np.testing.assert_allclose(embeddings, expected, atol=1e-6, err_msg=way)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (noise(1)[None], r"waves\[1\] has the shape \(1, 16000\)"),
        (np.float32(0.5), r"waves\[1\] has the shape \(\)"),
        ((noise(1) * 32767).astype(np.int16), r"waves\[1\] is of int16.*divide"),
        (np.empty(0, np.float32), r"waves\[1\] is empty"),
        (np.array([0.1, np.nan], np.float32), r"waves\[1\] holds NaN"),
        (np.array([0.1, 1e300]), r"waves\[1\] holds NaN or infinite"),
        (noise(0.02), r"waves\[1\]: too short: it has 0\.020 s, and the speech encoder needs 0\.032 s"),
    ],
)
def test_an_array_that_is_no_wave_is_named(embedder: Embedder, wave: np.ndarray, message: str) -> None:
    with pytest.raises(PsclapError, match=message):
        embedder.embed_audio([noise(0.5), wave])


@pytest.mark.parametrize("rate_hz", [0, -16000, 0.001, float("nan"), float("inf"), "16000", 10**9])
def test_a_rate_must_be_one(embedder: Embedder, rate_hz: Any) -> None:
    with pytest.raises(PsclapError, match=f"sample_rate_hz {rate_hz!r} must be"):
        embedder.embed_audio([noise(0.5)], rate_hz)


@pytest.mark.parametrize("batch_s", [0, -1.0, float("nan")])
def test_a_batch_has_something_in_it(checkpoint: Path, batch_s: float) -> None:
    with pytest.raises(PsclapError, match=f"batch_s {batch_s} must be above 0"):
        Embedder(checkpoint, batch_s=batch_s)


def test_embeddings_do_not_depend_on_what_is_batched_together(checkpoint: Path) -> None:
    waves = [noise(0.3 + number % 7 / 3, seed=number) for number in range(30)]
    texts = ["a voice", "a deep voice, " * 9, "a fast, loud and very cheerful voice"] * 5
    alone = Embedder(checkpoint, batch_s=0.001)
    for batch_s in (1.0, 3.7, 1000.0):
        together = Embedder(checkpoint, batch_s=batch_s)
        np.testing.assert_allclose(together.embed_audio(waves), alone.embed_audio(waves), atol=1e-6)
        np.testing.assert_allclose(
            together.embed_text(texts), np.concatenate([alone.embed_text([text]) for text in texts]), atol=1e-6
        )


def test_no_more_than_a_window_of_waves_is_held(checkpoint: Path) -> None:
    embedder, freed, most = Embedder(checkpoint, batch_s=1.0), [], 0

    def waves() -> Iterator[np.ndarray]:
        nonlocal most
        for number in range(100):
            wave = noise(0.5, seed=number)
            weakref.finalize(wave, freed.append, number)
            most = max(most, number + 1 - len(freed))
            yield wave
            del wave

    assert embedder.embed_audio(waves()).shape == (100, embedder.dim)
    assert 32 <= most <= 36


def test_bf16_where_it_is_asked_for(checkpoint: Path) -> None:
    stored, half = Embedder(checkpoint), Embedder(checkpoint, precision="bf16")
    assert not stored.computes_in_bf16
    assert half.computes_in_bf16
    assert not Embedder(checkpoint, precision="auto").computes_in_bf16  # this small one gains nothing
    waves = [noise(0.5, seed=number) for number in range(3)]
    cosines = (stored.embed_audio(waves) * half.embed_audio(waves)).sum(1)
    assert cosines.min() > 0.999
    assert not np.array_equal(stored.embed_audio(waves), half.embed_audio(waves))


@pytest.mark.parametrize("source", [None, 5, io.StringIO("text")])
def test_what_is_no_file_is_named(embedder: Embedder, source: Any) -> None:
    with pytest.raises(PsclapError, match=r"sources\[0\]: unreadable: .* is neither a path, bytes nor a file"):
        embedder.embed_files([source])


def test_a_text_must_be_one(embedder: Embedder) -> None:
    with pytest.raises(PsclapError, match="texts must be strings"):
        embedder.embed_text(["a soft voice", 5])  # type: ignore[list-item]


def test_a_bad_clip_leaves_the_model_as_it_was(embedder: Embedder) -> None:
    embedder.model.train()
    try:
        with pytest.raises(PsclapError):
            embedder.embed_audio([noise(0.5), noise(0.001)])
        assert embedder.model.training
    finally:
        embedder.model.eval()


def test_a_name_of_any_length_is_refused_in_a_sentence() -> None:
    with pytest.raises(PsclapError):
        Embedder("x" * 300)


def test_the_shortest_clip_is_long_enough_for_a_wavlm(wavlm: Embedder) -> None:
    together = wavlm.embed_audio([noise(0.025), noise(1.0, seed=1)])
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together[:1], wavlm.embed_audio([noise(0.025)]), atol=1e-5)


def test_one_bad_file_names_itself(embedder: Embedder, clips: list[Path], tmp_path: Path, web: str) -> None:
    text = tmp_path / "notes.wav"
    text.write_text("no sound at all")
    for source, message in (
        (text, r"notes\.wav: unreadable"),
        (tmp_path / "nowhere.flac", r"nowhere\.flac: missing"),
        (clips[0].read_bytes()[:5000], r"sources\[1\]: truncated"),
        (io.BytesIO(b""), r"sources\[1\]: empty"),
        (wav(noise(0.001)), r"sources\[1\]: too short"),
        (f"{web}/nowhere.wav", r"http://127.*nowhere\.wav: missing"),
        ("http://me:secret@127.0.0.1:9/x.wav", r"cannot reach http://127\.0\.0\.1:9/x\.wav"),
    ):
        with pytest.raises(PsclapError, match=message) as raised:
            embedder.embed_files([clips[0], source])
        assert "secret" not in str(raised.value)


def test_a_single_item_is_not_taken_for_a_list(embedder: Embedder, clips: list[Path]) -> None:
    for call in (
        lambda: embedder.embed_files(str(clips[0])),
        lambda: embedder.embed_files(clips[0]),  # type: ignore[arg-type]
        lambda: embedder.embed_text("a raspy voice"),
        lambda: embedder.embed_tags("raspy"),
        lambda: embedder.classify(clips, "texture"),
    ):
        with pytest.raises(PsclapError, match="is one item; give a list"):
            call()


def test_an_ensemble_is_the_mean_of_all_wordings(embedder: Embedder) -> None:
    candidates = ("raspy", "Irish", "lisp", "fast")
    slow = []
    for tag in candidates:
        total = np.zeros(embedder.dim)
        for prompt in tags.training_prompts(tag):
            vector = embedder.embed_text([prompt])[0].astype(np.float64)
            total += vector / np.linalg.norm(vector)
        mean = total / len(tags.training_prompts(tag))
        slow.append(mean / np.linalg.norm(mean))
    ensemble = embedder.embed_tags(candidates, ensemble=True)
    np.testing.assert_allclose(ensemble, slow, atol=1e-6)
    assert ensemble.dtype == np.float32
    plain = embedder.embed_tags(candidates)
    np.testing.assert_array_equal(plain, embedder.embed_text([tags.default_prompt(tag) for tag in candidates]))
    assert np.abs(plain[0] - ensemble[0]).max() > 1e-3  # raspy has nine wordings
    np.testing.assert_allclose(plain[1], ensemble[1], atol=1e-6)  # Irish has one
    assert embedder.embed_tags([]).shape == embedder.embed_tags([], ensemble=True).shape == (0, embedder.dim)
    with pytest.raises(PsclapError, match="did you mean raspy"):
        embedder.embed_tags(["raspyy"])


def test_score_and_classify_are_cosines(embedder: Embedder, clips: list[Path]) -> None:
    speech, texts = embedder.embed_files(clips), embedder.embed_text(TEXTS)
    scores = embedder.score(clips, TEXTS)
    assert scores.shape == (3, 2)
    for row in range(3):
        for column in range(2):
            assert scores[row, column] == pytest.approx(float(speech[row] @ texts[column]), abs=1e-6)
    for ensemble in (False, True):
        names = ("raspy", "male", "female")
        prompts = embedder.embed_tags(names, ensemble)
        for number, found in enumerate(embedder.classify(clips, ["raspy", "gender"], ensemble)):
            cosines = [float(speech[number] @ prompt) for prompt in prompts]
            assert found.tag == names[int(np.argmax(cosines))]
            assert dict(found.scores) == pytest.approx(dict(zip(names, cosines, strict=True)), abs=1e-6)
            assert json.loads(json.dumps(found.scores)) == found.scores
    with pytest.raises(PsclapError, match="at least 2 candidate"):
        embedder.classify(clips, ["raspy"])


def test_threads_share_an_embedder_whose_model_computes_one_batch_at_a_time(
    embedder: Embedder, clips: list[Path]
) -> None:
    texts = [f"voice number {number} " * (1 + number % 7) for number in range(40)]
    speech, alone = embedder.embed_files(clips), embedder.embed_text(texts)
    inside, most = [0], [0]

    def enter(*_: object) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)  # time for another to come in

    def leave(*_: object) -> None:
        inside[0] -= 1

    towers = (embedder.model.audio_model, embedder.model.text_model)
    hooks = [tower.register_forward_pre_hook(enter) for tower in towers]
    hooks += [tower.register_forward_hook(leave) for tower in towers]
    with ThreadPoolExecutor(8) as threads:
        heard = threads.map(embedder.embed_files, [clips] * 8)
        read = list(threads.map(lambda text: embedder.embed_text([text])[0], texts))
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(np.array(list(heard)), np.array([speech] * 8), atol=1e-6)
    np.testing.assert_allclose(np.array(read), alone, atol=1e-5)
    assert most == [1]


@pytest.mark.parametrize("model", ["/nowhere/at/all", "nowhere", ""])
def test_a_folder_that_is_not_there_is_named(model: str) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint folder"):
        Embedder(model)


class Hub(BaseHTTPRequestHandler):
    """What of the Hugging Face Hub `snapshot_download` asks for, with one repository, someone/voices."""

    protocol_version = "HTTP/1.1"
    folder: Path
    asked: list[str]
    commit = "c0ffee12" * 5

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        files = {file.name: file for file in self.folder.iterdir()}
        name = path.rsplit("/", 1)[-1]
        if path.startswith("/api/models/someone/voices/tree/"):
            listed = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in files.values()
            ]
            self.answer(200, json.dumps(listed).encode())
        elif path.startswith("/api/models/someone/voices"):
            siblings = [{"rfilename": name} for name in files]
            self.answer(200, json.dumps({"id": "someone/voices", "sha": self.commit, "siblings": siblings}).encode())
        elif path.startswith("/someone/voices/resolve/") and name in files:
            self.answer(200, files[name].read_bytes(), name)
        else:
            self.answer(404, b"{}", error="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, body: bytes, name: str = "", error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{name}-{self.commit}"')
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


_EMBED = """
import json, sys
from psclap import Embedder, PsclapError
for model in sys.argv[1:]:
    try:
        print(json.dumps(Embedder(model).embed_text(["a raspy voice"]).tolist()))
    except PsclapError as error:
        print(json.dumps(str(error)))
"""


def test_a_name_on_the_hub_is_fetched_without_its_pickles(
    embedder: Embedder, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "published"
    published.mkdir()
    for path in checkpoint.iterdir():
        (published / path.name).write_bytes(path.read_bytes())
    for name in ("pytorch_model.bin", "training_args.pt", "model.pkl", "modeling.py", "weights.ckpt"):
        (published / name).write_bytes(b"what nobody should fetch")
    handler = type("OfTest", (Hub,), {"folder": published, "asked": []})

    def run(*models: str) -> list[Any]:
        command = [sys.executable, "-c", _EMBED, *models]
        out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
        return [json.loads(line) for line in out.splitlines()]

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    expected = embedder.embed_text(["a raspy voice"]).tolist()
    with serving(handler) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        known, unknown = run("someone/voices@main", "someone/else")
    assert known == expected
    assert "someone/else is no checkpoint folder here, and no model that the Hugging Face Hub" in unknown
    fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert fetched == {path.name for path in checkpoint.iterdir() if path.suffix != ".py"}
    assert not [path for path in handler.asked if path.endswith((".bin", ".pt", ".pkl", ".py", ".ckpt"))]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("someone/voices") == [expected]  # from the cache
