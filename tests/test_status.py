"""`psclap status`: what a store and a folder hold is on the screen; what is away or damaged is said, soon."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from pipelines.delivery import deliver
from pipelines.status import MAX_MODELS, tracked
from pipelines.tracking import TrackingStore
from psclap.cli import app
from psclap.status.page import WIDTH
from psclap.training.journal import Journal, JournalTracker

INDEX = "c0ffee00" + "1" * 56
METRICS = {
    "combined/audio_to_text/R_at_10": "0.9776",
    "combined/audio_to_text/chance_R_at_10": "0.0641",
    "combined/text_to_audio/R_at_10": "0.5",
    "situational/audio_to_text/R_at_10": "nan",
    "intrinsic/audio_to_text/R_at_10": "somebody's note",
    "classification/gender/UAR": "1.0",
    "classification/gender/chance_UAR": "0.5",
    "classification/rate/UAR": "0.5",
    "classification/rate/chance_UAR": "0.25",
    "data_index_sha256": INDEX,
}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to be in, and no server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def status(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["status", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def status_json(*arguments: str) -> dict[str, Any]:
    return json.loads(status("--json", *arguments)[1])


def train(store: TrackingStore, folder: Path, name: str, steps: int) -> str:
    """A training's run as it gets to a store; returns its id."""
    journal = Journal.start(folder, "psclap", name)
    tracker = JournalTracker(journal)
    tracker.params({"max_steps": 30})
    tracker.tags({"data_index_sha256": INDEX})
    for step in range(1, steps + 1):
        tracker.metrics(step, {"loss/total": 1 / step, "val/R@10": step / 100, "lr": float("nan")})
    return deliver(store, journal)


def register(client: MlflowClient, model: str, run_id: str, aliases: tuple[str, ...], **tags: str) -> None:
    uri = client.get_run(run_id).info.artifact_uri
    version = client.create_model_version(model, f"{uri}/model", run_id, tags=METRICS | tags)
    for alias in aliases:
        client.set_registered_model_alias(model, alias, version.version)


def test_all_that_a_server_knows_is_on_the_screen(
    server: str, in_a_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("//", "//me:hunter2@"))
    store = TrackingStore.at(Path("mlflow"))
    client = store.client()
    runs = [train(store, in_a_folder / name, name, steps) for name, steps in (("first", 3), ("läuft noch", 20))]
    client.set_terminated(runs[0], "FAILED")
    client.create_registered_model("status-model")
    register(client, "status-model", runs[0], ("previous",))
    register(client, "status-model", runs[0], ("champion",), **{"psclap.promoted": "2026-11-21T05:06:07Z"})
    for _ in range(2):
        register(client, "status-model", runs[1], ())
    decided = {"psclap.decision": "0123456789ab", "psclap.decided": "keep", "model": "models:/status-model/4"}
    experiment = store.experiment_id("psclap-retrain")
    client.create_run(experiment, tags=decided, run_name="models:/status-model/4: keep the champion")
    lock = client.create_experiment("psclap-retrain-lock-000001", tags={"holder": "7@there", "heartbeat": "5"})

    found = status_json("--runs", "2")
    told = found["tracked"]
    assert (found["failure"], told["store"]) == (None, server)
    newest, older = told["runs"]
    assert (newest["name"], newest["step"], newest["max_steps"], newest["data"]) == ("läuft noch", 20, 30, INDEX)
    assert newest["metrics"] == {"loss/total": 0.05, "val/R_at_10": 0.2}
    assert (older["name"], older["status"], newest["status"]) == ("first", "FAILED", "RUNNING")
    versions = [version for version in told["versions"] if version["model"] == "status-model"]
    assert [(one["version"], one["aliases"]) for one in versions] == [
        ("4", []),
        ("2", ["champion"]),
        ("1", ["previous"]),
    ]
    assert versions[0]["metrics"] == {"R@10 combined": 0.9776, "UAR": 0.75}
    assert versions[0]["chance"] == {"R@10 combined": 0.0641, "UAR": 0.375}
    assert versions[1]["promoted"] == "2026-11-21T05:06:07Z"
    assert [(one["id"], one["promote"]) for one in told["decisions"]] == [("0123456789ab", False)]
    assert (told["retraining"]["holder"], told["retraining"]["heartbeat"]) == ("7@there", "5")

    code, text = status()
    assert code == 0
    for words in ("läuft noch", "20/30", "97.8 (6.4)", "2026-11-21 05:06", "keep the champion", "7@there"):
        assert words in text
    assert "hunter2" not in text + json.dumps(found)
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= WIDTH
    client.delete_experiment(lock)
    assert "RETRAIN   none is going on" in status()[1]


def test_a_store_of_many_models_is_no_wider_than_the_screen(in_a_folder: Path) -> None:
    store = TrackingStore.at(Path("mlflow"))
    run, client = train(store, in_a_folder / "journal", "many", 3), store.client()
    for number in range(MAX_MODELS + 1):
        client.create_registered_model(name := f"model-{number}-" + "x" * 40)
        register(client, name, run, tuple(f"alias-{number}" for number in range(12)))
    code, text = status()
    assert code == 0
    assert "only the models that changed last" in text
    assert text.count("alias-0") == MAX_MODELS
    assert max(map(len, text.splitlines()[1:])) <= WIDTH  # the first names the store, whole


def test_the_embedded_store_is_read(in_a_folder: Path) -> None:
    train(TrackingStore.at(Path("mlflow")), in_a_folder / "journal", "alone", 3)
    code, text = status()
    assert code == 0
    assert "alone" in text
    assert "MODELS    none registered" in text


def test_where_there_is_no_store_none_is_made(in_a_folder: Path) -> None:
    code, text = status()
    assert code == 0
    assert "none yet" in text
    assert [*in_a_folder.iterdir()] == []
    assert tracked(5).store is None


def make_local_facts(folder: Path) -> None:
    shards, decision = folder / "data/shards", folder / "runs/retrain/decisions/m-v2-aa"
    shards.mkdir(parents=True)
    decision.mkdir(parents=True)
    splits = {"train": {"clips": 5000, "hours": 2.5}, "test": {"clips": 12, "hours": 0.1}}
    summary = {"index_sha256": INDEX, "clips": 5012, "splits": splits, "rejected": 3}
    (shards / "summary.json").write_text(json.dumps(summary))
    (shards / "data_card.md").write_text("# Data card\n\n## Soundness\n\nNot sound: 1 error.\n\n- error: x\n")
    (folder / "dvc.lock").write_text("schema: '2.0'\nstages:\n  make:\n    cmd: echo\n")
    record = {
        "id": "aa",
        "decided_at": "2026-11-22T03:00:00+00:00",
        "decision": {"promote": True, "reasons": ["all 4 rules of the policy are met", "and more"]},
        "grounds": {"challenger": {"uri": "models:/m/2"}},
    }
    (decision / "decision.json").write_text(json.dumps(record))
    sides = {"reference": {"location": "s3://b/old"}, "new": {"location": "s3://b/new"}}
    drift = {"drifted": True, "headline": 0.41, "worst": "tag phonation", **sides}
    (folder / "runs/drift.json").write_text(json.dumps(drift))


def test_what_lies_in_the_folder_is_told(in_a_folder: Path) -> None:
    make_local_facts(in_a_folder)
    _, text = status()
    assert "data/shards c0ffee00: 5,012 clips, 2.60 h (train 5,000, test 12), 3 rejected" in text
    assert "its check then: not sound: 1 error" in text
    assert "dvc.lock: 1 stages" in text
    assert "2026-11-22 03:00  models:/m/2: promote: all 4 rules of the policy are met (and 1 more)" in text
    assert "DRIFTED, headline 0.410 (tag phonation): s3://b/new, see runs/drift.json" in text


def test_a_damaged_file_is_named_and_the_rest_is_shown(in_a_folder: Path) -> None:
    make_local_facts(in_a_folder)
    (in_a_folder / "data/shards/summary.json").write_text("{")
    (in_a_folder / "dvc.lock").write_text("[")
    (in_a_folder / "runs/drift.json").write_text("[]")
    code, text = status()
    assert code == 0
    for name in ("data/shards/summary.json", "dvc.lock", "runs/drift.json"):
        assert f"! {name} cannot be read" in text
    assert "models:/m/2: promote" in text


def test_dvc_says_what_would_run(in_a_folder: Path) -> None:
    make_local_facts(in_a_folder)
    assert "! `dvc status` failed" in status("--dvc")[1]
    (in_a_folder / ".dvc").mkdir()
    (in_a_folder / ".dvc/config").write_text("[core]\n    no_scm = True\n    analytics = False\n")
    (in_a_folder / "dvc.yaml").write_text("stages:\n  make:\n    cmd: echo now > out\n    outs: [out]\n")
    assert "`dvc repro` would run make" in status("--dvc")[1]


@pytest.fixture
def silent_server() -> Any:
    """The URI of a server that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://me:hunter2@127.0.0.1:{listener.getsockname()[1]}"


def test_without_an_answer_the_folder_is_shown(
    in_a_folder: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_local_facts(in_a_folder)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{unused.getsockname()[1]}")
        code, text = status("--timeout", "60")
        found = status_json("--timeout", "60")
    assert code == 75
    for words in ("does not answer", "5,012 clips", "models:/m/2: promote"):
        assert words in text
    assert "hunter2" not in text + json.dumps(found)
    assert (found["tracked"], found["local"]["data"]["index_sha256"]) == (None, INDEX)
    assert "does not answer" in found["failure"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    code, text = status("--timeout", "1")
    assert code == 75
    assert "did not answer within 1 s" in text
    assert "5,012 clips" in text
