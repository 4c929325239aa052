"""The gate with a real registry and real models: what passes, what does not, and kills between any two steps."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from gate_kills import made_before
from small_training import mini, run

from pipelines.gate import pass_gate
from pipelines.lease import LeaseError, leased
from pipelines.notes import DECISION_TAG
from pipelines.promotion import Standing, promote, roll_back, standing
from pipelines.registry import register
from pipelines.tracking import STORE_NAME, TrackingStore
from psclap.config import PRESETS_FOLDER, EvaluateConfig
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.classification import carried_attributes
from psclap.evaluation.evaluate import TestSets
from psclap.evaluation.retrieval import carried_caption_sets
from psclap.evaluation.run import evaluate_to_folder
from psclap.retraining.config import Criterion, RetrainConfig, load_retrain_config
from psclap.retraining.policy import Reports, decide
from psclap.retraining.record import Record
from psclap.shards.index import ShardIndex

MODEL = "psclap-small"
LEASE = "psclap-retrain-aliases-lock"
R10 = "retrieval/intrinsic/audio_to_text/R@10"
"""Of 48 clips."""


GOOD, BAD, AGAIN = ("1", "2", "4"), "3", "5"
"""Versions in the registry, by how much their training learnt; the last has the weights of the first."""


@pytest.fixture(scope="module")
def registry(mini_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a store with registered versions and no aliases; each test has a copy."""
    mapping = yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())
    folder = tmp_path_factory.mktemp("registry")
    store = TrackingStore(f"sqlite:///{folder}/{STORE_NAME}", (folder / "artifacts").as_uri())
    experiment, client = store.experiment_id("psclap"), store.client()
    for name, steps in (("good", 60), ("bad", 2)):
        training = mini(mapping, mini_shards, max_steps=steps, validate_every=steps, dropout=0.0, warmup_steps=1)
        run(training, folder / name)
    run_id = client.create_run(experiment, tags={"git_revision": "abc"}).info.run_id
    register(store, run_id, folder / "good/step-00000060", MODEL, None, {})
    first = client.get_model_version(MODEL, "1")
    # Of the others the gate reads what the registry says; their reports are there already.
    for weights in ("alike", "bad", "alike too", first.tags["weights_sha256"]):
        run_id = client.create_run(experiment, tags={"git_revision": "abc"}).info.run_id
        tags = {"psclap.content": first.tags["psclap.content"], "weights_sha256": weights}
        client.create_model_version(MODEL, first.source, run_id, tags=tags)
    return folder / STORE_NAME


@pytest.fixture(scope="module")
def reports(registry: Path, mini_shards: Path) -> Path:
    """The reports of both models on the test set, which the gate would make again and again."""
    index = ShardIndex(mini_shards)
    config = EvaluateConfig("test", carried_caption_sets(index, "test"), carried_attributes(index, "test"))
    folder = registry.parent / "reports"
    for name, step in (("good", 60), ("bad", 2)):
        embedder = Embedder(registry.parent / name / f"step-{step:08}")
        evaluate_to_folder(folder / name, name, TestSets(index, config), embedder)
    for version in (*GOOD, AGAIN):
        (folder / version).symlink_to(folder / "good")
    (folder / BAD).symlink_to(folder / "bad")
    return folder


@pytest.fixture
def reports_are_there(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.gate.evaluate_to_folder", made_before(reports))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "registered").mkdir()
    return tmp_path


@pytest.fixture
def store(project: Path, registry: Path) -> TrackingStore:
    (project / "mlflow").mkdir()
    shutil.copy(registry, project / "mlflow")
    return TrackingStore.at(project / "mlflow")


@pytest.fixture
def config(project: Path, mini_shards: Path) -> RetrainConfig:
    (project / "retrain.yaml").write_text(
        yaml.safe_dump(
            {
                "variants": {
                    "small": {"model": MODEL, "policy": {"fixed": {R10: {"min": 0.01, "max_regression": 0.2}}}}
                },
                "test_sets": {"fixed": {"shards": str(mini_shards)}},
            }
        )
    )
    return load_retrain_config(project / "retrain.yaml")


def train(version: str) -> None:
    """Leaves what a training leaves that registered this version."""
    found = TrackingStore.at(Path("mlflow")).client().get_model_version(MODEL, version)
    values = {"name": MODEL, "version": version, "run_id": found.run_id, "weights_sha256": found.tags["weights_sha256"]}
    Path("registered/small.json").write_text(json.dumps(values))


def gate(config: RetrainConfig, store: TrackingStore) -> str:
    return pass_gate(config, store, "small")


def decisions(store: TrackingStore) -> list[Any]:
    experiment = store.client().get_experiment_by_name("psclap-retrain")
    return store.client().search_runs([experiment.experiment_id])


def records() -> list[Record]:
    found = [Record.read(path) for path in sorted(Path("runs/retrain/decisions").iterdir())]
    return [record for record in found if record]


@pytest.mark.usefixtures("reports_are_there")
def test_the_first_is_promoted_a_worse_one_is_not_and_the_next_good_one_is(
    config: RetrainConfig, store: TrackingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    train(GOOD[0])
    assert gate(config, store) == "promoted"
    assert gate(config, store) == "nothing new"
    train(BAD)
    assert gate(config, store) == "kept"
    assert gate(config, store) == "kept"  # the same again, from the record
    assert standing(store.client(), MODEL) == Standing(MODEL, "3", "1", None)
    assert f"{R10} on fixed is" in capsys.readouterr().out
    train(GOOD[2])
    assert gate(config, store) == "promoted"
    assert standing(store.client(), MODEL) == Standing(MODEL, "4", "4", "1")
    by_version = {record.grounds.challenger.uri[-1]: record.decision for record in records()}
    assert by_version["1"].reasons == ("it is the first, and meets every minimum",)
    assert [check.passed for check in by_version["3"].checks] == [True, False]
    assert (by_version["4"].checks[1].gain, by_version["4"].checks[1].low) == (0.0, 0.0)
    assert len(decisions(store)) == 3


def test_a_decision_is_recorded_with_numbers_reasons_and_links(
    config: RetrainConfig, store: TrackingStore, tmp_path: Path
) -> None:
    train(GOOD[0])
    gate(config, store)
    (record,), (run,) = records(), decisions(store)
    client = store.client()
    version = client.get_model_version(MODEL, "1")
    assert run.info.status == "FINISHED"
    assert run.data.tags[DECISION_TAG] == version.tags[DECISION_TAG] == record.grounds.id
    assert record.links == {"challenger_run": version.run_id, "git_revision": "abc"}
    name = R10.replace("@", "_at_")
    assert run.data.metrics[f"fixed/{name}/challenger"] == record.decision.checks[0].challenger
    page = Path(client.download_artifacts(run.info.run_id, "decision.md", str(tmp_path))).read_text()
    assert "# models:/psclap-small/1: promote" in page
    assert f"{R10} | at least 0.01 " in page
    assert client.list_artifacts(run.info.run_id, "reports/fixed/challenger")


@pytest.mark.usefixtures("reports_are_there")
def test_what_was_rolled_back_is_not_promoted_again(config: RetrainConfig, store: TrackingStore) -> None:
    """Under no version: the first one's weights come back as the last."""
    for version in (GOOD[1], GOOD[2]):
        train(version)
        gate(config, store)
    client = store.client()
    with leased(store, LEASE) as lease:
        assert roll_back(lease, MODEL) == ("4", "2")
        assert standing(client, MODEL) == Standing(MODEL, "4", "2", None)
        with pytest.raises(PsclapError, match="version 2 of psclap-small replaced no other; name one with --to"):
            roll_back(lease, MODEL)
        with pytest.raises(PsclapError, match="version 2 of psclap-small is the champion already"):
            roll_back(lease, MODEL, "2")
        with pytest.raises(PsclapError, match="has no version '77'"):
            roll_back(lease, MODEL, "77")
        assert gate(config, store) == "kept"
        client.set_model_version_tag(MODEL, "1", "psclap.rolled_back", "yesterday")
    train(AGAIN)
    assert gate(config, store) == "kept"
    assert standing(client, MODEL).champion == "2"
    reasons = [reason for record in records() for reason in record.decision.reasons]
    assert any(reason.startswith("version 4, of the same weights, was rolled back at 20") for reason in reasons)
    assert "version 1, of the same weights, was rolled back at yesterday" in reasons


@pytest.mark.usefixtures("reports_are_there")
def test_the_registration_of_an_old_checkout_does_not_become_the_champion(
    config: RetrainConfig, store: TrackingStore
) -> None:
    for version in GOOD[1:]:
        train(version)
        gate(config, store)
    train(GOOD[0])
    assert gate(config, store) == "kept"
    assert standing(store.client(), MODEL) == Standing(MODEL, "1", "4", "2")
    with leased(store, LEASE) as lease:
        assert roll_back(lease, MODEL, "1") == ("4", "1")
    assert standing(store.client(), MODEL) == Standing(MODEL, "1", "1", None)


@pytest.mark.usefixtures("reports_are_there")
def test_a_rollback_does_not_lead_to_the_same_weights_in_another_cover(
    config: RetrainConfig, store: TrackingStore
) -> None:
    client = store.client()
    client.set_registered_model_alias(MODEL, "champion", "1")
    client.set_model_version_tag(MODEL, "1", "psclap.replaced", "")
    train(AGAIN)
    assert gate(config, store) == "promoted"
    assert standing(client, MODEL) == Standing(MODEL, "5", "5", None)


@pytest.mark.usefixtures("reports_are_there")
def test_a_promotion_that_was_killed_after_the_alias_is_completed(config: RetrainConfig, store: TrackingStore) -> None:
    for version in GOOD[:2]:
        train(version)
        gate(config, store)
    client = store.client()
    client.delete_registered_model_alias(MODEL, "previous")
    client.delete_model_version_tag(MODEL, "2", "psclap.promoted")
    assert gate(config, store) == "nothing new"
    assert standing(client, MODEL) == Standing(MODEL, "2", "2", "1")
    assert "psclap.promoted" in client.get_model_version(MODEL, "2").tags


@pytest.mark.usefixtures("reports_are_there")
def test_a_minimum_keeps_even_the_first_one_out(config: RetrainConfig, store: TrackingStore) -> None:
    variant = config.variants["small"]
    strict = replace(variant, policy={"fixed": {R10: Criterion(min=0.999)}})
    train(BAD)
    assert gate(replace(config, variants={"small": strict}), store) == "kept"
    assert standing(store.client(), MODEL).champion is None
    assert gate(config, store) == "promoted"  # another policy is another decision


@pytest.mark.usefixtures("reports_are_there")
@pytest.mark.parametrize("version", [GOOD[2], BAD])
def test_killed_between_any_two_steps_it_ends_as_if_nothing_had_happened(
    config: RetrainConfig, store: TrackingStore, project: Path, reports: Path, version: str
) -> None:
    for known in GOOD[:2]:
        train(known)
        gate(config, store)
    train(version)
    changes = killed_everywhere(project, reports)
    seen = [tuple(json.loads(line)) for line in Path("aliases.jsonl").read_text().splitlines()]
    if version == BAD:
        assert set(seen) == {("2", "1")}
    else:
        assert list(dict.fromkeys(seen)) == [("2", "1"), ("4", "1"), ("4", "2")]
    expected = ("2", "1") if version == BAD else ("4", "2")
    assert standing(store.client(), MODEL) == Standing(MODEL, version, *expected)
    assert len(changes) >= (8 if version == BAD else 14), changes
    check_decided_once(store)
    assert gate(config, store) == ("kept" if version == BAD else "nothing new")


def killed_everywhere(project: Path, reports: Path) -> list[str]:
    """Runs the gate until nothing kills it any more; returns the changes after which it was killed."""
    script = Path(__file__).parent / "gate_kills.py"
    command = [sys.executable, str(script), str(project), str(project / "retrain.yaml"), "small", str(reports)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    assert ended["status"] in range(3), done.stderr
    return ended["killed_after"]


def check_decided_once(store: TrackingStore) -> None:
    runs = decisions(store)
    assert len(runs) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    newest = max(runs, key=lambda run: run.info.start_time)
    history = store.client().get_metric_history(newest.info.run_id, f"fixed/{R10.replace('@', '_at_')}/gain")
    assert len(history) == 1


@pytest.mark.parametrize(
    ("metric", "rule", "passes"),
    [
        ("classification/texture/UAR", Criterion(min_gain=0.05), True),
        (R10, Criterion(min_gain=0.05), False),
        (R10, Criterion(max=0.1), False),
        ("retrieval/intrinsic/audio_to_text/mean_rank", Criterion(max=12, max_regression=0, min_gain=0.1), True),
        ("retrieval/intrinsic/audio_to_text/mean_rank", Criterion(max=1), False),
    ],
)
def test_each_rule_asks_what_it_says(reports: Path, metric: str, rule: Criterion, passes: bool) -> None:
    """Of a good model after a bad one. A lower mean rank is a gain."""
    decision = decide({"fixed": {metric: rule}}, {"fixed": Reports(reports / "good", reports / "bad")})
    assert decision.promote is passes, decision.reasons
    assert all(check.passed for check in decision.checks) is passes


def test_a_metric_that_the_reports_lack_is_an_error(reports: Path) -> None:
    policy = {"fixed": {"classification/genders/UAR": Criterion(min=0.1)}}
    with pytest.raises(
        PsclapError, match=r"no metric 'classification/genders/UAR'; there is \['classification/gender/UAR"
    ):
        decide(policy, {"fixed": Reports(reports / "good", None)})


def test_another_champion_meanwhile_and_the_decision_is_void(store: TrackingStore) -> None:
    client = store.client()
    client.set_registered_model_alias(MODEL, "champion", "2")
    with leased(store, LEASE) as lease, pytest.raises(LeaseError, match="is version 2 and no longer 1"):
        promote(lease, MODEL, "4", "1")
    assert standing(client, MODEL) == Standing(MODEL, None, "2", None)


def test_a_test_set_that_changed_is_an_error(config: RetrainConfig, store: TrackingStore) -> None:
    train(BAD)
    pinned = {"fixed": replace(config.test_sets["fixed"], index_sha256="0" * 64)}
    with pytest.raises(PsclapError, match=r"test set fixed: the index of .* has the hash"):
        gate(replace(config, test_sets=pinned), store)
    absent = replace(config.variants["small"], policy={"fixed": {"classification/accent/UAR": Criterion(min=0.1)}})
    with pytest.raises(PsclapError, match="classification/accent/UAR: the test clips of"):
        gate(replace(config, variants={"small": absent}), store)
    assert standing(store.client(), MODEL).champion is None


def test_what_is_registered_elsewhere_is_an_error(config: RetrainConfig, store: TrackingStore) -> None:
    with pytest.raises(PsclapError, match=r"registered/small\.json does not name a registered version"):
        gate(config, store)
    values = {"name": MODEL, "version": "77", "run_id": "r", "weights_sha256": "w"}
    Path("registered/small.json").write_text(json.dumps(values))
    with pytest.raises(PsclapError, match="names version 77 of psclap-small, which this registry does not have"):
        gate(config, store)
    Path("registered/small.json").write_text(json.dumps({**values, "version": "1"}))
    with pytest.raises(PsclapError, match="or has of another training"):
        gate(config, store)
    Path("registered/small.json").write_text(json.dumps({**values, "name": "other"}))
    with pytest.raises(PsclapError, match=r"model is 'psclap-small', and .* registered 'other'"):
        gate(config, store)


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    (tmp_path / "decision.json").write_text('{"id": 3')
    with pytest.raises(PsclapError, match=r"decision\.json is damaged"):
        Record.read(tmp_path)
    (tmp_path / "decision.json").write_text('{"id": 3}')
    with pytest.raises(PsclapError, match=r"record\.grounds: missing key"):
        Record.read(tmp_path)
    assert Record.read(tmp_path / "absent") is None
