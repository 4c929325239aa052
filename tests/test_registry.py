"""The registry: a folder pushed comes back as it was, once, and nothing of a registered model is trusted."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from commands import psclap
from mlflow import MlflowClient
from small_model import save_small_model
from tracking_server import KILLED_AFTER_CALL

from pipelines.registry import fetch_model, push_model
from pipelines.tracking import TrackingStore
from psclap.embedding import Embedder
from psclap.errors import CheckpointError, PsclapError
from psclap.models import fetch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as somebody may have brought it, with files of their own and a trainer's state."""
    folder = save_small_model(tmp_path_factory.mktemp("imported") / "model")
    (folder / "notes").mkdir()
    (folder / "notes" / "licence.txt").write_text("MIT\n")
    (folder / "trainer.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture(autouse=True)
def at_server(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    TrackingStore(server, None).client()  # MLflow keeps the last store that anybody spoke to
    return server


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def versions(server: str, name: str) -> list[str]:
    return sorted(found.version for found in MlflowClient(server).search_model_versions(f"name='{name}'"))


def test_what_is_pushed_is_pulled_byte_for_byte(checkpoint: Path, server: str, tmp_path: Path) -> None:
    assert push_model(checkpoint, "imported", "champion") == "models:/imported/1"
    expected = files(checkpoint)
    del expected["trainer.safetensors"]
    for uri in ("models:/imported/1", "models:/imported@champion"):
        target = tmp_path / uri.replace("/", "-")
        fetch.pull(uri, target)
        assert files(target) == expected
    version = MlflowClient(server).get_model_version("imported", "1")
    assert MlflowClient(server).get_run(version.run_id).info.status == "FINISHED"
    text = ["a raspy voice"]
    assert Embedder("models:/imported@champion").embed_text(text).tolist() == (
        Embedder(checkpoint).embed_text(text).tolist()
    )


def test_the_same_content_is_one_version(checkpoint: Path, server: str, tmp_path: Path) -> None:
    for _ in range(2):
        assert push_model(checkpoint, "same") == "models:/same/1"
    changed = tmp_path / "changed"
    shutil.copytree(checkpoint, changed)
    (changed / "README.md").write_text("# Another text, with the same weights\n")
    assert push_model(changed, "same", "challenger") == "models:/same/2"
    assert push_model(checkpoint, "same", "challenger") == "models:/same/1"
    assert MlflowClient(server).get_model_version_by_alias("same", "challenger").version == "1"
    assert versions(server, "same") == ["1", "2"]


_KILLED = f"""
{KILLED_AFTER_CALL}
from pipelines.registry import push_model
push_model(Path(sys.argv[1]), sys.argv[2], "champion")
"""


@pytest.mark.parametrize("call", ["create_run", "_create_model_version"])
def test_a_push_that_is_killed_can_be_repeated(checkpoint: Path, server: str, call: str) -> None:
    name = f"killed-{call.strip('_')}"
    command = [sys.executable, "-c", _KILLED, str(checkpoint), name, call]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert push_model(checkpoint, name, "champion") == f"models:/{name}/1"
    assert versions(server, name) == ["1"]
    version = MlflowClient(server).get_model_version_by_alias(name, "champion")
    run = MlflowClient(server).get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert len(MlflowClient(server).search_runs([run.info.experiment_id], f"tags.`psclap.pushed_to` = '{name}'")) == 1


def test_a_version_is_downloaded_once(checkpoint: Path) -> None:
    push_model(checkpoint, "once", "champion")
    first = fetch_model("models:/once@champion")
    assert first.is_relative_to(Path(os.environ["PSCLAP_CACHE_DIR"]))
    before = (first / "model.safetensors").stat()
    assert fetch_model("models:/once/1") == first
    assert os.path.samestat((first / "model.safetensors").stat(), before)


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def test_a_model_that_was_changed_in_the_cache_is_not_used(checkpoint: Path) -> None:
    uri = push_model(checkpoint, "cached")
    folder = fetch_model(uri)
    for name in ("model.safetensors", "config.json", "notes/licence.txt", "added.json"):
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_bytes((before or b"") + b"\n")
        with pytest.raises(PsclapError, match="models:/cached/1 is not what was registered") as raised:
            fetch_model(uri)
        if before is not None:
            (folder / name).write_bytes(before)
    (named,) = re.findall(r"remove (\S+) if", str(raised.value))
    shutil.rmtree(named)
    assert files(fetch_model(uri)) == {k: v for k, v in files(checkpoint).items() if k != "trainer.safetensors"}


def test_a_model_that_was_changed_in_its_artefact_store_is_not_used(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    store = tmp_path / "mlflow"
    uri = push_model(checkpoint, "kept", tracking_folder=store)
    folder = fetch_model(uri, store)
    assert folder.is_relative_to(store)
    change(folder / "config.json")
    with pytest.raises(PsclapError, match=r"is not what was registered: .* its tag psclap\.content is"):
        fetch_model(uri, store)
    client = TrackingStore.at(store).client()
    client.delete_model_version_tag("kept", "1", "psclap.content")
    capsys.readouterr()
    assert fetch_model(uri, store) == folder  # as versions were, of which only the weights had a hash
    assert f"{uri} carries no hash of its files: only its weights are checked" in capsys.readouterr().out
    change(folder / "model.safetensors")
    with pytest.raises(PsclapError, match=r"is not what was registered: .* its tag weights_sha256 is"):
        fetch_model(uri, store)


def test_what_arrives_damaged_is_not_kept(
    checkpoint: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = push_model(checkpoint, "damaged")
    weights = [*tmp_path_factory.getbasetemp().glob("mlflow-server*/artifacts/**/artifacts/model/model.safetensors")]
    newest = max(weights, key=lambda path: path.stat().st_mtime_ns)
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    monkeypatch.setenv("PSCLAP_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(PsclapError, match="models:/damaged/1 is not what was registered"):
        fetch_model(uri)
    assert [path.name for path in (tmp_path / "cache/models").iterdir()] == ["download.lock"]
    newest.write_bytes(whole)
    assert files(fetch_model(uri))["model.safetensors"] == whole


def test_only_models_are_pulled_and_what_is_pulled_is_whole(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        fetch.pull(str(tmp_path / "notes"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.copytree(checkpoint, tmp_path / "bare", ignore=shutil.ignore_patterns("*.py"))  # as the Hub is fetched
    fetch.pull(str(tmp_path / "bare"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in checkpoint.iterdir()}


def test_pull_touches_no_folder_with_files(checkpoint: Path, tmp_path: Path) -> None:
    push_model(checkpoint, "kept")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(PsclapError, match="is not empty"):
        fetch.pull("models:/kept/1", tmp_path)
    with pytest.raises(PsclapError, match="a file of that name is in the way"):
        fetch.pull("models:/kept/1", tmp_path / "mine.txt")
    assert files(tmp_path) == {"mine.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    fetch.pull("models:/kept/1", tmp_path / "empty")
    assert Embedder(tmp_path / "empty").dim == 64


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/kept/99", "is not to be had from the registry"),
        ("models:/nothing@champion", "is not to be had from the registry"),
        ("models:/nonsense", "is no model URI"),
        ("nowhere", "there is no model 'nowhere'"),
    ],
)
def test_a_pull_that_fails_leaves_nothing(model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PsclapError, match=message):
        fetch.pull(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "alias", "message"),
    [
        ("a/b", None, "cannot name a model"),
        ("x' or name like '%", None, "cannot name a model"),
        ("fine", "latest", "cannot be an alias"),
        ("fine", "V2", "cannot be an alias"),
        ("fine", "two words", "cannot be an alias"),
    ],
)
def test_names_that_mlflow_would_refuse_are_refused_first(
    checkpoint: Path, server: str, name: str, alias: str | None, message: str
) -> None:
    with pytest.raises(PsclapError, match=message):
        push_model(checkpoint, name, alias)
    assert not versions(server, "fine")


def test_what_is_no_model_is_not_pushed(checkpoint: Path, server: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    (damaged / "model.safetensors").write_bytes(b"short")
    for folder in (tmp_path / "nowhere", damaged):
        with pytest.raises(CheckpointError):
            push_model(folder, "never")
    assert not versions(server, "never")


def test_a_registry_that_is_away_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for call in (lambda: push_model(checkpoint, "away"), lambda: fetch_model("models:/away/1")):
        with pytest.raises(PsclapError, match=r"http://127\.0\.0\.1:9") as raised:
            call()
        assert "secret" not in str(raised.value)


def register_folder(server: str, folder: Path, name: str) -> None:
    """A version whose files are those of a folder, as anybody who may write to a registry can make one."""
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("foreign")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("foreign")
    run = client.create_run(experiment_id)
    client.log_artifacts(run.info.run_id, str(folder), "model")
    client.create_registered_model(name)
    client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)


@pytest.mark.parametrize("path", ["../../outside", "artifacts/../../..", "/etc"])
def test_a_model_file_cannot_lead_out_of_its_folder(
    checkpoint: Path, server: str, tmp_path: Path, path: str, request: pytest.FixtureRequest
) -> None:
    mlmodel: dict[str, Any] = {"flavors": {"python_function": {"artifacts": {"model": {"path": path}}}}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text(yaml.safe_dump(mlmodel))
    name = f"leaving-{request.node.callspec.id.replace('/', '_')}".replace(".", "-")
    register_folder(server, tmp_path / "model", name)
    with pytest.raises(PsclapError, match="is not to be trusted"):
        fetch_model(f"models:/{name}/1")
    with pytest.raises(PsclapError, match="is not to be trusted"):
        fetch.pull(f"models:/{name}/1", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_model_of_others_is_named(server: str, tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(yaml.safe_dump({"flavors": {"sklearn": {}}}))
    register_folder(server, tmp_path, "foreign")
    with pytest.raises(PsclapError, match="was not registered by psclap"):
        fetch_model("models:/foreign/1")


class Trap(mlflow.pyfunc.PythonModel):
    """Whoever unpickles it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.mark,)

    def predict(self, context: Any, model_input: Any) -> Any:
        return model_input


def test_a_pickle_in_a_registered_model_is_never_opened(
    checkpoint: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    store = MlflowClient(server)
    with mlflow.start_run(experiment_id=store.create_experiment("trap")):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=Trap(mark),
            artifacts={"model": str(checkpoint)},
            registered_model_name="trap",
            pip_requirements=["mlflow"],
        )
    mark.unlink(missing_ok=True)
    fetch.pull("models:/trap/1", tmp_path / "model")
    assert "models:/trap/1 carries no hash of its files: nothing of it is checked" in capsys.readouterr().out
    assert Embedder(tmp_path / "model").dim == 64
    assert not mark.exists()
    downloaded = fetch_model("models:/trap/1").parents[1]
    pickle.loads((downloaded / "python_model.pkl").read_bytes())
    assert mark.exists()  # the trap was set


def test_the_command_line_pushes_and_pulls(checkpoint: Path, tmp_path: Path) -> None:
    pushed = psclap("push", checkpoint, "commanded", "--alias", "champion")
    assert pushed.returncode == 0, pushed.stderr
    assert "models:/commanded/1, commanded@champion" in pushed.stdout
    pulled = psclap("pull", "models:/commanded@champion", tmp_path / "model")
    assert pulled.returncode == 0, pulled.stderr
    assert files(tmp_path / "model") == {k: v for k, v in files(checkpoint).items() if k != "trainer.safetensors"}
    again = psclap("pull", "models:/commanded@champion", tmp_path / "model")
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert "is not empty" in again.stderr
