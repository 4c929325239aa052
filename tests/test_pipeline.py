"""The whole pipeline in a clone of the working tree: real DVC, Ray workers, MLflow server, audio and models."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from typer.testing import CliRunner, Result

from pipelines.lease import leased
from pipelines.promotion import standing
from pipelines.retrain import app
from pipelines.tracking import TrackingStore
from psclap.embedding import Embedder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


RETRAIN: dict[str, Any] = {
    "variants": {
        "combined": {
            "model": "psclap-combined",
            "policy": {"fixed": {"classification/gender/UAR": {"min": 0.1, "max_regression": 0.2}}},
        }
    },
    "test_sets": {"fixed": {"shards": "data/shards"}},
    "data": {"min_clips": {"train": 90}, "max_reject_rate": 0.1},
}


def tracked_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def clone(target: Path, voices: dict[str, Any] | None = None) -> Path:
    """A small project as a user would have it; `voices` are its sections of text to speech, none where not given."""
    for name in tracked_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    (target / "dvc.lock").unlink(missing_ok=True)
    params = yaml.safe_load((target / "psclap/presets/demo.yaml").read_text())
    params["corpus"]["options"] |= {"train_clips": 96, "val_clips": 24, "test_clips": 48}
    params["shard"]["max_samples_per_shard"] = 40
    params["train"]["base"] |= {"max_steps": 40, "validate_every": 4, "log_every": 10, "global_batch_size": 16}
    params["train"]["base"] |= {"warmup_steps": 2}
    params["reward"] |= {"prompts": 6, "candidates": 4, "calibration_clips": 96}
    params |= voices or {"voices": [], "tts": {}}
    params["register"]["alias"] = "challenger"
    params["variants"].remove("intrinsic")  # two variants show what three would
    del params["train"]["intrinsic"]
    (target / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (target / "retrain.yaml").write_text(yaml.safe_dump(RETRAIN))
    pipeline = (target / "dvc.yaml").read_text().splitlines(keepends=True)
    (target / "dvc.yaml").write_text("".join(line for line in pipeline if "/intrinsic/" not in line))
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "mini"]):
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *identity, *command], cwd=target, check=True)
    return target


class Project:
    """A clone in which commands run as a user would run them."""

    def __init__(self, folder: Path, server: str):
        self.folder = folder
        # The clone's own modules, not the working tree's, are what `python -m stages...` must find.
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "MLFLOW_TRACKING_URI": server,
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell's background job, as a test run may be, ignores Ctrl-C, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *command: str) -> str:
        process = self.start(*command)
        out, err = process.communicate(timeout=1500)
        assert process.returncode == 0, f"{command}: {process.returncode}\n{out[-4000:]}\n{err[-4000:]}"
        return out

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, server: str) -> Project:
    """A clone after its first retraining, which is a `dvc repro` and a gate."""
    project = Project(clone(tmp_path_factory.mktemp("project")), server)
    output = project.run("python", "-m", "pipelines.retrain", "--config", "retrain.yaml")
    assert output.count("Running stage") == 11
    assert "models:/psclap-combined/1 is psclap-combined@champion now" in output
    return project


def test_repro_leaves_every_product(project: Project) -> None:
    for variant in ("situational", "combined"):
        assert Embedder(project.folder / "models" / variant).dim == 64
        metrics = project.json(f"metrics/{variant}/combined.json")["audio_to_text"]
        assert 0 <= metrics["R@1"] <= metrics["R@10"] <= 1
        assert metrics["chance_R@10"] == pytest.approx(10 / 24, abs=1e-3)
        assert (project.folder / f"reports/{variant}/confusion.png").stat().st_size > 10_000
    assert "| combined" in (project.folder / "summary.md").read_text()
    embeddings = pq.read_table(project.folder / "embeddings" / "clips")
    assert embeddings.num_rows == 48
    assert str(embeddings.schema.field("embedding").type) == "fixed_size_list<element: float>[64]"
    assert all((run / "finished").is_file() for run in (project.folder / "runs").glob("*-" + "?" * 12))
    shards = list((project.folder / "data/shards").glob("*.tar"))
    assert shards
    assert all(shard.stat().st_nlink == 2 for shard in shards)  # DVC's cache links them, it holds no copy
    assert "sound" in (project.folder / "data/shards/data_card.md").read_text().lower()


def test_embeddings_are_those_of_the_model_in_the_folder(project: Project) -> None:
    table = pq.read_table(project.folder / "embeddings" / "clips").to_pylist()
    embedder = Embedder(project.folder / "models" / "combined")
    from psclap.shards.index import ShardIndex

    index = ShardIndex(project.folder / "data" / "shards")
    row_of_key = {key: number for number, key in enumerate(index.column("key").to_pylist())}
    clips = [index.read_clip(row_of_key[row["key"]]) for row in table]
    expected = embedder.embed_audio(clips)
    for row, vector in zip(table, expected, strict=True):
        assert row["embedding"] == pytest.approx(vector.tolist(), abs=1e-5)


def test_a_second_repro_does_nothing(project: Project) -> None:
    output = project.run("dvc", "repro")
    assert "Running stage" not in output
    assert output.count("didn't change, skipping") == 11
    assert "Data and pipelines are up to date" in output


def test_dvc_shows_metrics_and_plots(project: Project) -> None:
    shown = json.loads(project.run("dvc", "metrics", "show", "--json"))
    files = shown[""]["data"]
    of_a_variant = ["classification", "combined", "composition", "intrinsic", "situational"]
    assert sorted(files) == sorted(
        ["metrics/reward/combined.json"]
        + [f"metrics/{variant}/{name}.json" for variant in ("situational", "combined") for name in of_a_variant]
    )
    assert "R@10" in json.dumps(files)
    project.run("dvc", "plots", "show", "-o", "plots-page")
    assert (project.folder / "plots-page" / "index.html").is_file()


def test_runs_and_models_are_on_the_server(project: Project, server: str) -> None:
    client = MlflowClient(server)
    runs = client.search_runs([client.get_experiment_by_name("psclap").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["combined", "situational"]
    for run in runs:
        variant = run.info.run_name
        check_run(client, run.info.run_id)
        assert run.data.params["global_batch_size"] == "16"
        assert run.data.tags["workers"] == "2"
        assert run.data.params["model.speech.config.model_type"] == "logmel_conv"
        metrics = project.json(f"metrics/{variant}/combined.json")["audio_to_text"]
        assert run.data.metrics["test/combined/audio_to_text/R_at_10"] == pytest.approx(metrics["R@10"])
        assert len(run.data.tags["git_revision"]) == 40
        assert len(run.data.tags["dvc_lock_sha256"]) == 64
        index = project.json("data/shards/summary.json")["index_sha256"]
        assert run.data.tags["data_index_sha256"] == index
        artifacts = [item.path for item in client.list_artifacts(run.info.run_id, variant)]
        assert f"{variant}/confusion.png" in artifacts
        version = client.get_model_version_by_alias(f"psclap-{variant}", "challenger")
        assert version.run_id == run.info.run_id
        assert version.tags["combined/audio_to_text/R_at_10"] == f"{metrics['R@10']:.4f}"
        check_card(project, variant, server, version)


def test_the_registered_model_answers_as_a_pyfunc(
    project: Project, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mlflow.set_tracking_uri(server)
    model = mlflow.pyfunc.load_model("models:/psclap-combined@champion")
    path = sorted((project.folder / "data/corpus/audio").iterdir())[0]
    rows = pd.DataFrame({"audio": [str(path), base64.b64encode(path.read_bytes()).decode()], "text": ["loud"] * 2})
    embedder = Embedder(project.folder / "models" / "combined")
    speech, text = embedder.embed_files([path])[0], embedder.embed_text(["loud"])[0]
    assert model.predict(rows)["score"].tolist() == pytest.approx([float(speech @ text)] * 2, abs=1e-5)
    embedded = model.predict(rows, params={"task": "embed"})["embedding"]
    assert embedded[1] == pytest.approx(speech, abs=1e-5)
    with pytest.raises(Exception, match="must be one of score, embed"):
        model.predict(rows, params={"task": "sing"})


def test_the_command_line_searches_by_model_uri(project: Project) -> None:
    found = json.loads(project.run("psclap", "search", "embeddings", "a loud voice", "--top", "3", "--json"))
    assert len(found) == 3
    clip = f"data/corpus/audio/{found[0]['key']}.flac"
    scored = json.loads(project.run("psclap", "score", clip, "--text", "a loud voice", "--json"))
    assert scored[0]["score"] == pytest.approx(found[0]["score"], abs=1e-3)


@pytest.fixture
def retrain(project: Project, monkeypatch: pytest.MonkeyPatch, server: str) -> Callable[..., Result]:
    """Runs the retraining's command in this process, in the project's folder, with a changed retrain.yaml."""
    monkeypatch.chdir(project.folder)
    for name in ("MLFLOW_TRACKING_URI", "PYTHONPATH", "PATH"):
        monkeypatch.setenv(name, project.environment[name])
    mlflow.set_tracking_uri(server)

    def run(*arguments: str, **changes: Any) -> Result:
        (project.folder / "changed.yaml").write_text(yaml.safe_dump({**RETRAIN, **changes}))
        return CliRunner().invoke(app, ["--config", "changed.yaml", *arguments])

    return run


def test_a_retraining_with_nothing_new_says_so(retrain: Callable[..., Result]) -> None:
    done = retrain()
    assert done.exit_code == 0
    assert "combined: nothing new" in done.stdout
    preview = retrain("--dry-run")
    assert preview.exit_code == 0
    assert "dvc repro would run nothing" in preview.stdout


def test_what_keeps_a_retraining_from_its_work_has_a_status_of_its_own(
    retrain: Callable[..., Result], project: Project, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsound = retrain(data={"min_clips": {"train": 97}, "min_hours": {"test": 0.1}})
    assert unsound.exit_code == 11
    assert "train has 96 clips, and min_clips asks for 97" in unsound.stderr
    assert "test has 0.0" in unsound.stderr
    with leased(TrackingStore(server, None), "psclap-retrain-lock"):
        busy = retrain()
    assert busy.exit_code == 75
    assert "psclap-retrain-lock is held by" in busy.stderr
    assert retrain(variants={}).exit_code == 1
    assert retrain("--rollback").exit_code == 1
    assert "version 1 of psclap-combined replaced no other" in retrain("--rollback").stderr
    assert retrain("--rollback", "--dry-run").exit_code == 1
    assert (
        "has the variants situational, combined" in retrain(variants={"night": RETRAIN["variants"]["combined"]}).stderr
    )
    other = {"combined": {**RETRAIN["variants"]["combined"], "model": "other"}}
    assert "registers it as psclap-combined, not 'other'" in retrain(variants=other).stderr
    params = (project.folder / "params.yaml").read_text()
    (project.folder / "params.yaml").write_text(params.replace("alias: challenger", "alias: champion"))
    try:
        assert "'champion' would put every new model into use" in retrain().stderr
    finally:
        (project.folder / "params.yaml").write_text(params)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert retrain().exit_code == 75


def test_another_licence_only_registers_again(project: Project) -> None:
    params = project.folder / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("license: mit", "license: apache-2.0"))
    try:
        output = project.run("dvc", "repro", "--dry")
    finally:
        params.write_text(before)
    ran = {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}
    assert ran >= {"register@situational", "register@combined"}
    assert ran <= {"register@situational", "register@combined", "score"}


def test_a_worse_model_does_not_become_the_champion(project: Project, server: str) -> None:
    """Only what depends on the changed setting runs again."""
    params = project.folder / "params.yaml"
    before = params.read_text()
    mapping = yaml.safe_load(before)
    mapping["train"]["combined"]["learning_rate"] = 1e-9
    mapping["resources"]["cpu_workers"] = 0  # this once the stage's own process trains
    params.write_text(yaml.safe_dump(mapping, sort_keys=False))
    (project.folder / "worse.yaml").write_text(yaml.safe_dump({**RETRAIN, "targets": ["register@combined"]}))
    process = project.start("python", "-m", "pipelines.retrain", "--config", "worse.yaml")
    out, err = process.communicate(timeout=1500)
    params.write_text(before)
    assert process.returncode == 10, err
    ran = {line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")}
    assert ran == {"train@combined", "evaluate@combined", "register@combined"}
    assert "models:/psclap-combined/2: keep the champion" in out
    assert "classification/gender/UAR on fixed is" in out
    now = standing(TrackingStore(server, None).client(), "psclap-combined")
    assert (now.challenger, now.champion, now.previous) == ("2", "1", None)


@pytest.fixture
def copy(project: Project, server: str, tmp_path: Path) -> Project:
    ignored = shutil.ignore_patterns(".dvc", ".git")
    shutil.copytree(project.folder, tmp_path, dirs_exist_ok=True, ignore=ignored)
    return Project(tmp_path, server)


DVC_STAGE_FAILED = 255


def forget_runs(project: Project) -> None:
    """Removes what finished trainings left for the case that their products were lost."""
    for folder in (project.folder / "runs").glob("situational-*"):
        shutil.rmtree(folder)


def interrupt(project: Project, *command: str, at_work: str, status: int = 130) -> str:
    """Runs a command until a file of the pattern `at_work` is there, then Ctrl-C; returns what it said.

    The signal goes to the whole process group, as a terminal sends it.
    """
    process = project.start(*command)
    for _ in range(6000):
        assert process.poll() is None, process.communicate()
        if list(project.folder.glob(at_work)):
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert "interrupted" in err
    assert "Traceback" not in err
    return out + err


def test_an_interrupted_prepare_leaves_nothing(copy: Project) -> None:
    shutil.rmtree(copy.folder / "data/corpus")
    interrupt(copy, "python", "-m", "stages.prepare", at_work="data/.corpus.partial-*/audio/*")
    assert {path.name for path in (copy.folder / "data").iterdir()} == {"shards"}


def test_an_interrupted_shard_leaves_nothing(copy: Project) -> None:
    shutil.rmtree(copy.folder / "data/shards")
    manifest = copy.folder / "data/corpus/utterances.parquet"
    rows = pq.read_table(manifest).to_pandas()
    many = pd.concat([rows.assign(key=rows["key"] + f"-{number}") for number in range(60)])
    pq.write_table(pa.Table.from_pandas(many, schema=pq.read_schema(manifest), preserve_index=False), manifest)
    interrupt(copy, "python", "-m", "stages.shard", at_work="runs/shards/receipts/*.parquet")
    assert {path.name for path in (copy.folder / "data").iterdir()} == {"corpus"}


def test_dvc_repro_goes_on_with_an_interrupted_training_and_ends_the_same(project: Project, server: str) -> None:
    """DVC deletes a stage's outputs before it runs it again; the checkpoints are not among them.

    It also does without its tracking server, all the while; what that missed is sent by the register stage.
    """
    names = [f"models/situational/{name}" for name in ("model.safetensors", "trainer.safetensors", "progress.json")]
    names.append("training/situational/history.csv")
    expected = [(project.folder / name).read_bytes() for name in names]
    before = project.json("registered/situational.json")["run_id"]
    forget_runs(project)
    command = ("dvc", "repro", "--force", "--single-item", "train@situational")
    project.environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    try:
        said = interrupt(project, *command, at_work="runs/situational-*/checkpoints/step-*", status=DVC_STAGE_FAILED)
        output = project.run(*command)
    finally:
        project.environment["MLFLOW_TRACKING_URI"] = server
    assert "a checkpoint is being written" in said
    assert "going on from step" in output
    assert "the tracking store http://127.0.0.1:9 has not taken everything" in output
    assert [(project.folder / name).read_bytes() for name in names] == expected
    project.run("python", "-m", "stages.register", "situational")
    run_id = project.json("registered/situational.json")["run_id"]
    assert run_id != before
    check_run(MlflowClient(server), run_id)


def check_card(project: Project, variant: str, server: str, version: ModelVersion) -> None:
    """The version's folder holds the card that lies beside registered/VARIANT.json, with the evaluation's numbers."""
    card = ModelCard.load(project.folder / f"registered/{variant}.md")
    source = MlflowClient(server).get_model_version_download_uri(version.name, version.version)
    (found,) = Path(mlflow.artifacts.download_artifacts(source, tracking_uri=server)).rglob("model/README.md")
    assert found.read_text() == (project.folder / f"registered/{variant}.md").read_text()
    for result in card.data.eval_results:
        if result.task_type == "audio-to-text-retrieval":
            numbers = project.json(f"metrics/{variant}/{result.dataset_config}.json")["audio_to_text"]
            assert result.metric_value == numbers[result.metric_name]
    assert f"`{version.run_id}`" in card.text
    assert version.description in card.text


def check_run(client: MlflowClient, run_id: str) -> None:
    """A finished run with each step of its loss once, and with what the machine did meanwhile."""
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run_id, "loss/total")] == [10, 20, 30, 40]
    assert "system/cpu_utilization_percentage" in run.data.metrics
