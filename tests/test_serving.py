"""The served model: a real `mlflow models serve`, good and bad requests; and the environment that it needs."""

import base64
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clean_environment import closure, link_packages
from clips import encoded
from small_model import TEXTS, noise, save_small_model, wav

from pipelines.registry import push_model
from pipelines.serving import StyleModel
from psclap import audio
from psclap.embedding import Embedder
from psclap.errors import ConfigError, PsclapError
from psclap.serving import Limits, Service

LIMITS = {
    "PSCLAP_SERVING_MAX_AUDIO_BYTES": "200000",
    "PSCLAP_SERVING_MAX_DURATION_S": "5",
    "PSCLAP_SERVING_MAX_ROWS": "4",
    "PSCLAP_SERVING_MAX_TEXT_CHARACTERS": "1000",
    "PSCLAP_SERVING_BATCH_S": "1.5",
}
SPEECH = wav(noise(1.0))
OTHER = wav(noise(0.7, 22050, seed=1), 22050)
LONG = audio.encode_flac(np.zeros(6 * 16000, np.float32), 16000)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(save_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def store(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry in a file, with the model as models:/served@champion."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        push_model(Path(embedder.model.config.name_or_path), "served", "champion", folder)
    return folder


@pytest.fixture(scope="module")
def url(store: Path) -> Iterator[str]:
    """A server of the model, as a user starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bin_folder = Path(sys.executable).parent
    command = f"{bin_folder / 'mlflow'} models serve -m models:/served@champion --env-manager local -h 127.0.0.1"
    environment = {
        **os.environ,
        **LIMITS,
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db",
        "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": "600",
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
    }
    with (store / "log").open("w") as log:
        process = subprocess.Popen(
            [*shlex.split(command), "-p", str(port)], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(900):
            assert process.poll() is None, (store / "log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def post(url: str, body: Any, content_type: str = "application/json") -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/invocations", data, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def predict(url: str, rows: list[dict[str, Any]], **params: Any) -> list[dict[str, Any]]:
    status, answer = post(url, {"dataframe_records": rows, "params": params})
    assert status == 200, answer
    return answer["predictions"]


def test_every_task_answers_as_the_embedder_does(url: str, embedder: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "other.wav"
    path.write_bytes(OTHER)
    rows = [{"audio": base64_of(SPEECH), "text": TEXTS[0]}, {"audio": str(path), "text": TEXTS[1]}]
    speech, texts = embedder.embed_files([SPEECH, OTHER]), embedder.embed_text(TEXTS)
    scores = [row["score"] for row in predict(url, rows)]
    assert scores == pytest.approx((speech * texts).sum(1).tolist(), abs=1e-5)
    assert [row["score"] for row in predict(url, rows, task="score")] == scores

    mixed = predict(url, [{"audio": base64_of(SPEECH)}, {"text": TEXTS[1]}, {"text": TEXTS[0]}], task="embed")
    expected = np.stack([speech[0], texts[1], texts[0]])
    np.testing.assert_allclose([row["embedding"] for row in mixed], expected, atol=1e-5)

    for ensemble in (False, True):
        params = {"task": "classify", "candidates": ["texture", "male"], "ensemble": ensemble}
        answers = predict(url, [{"audio": row["audio"]} for row in rows], **params)
        for answer, found in zip(
            answers, embedder.classify([SPEECH, OTHER], ["texture", "male"], ensemble), strict=True
        ):
            assert answer["tag"] == found.tag
            assert answer["scores"] == pytest.approx(dict(found.scores), abs=1e-5)


def test_the_other_forms_of_a_request(url: str, embedder: Embedder) -> None:
    expected = embedder.embed_text([TEXTS[0]])[0].tolist()
    for body in (
        {"dataframe_split": {"columns": ["text"], "data": [[TEXTS[0]]]}},
        {"instances": [{"text": TEXTS[0]}]},
        {"inputs": {"text": [TEXTS[0]]}},
    ):
        status, answer = post(url, {**body, "params": {"task": "embed"}})
        assert status == 200, answer
        assert answer["predictions"][0]["embedding"] == pytest.approx(expected, abs=1e-5)
    wrapped = "\n".join(re.findall(".{1,76}", base64_of(SPEECH)))  # as the command base64 writes it
    assert predict(url, [{"audio": wrapped}], task="embed") == predict(
        url, [{"audio": base64_of(SPEECH)}], task="embed"
    )


def records(*rows: Any, **params: Any) -> dict[str, Any]:
    return {"dataframe_records": list(rows), "params": params}


BAD = {
    "bad base64": (records({"audio": "@@@@", "text": "x"}), "row 0: audio: '@@@@' is no URL, no path .* not base64"),
    "cut base64": (records({"audio": "AAAAA", "text": "x"}), "not base64"),
    "text as audio": (records({"audio": base64_of(b"no sound " * 50), "text": "x"}), "row 0: audio: unreadable"),
    "cut audio": (records({"audio": base64_of(SPEECH[:9000]), "text": "x"}), "row 0: audio: truncated"),
    "too large": (records({"audio": base64_of(bytes(200_001)), "text": "x"}), "audio: it has .*200000"),
    "much too large": (records({"audio": base64_of(bytes(900_000)), "text": "x"}), "more than 200000 bytes"),
    "too long": (records({"audio": base64_of(LONG), "text": "x"}), "audio: too long: .*limit is 5"),
    "too short": (records({"audio": base64_of(wav(noise(0.01))), "text": "x"}), "audio: too short"),
    "second row": (
        records({"text": "fine"}, {"text": " "}, task="embed"),
        "row 1: text ' ' must be text, and not empty",
    ),
    "no such path": (records({"audio": "/nowhere/a.wav", "text": "x"}), "row 0: audio: missing"),
    "a folder": (records({"audio": "/etc/init.d", "text": "x"}), "row 0: audio: missing"),
    "a file that is no audio": (
        records({"audio": "/etc/host.conf", "text": "x"}),
        "row 0: audio: (unreadable|missing)",
    ),
    "file URL": (records({"audio": "file:///etc/passwd", "text": "x"}), "must be a plain URL of http, https, s3"),
    "local URL": (records({"audio": "local:///etc/passwd", "text": "x"}), "must be a plain URL"),
    "chained": (records({"audio": "simplecache::http://127.0.0.1:9/a.wav", "text": "x"}), "must be a plain URL"),
    "chained behind": (records({"audio": "http://x::file:///etc/passwd", "text": "x"}), "must be a plain URL"),
    "nobody answers": (records({"audio": "http://127.0.0.1:9/a.wav", "text": "x"}), "cannot reach http://127"),
    "no audio for score": (records({"text": "x"}), "row 0 has no audio: task 'score' needs"),
    "no text for score": (records({"audio": base64_of(SPEECH)}), "row 0 has no text: task 'score' needs"),
    "no audio for classify": (records({"text": "x"}, task="classify", candidates=["texture"]), "row 0 has no audio"),
    "unknown task": (records({"text": "x"}, task="sing"), "task 'sing' must be one of score, embed, classify"),
    "task of a wrong type": (records({"text": "x"}, task=5), "task"),
    "no candidates": (records({"audio": base64_of(SPEECH)}, task="classify"), "needs candidates.*texture"),
    "one candidate": (records({"audio": base64_of(SPEECH)}, task="classify", candidates=["male"]), "at least 2"),
    "unknown tag": (
        records({"audio": base64_of(SPEECH)}, task="classify", candidates=["raspyy"]),
        "did you mean raspy",
    ),
    "candidates of a wrong type": (records({"text": "x"}, task="classify", candidates="male"), "candidates"),
    "candidates without need": (records({"text": "x"}, task="embed", candidates=["texture"]), "belong to task"),
    "no rows": (records(), "no rows"),
    "too many rows": (records(*[{"text": "x"}] * 5, task="embed"), "has 5 rows, the limit is 4"),
    "long text": (records({"text": "x" * 1001}, task="embed"), "text has 1001 characters, the limit is 1000"),
    "half a character": (records({"text": "\ud800 voice"}, task="embed"), "must be text|surrogates not allowed"),
    "an empty row": (records({}), "no rows with|no rows"),
    "null rows": (records({"audio": None, "text": None}, task="embed"), "row 0 has no audio or text"),
    "wrong columns": (records({"sound": "x"}), "no rows"),
    "a number for text": (records({"text": 5}, task="embed"), "text"),
    "numbers among texts": (records({"text": "x"}, {"text": 5}, task="embed"), "row 1: text 5 must be text"),
    "a list for text": (records({"text": ["x"]}, task="embed"), r"row 0: text \['x'\] must be text"),
    "not JSON": (b"{not JSON", "valid JSON"),
    "not UTF-8": (b"\xff\xfe{}", "valid JSON"),
    "a JSON list": ([1, 2], "JSON dictionary"),
    "no rows field": ({"rows": []}, "JSON dictionary"),
    "records that are none": ({"dataframe_records": 5}, "list of records"),
    "params that are none": ({"dataframe_records": [{"text": "x"}], "params": 5}, "[Pp]arams|Parameters"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_answered_by_400_and_why(url: str, name: str) -> None:
    body, message = BAD[name]
    status, answer = post(url, body)
    assert status == 400, answer
    assert re.search(message, answer["message"]), answer["message"]
    assert "Traceback" not in json.dumps(answer)
    assert "stack_trace" not in answer
    assert not re.search(r"\.py\b", answer["message"].replace("psclap/tags.py", ""))


def test_the_server_still_answers(url: str, embedder: Embedder) -> None:
    """After all of the above; and many at once get each their own answer."""
    expected = embedder.embed_text(TEXTS)

    def ask(number: int) -> tuple[int, Any]:
        row = {"text": TEXTS[number % 2]} if number % 3 else {"text": 5}
        return post(url, records(row, task="embed"))

    with ThreadPoolExecutor(12) as threads:
        for number, (status, answer) in enumerate(threads.map(ask, range(36))):
            assert status == (200 if number % 3 else 400)
            if number % 3:
                vector = answer["predictions"][0]["embedding"]
                assert vector == pytest.approx(expected[number % 2].tolist(), abs=1e-5)


@pytest.fixture(scope="module")
def service(embedder: Embedder) -> Service:
    return Service(embedder, Limits(audio=("base64",), url_schemes=("s3",)))


@pytest.mark.parametrize("value", ["/etc/host.conf", "http://127.0.0.1/a.wav", "s3://bucket/a.wav", "a.wav"])
def test_a_server_may_take_base64_alone(service: Service, embedder: Embedder, value: str) -> None:
    with pytest.raises(PsclapError, match=r"row 1: audio .* and this server takes base64 only"):
        service.embed([base64_of(SPEECH), value], [None, None])
    np.testing.assert_allclose(service.embed([base64_of(SPEECH)], [None]), embedder.embed_files([SPEECH]), atol=1e-6)


def test_schemes_may_be_fewer(embedder: Embedder) -> None:
    service = Service(embedder, Limits(url_schemes=("s3",)))
    with pytest.raises(PsclapError, match=r"must be a plain URL of s3$"):
        service.embed(["https://example.org/a.wav"], [None])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MAX_ROWS", "many", "max_rows: 'many' must be a whole number"),
        ("MAX_ROWS", "0", "max_rows: 0 must be at least 1"),
        ("MAX_AUDIO_BYTES", "25MB", "max_audio_bytes: '25MB' must be a whole number"),
        ("MAX_DURATION_S", "-1", "max_duration_s: -1.0 must be greater than 0"),
        ("MAX_DURATION_S", "inf", "max_duration_s: inf must be a number"),
        ("AUDIO", "path,ftp", "audio: .* must be a list, each element one of path, url, base64"),
        ("AUDIO", "", "audio: .* must name at least one"),
        ("URL_SCHEMES", "file", "url_schemes: .* must be a list, each element one of http"),
        ("MAX_ROW", "5", "max_row: unknown key .*did you mean 'max_rows'"),
    ],
)
def test_wrong_limits_are_refused_when_the_model_is_loaded(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"PSCLAP_SERVING_{name}", value)
    with pytest.raises(ConfigError, match=message):
        StyleModel().load_context(SimpleNamespace(artifacts={"model": "not looked at"}))


def test_limits_come_from_the_environment() -> None:
    assert Limits.of({}) == Limits()
    environment = {**LIMITS, "PSCLAP_SERVING_AUDIO": "base64, url", "PATH": "/bin"}
    assert Limits.of(environment) == Limits(
        audio=("base64", "url"),
        max_audio_bytes=200_000,
        max_duration_s=5.0,
        max_rows=4,
        max_text_characters=1000,
        batch_s=1.5,
    )


_CLEAN = """
import json, sys
sys.path.append(sys.argv[1])
import mlflow, pandas
import mlflow.pyfunc.scoring_server.client, uvicorn
model = mlflow.pyfunc.load_model(sys.argv[2])
rows = pandas.DataFrame(json.loads(sys.argv[3]))
score = model.predict(rows)["score"].tolist()
tags = model.predict(rows, {"task": "classify", "candidates": ["gender"]})["tag"].tolist()
embeddings = [vector.tolist() for vector in model.predict(rows, {"task": "embed"})["embedding"]]
mlflow.pyfunc.scoring_server.init(model)
import psclap
print(json.dumps([psclap.__file__, score, tags, embeddings, sorted(sys.modules)]))
"""


def test_the_pinned_requirements_are_all_that_a_server_needs(store: Path, embedder: Embedder, tmp_path: Path) -> None:
    (model,) = {path.parent for path in store.rglob("MLmodel")}
    requirements = (model / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in requirements), requirements
    packages, clips = tmp_path / "packages", tmp_path / "clips"
    packages.mkdir()
    clips.mkdir()
    link_packages(closure(requirements), packages)
    assert (packages / "torch").is_symlink()
    assert not {path.name for path in packages.iterdir()} & {"ray", "dvc", "pytest", "moto"}
    mp3 = encoded(noise(1.0), 16000, "mp3")  # which needs FFmpeg
    (clips / "a.mp3").write_bytes(mp3)
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(clips)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as web:
        assert web.stdout is not None
        port = re.search(r"port (\d+)", web.stdout.readline())[1]  # type: ignore[index]
        rows = [{"audio": f"http://127.0.0.1:{port}/a.mp3", "text": TEXTS[0]}]
        rows += [{"audio": base64_of(SPEECH), "text": TEXTS[1]}]
        command = [sys.executable, "-I", "-S", "-c", _CLEAN, str(packages), str(model), json.dumps(rows)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        web.terminate()
    assert done.returncode == 0, done.stderr
    psclap_file, scores, tags, embeddings, modules = json.loads(done.stdout.splitlines()[-1])
    speech, texts = embedder.embed_files([mp3, SPEECH]), embedder.embed_text(TEXTS)
    assert Path(psclap_file).is_relative_to(model)
    assert scores == pytest.approx((speech * texts).sum(1).tolist(), abs=1e-5)
    assert tags == [found.tag for found in embedder.classify([mp3, SPEECH], ["gender"])]
    np.testing.assert_allclose(embeddings, speech, atol=1e-5)
    assert not {"ray", "dvc", "pipelines"} & set(modules)
