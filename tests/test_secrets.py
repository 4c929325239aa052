"""A whole pipeline with secrets in its environment and its URLs; then every byte that it wrote is searched for them."""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from psclap import storage
from psclap.config import parse_params
from psclap.corpora import build_corpus
from psclap.errors import ConfigError, PsclapError
from psclap.scoring.inputs import open_input

MARK = "pLanTed0SecretMark"
"""Part of every secret. What holds it has leaked."""
FORMS = [MARK.encode(), *(base64.b64encode(b"x" * pad + MARK.encode())[4:-4] for pad in range(3))]

_PIPELINE = """
import os, sys
from pathlib import Path
from pipelines.cluster import ray_session
from psclap import log
from psclap.config import load_params
from stages import evaluate, prepare, register, score, shard, train

params = load_params("params.yaml")
with ray_session():
    for stage in (prepare, shard, train, evaluate, register, score):
        log.begin(stage.__name__)
        stage.main(*([params] if stage in (prepare, shard, score) else [params, "combined"]))
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    log.failed(RuntimeError(f"told by mistake: {secret} https://me:{secret}@host/x?sig={secret}"))
"""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray writes; the names of its sockets are too long for pytest's folders."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def secrets_in(name: str, data: bytes) -> list[str]:
    return [f"{name}: {data[max(0, at - 80) : at + 80]!r}" for form in FORMS if (at := data.find(form)) >= 0]


def secrets_below(folder: Path) -> list[str]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            found += secrets_in(str(path), path.read_bytes())
            if path.suffix == ".parquet":  # compressed
                found += secrets_in(str(path), repr(pq.read_table(path).to_pylist()).encode())
    return found


class Watch(threading.Thread):
    """Reads the command lines of all processes below this one, and where they listen, as long as a process lives."""

    def __init__(self, process: subprocess.Popen[str]):
        super().__init__(daemon=True)
        self._process, self.seen = process, set[str]()
        self.listening: set[tuple[str, str]] = set()

    def run(self) -> None:
        while self._process.poll() is None:
            for child in psutil.Process().children(recursive=True):
                try:
                    self.seen.add(" ".join(child.cmdline()))
                    found = [each for each in child.net_connections("inet") if each.status == psutil.CONN_LISTEN]
                    self.listening |= {(child.name(), each.laddr.ip.removeprefix("::ffff:")) for each in found}
                except psutil.Error:
                    continue
            threading.Event().wait(2)  # Ray's servers stay to the end


def project(folder: Path, params: dict[str, Any], bucket: str) -> None:
    params["corpus"]["options"] = {"train_clips": 48, "val_clips": 24, "test_clips": 24}
    params["shard"]["url"] = f"{bucket}/secrets/shards"
    params["variants"] = ["combined"]
    params["train"] = {name: params["train"][name] for name in ("base", "combined")}
    params["train"]["base"] |= {"max_steps": 4, "validate_every": 4, "global_batch_size": 16}
    params["train"]["base"]["sampling"]["rare_block_size"] = 4
    params["reward"]["variants"] = []
    params["evaluate"]["attributes"] = ["gender"]
    params["resources"] |= {"cpu_workers": 1}
    params["resources"]["checkpoints"]["url"] = f"{bucket}/secrets/checkpoints"
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.slow
def test_no_secret_is_left_anywhere_and_no_door_is_open(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ray_folder: Path,
    params_mapping: dict[str, Any],
    server: str,
    s3_server: str,
) -> None:
    project(tmp_path, params_mapping, s3_server)
    (tmp_path / "pipeline.py").write_text(_PIPELINE)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "MLFLOW_TRACKING_URI": server.replace("://", f"://mlops:{MARK}-in-the-url@"),
        "AWS_SECRET_ACCESS_KEY": f"{MARK}-of-the-store",
        "HF_TOKEN": f"hf_{MARK}",
        "PSCLAP_LOG": "json",
        "PSCLAP_RUN_ID": "search-me",
        "RAY_TMPDIR": str(ray_folder),
    }
    process = subprocess.Popen(
        [sys.executable, "pipeline.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watch = Watch(process)
    watch.start()
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 0, told
    watch.join()
    assert "register: models:/psclap-combined/" in told
    assert "score: 24 test clips" in told
    assert "told by mistake: *** https://host/x?sig=***" in told
    store = tmp_path_factory.getbasetemp() / "mlflow-server0"
    assert list(ray_folder.rglob("gcs_server.out"))
    assert b"search-me" in (store / "mlflow.db").read_bytes() + b"".join(
        path.read_bytes() for path in store.glob("mlflow.db-*")
    )
    found = secrets_in("what it told", told.encode()) + secrets_in("ps", "\n".join(watch.seen).encode())
    for folder in (tmp_path, ray_folder, store):
        found += secrets_below(folder)
    files = fsspec.filesystem("s3").find(f"{s3_server}/secrets")
    assert any("checkpoints" in name for name in files) or any("shards" in name for name in files)
    fsspec.filesystem("s3").get(f"{s3_server}/secrets", str(tmp_path / "fetched"), recursive=True)
    found += secrets_below(tmp_path / "fetched")
    assert found == []
    assert {"gcs_server", "raylet"} <= {name for name, _ in watch.listening}
    # While a training runs, torch's rendezvous in its worker listens everywhere: it has no setting for that.
    others = {(name, address) for name, address in watch.listening if not name.startswith("ray::RayTrain")}
    assert {(name, address) for name, address in others if address != "127.0.0.1"} == set()


SECRET_URL = f"s3://key:{MARK}@bucket/x"


@pytest.mark.parametrize(
    ("section", "name"),
    [(("shard",), "url"), (("resources", "checkpoints"), "url"), (("corpus", "options"), "path")],
)
def test_params_with_credentials_in_a_url_are_refused(
    params_mapping: dict[str, Any], section: tuple[str, ...], name: str
) -> None:
    values = params_mapping
    for key in section:
        values = values[key]
    values[name] = SECRET_URL
    with pytest.raises(
        ConfigError, match=rf"{'.'.join(section)}\.{name} has a user or a password in its URL"
    ) as raised:
        parse_params(params_mapping)
    assert MARK not in str(raised.value)


def test_what_is_scored_and_where_to_holds_no_credentials(tmp_path: Path) -> None:
    manifest = tmp_path / "clips.csv"
    manifest.write_text(f"key,audio\n1,{SECRET_URL}.wav\n")
    for location, root in ((SECRET_URL, None), (str(manifest), SECRET_URL)):
        with pytest.raises(PsclapError, match="a user or a password in its URL") as raised:
            open_input(location, audio_root=root)
        assert MARK not in str(raised.value)
    with pytest.raises(PsclapError, match=r"clips\.csv: its audio has a user or a password in its URL"):
        list(open_input(str(manifest)).tables())


def test_a_corpus_holds_no_credentials(tmp_path: Path) -> None:
    manifest = tmp_path / "clips.csv"
    manifest.write_text(f"audio,captions,speaker,source,split\n{SECRET_URL}.wav,A voice.,s1,own,train\n")
    corpus = build_corpus("manifest", {"path": str(manifest)})
    with pytest.raises(PsclapError, match=r"audio 's3://bucket/x\.wav' was given with a user or a password"):
        list(corpus.utterances(tmp_path, None))


def test_texts_lose_secrets_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"hf_{MARK}")
    monkeypatch.setenv("SOME_PASSWORD", "short")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
    signed = f"https://b.s3.amazonaws.com/a.wav?X-Amz-Signature={MARK}&X-Amz-Date=1 and /var/run/token"
    assert storage.redacted(f"{signed}, hf_{MARK}, short") == (
        "https://b.s3.amazonaws.com/a.wav?X-Amz-Signature=***&X-Amz-Date=1 and /var/run/token, ***, short"
    )
