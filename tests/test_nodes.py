"""More than one node, for real: nodes are lost, and the head; what comes out is what an undisturbed run makes.

The nodes share no file. What they all reach is an S3 server, an MLflow server with a database, and Ray's head.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from moto.server import ThreadedMotoServer
from nodes import Cluster, Machine
from tracking_server import TrackingServer

from pipelines.cluster import ray_session
from pipelines.score import score, scoring_model
from psclap.config import PRESETS_FOLDER, ScoreOptions, load_params
from psclap.models.fetch import weights_sha256
from psclap.schema import Utterance, utterances_to_table
from psclap.scoring.inputs import open_input
from psclap.scoring.job import ScoreJob
from psclap.training.journal import Journal
from stages import shard, train

pytestmark = [pytest.mark.slow, pytest.mark.soak]  # clusters of three nodes, which take two cores minutes to start

VARIANT = "combined"
STEPS = 30
SCORING = ScoreOptions(("a deep voice",), ("rate",), block_clips=3)
CLIPS = 96 + 24 + 48
UNITS = CLIPS // 4
BLOCKS = CLIPS // 3


def project(folder: Path, utterances: list[Utterance], url: str) -> Path:
    """A folder to run stages in: params.yaml, and what `prepare` makes. Shards and checkpoints go to `url`."""
    params = yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())
    params["shard"] |= {"url": f"{url}/shards", "max_samples_per_shard": 4}
    params["train"]["base"] |= {"max_steps": STEPS, "validate_every": 10, "log_every": 1, "global_batch_size": 16}
    params["train"]["base"] |= {"warmup_steps": 2}
    params["resources"]["checkpoints"] |= {"url": f"{url}/checkpoints", "every_steps": 4}
    (folder / "data/corpus").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    pq.write_table(utterances_to_table(utterances), folder / "data/corpus/utterances.parquet")
    return folder


@pytest.fixture(scope="module")
def utterances(mini_corpus: tuple[Path, list[Utterance]], s3_server: str) -> list[Utterance]:
    """Those of a small corpus, with their audio on S3."""
    url = f"{s3_server}/nodes/audio"
    fsspec.filesystem("s3").put(str(mini_corpus[0] / "audio"), url, recursive=True)
    return [replace(each, audio=f"{url}/{Path(each.audio).name}") for each in mini_corpus[1]]


@pytest.fixture(scope="module")
def cluster(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and two workers, which see nothing that tests write, and servers that they reach."""
    with Cluster(tmp_path_factory.mktemp("cluster"), hidden=tmp_path_factory.getbasetemp()) as cluster:
        print(f"\nnodes are {cluster.kind}")
        buckets = ThreadedMotoServer(cluster.outside, port=0, verbose=False)  # moto's are those of `s3_server`
        buckets.start()
        tracking = TrackingServer(tmp_path_factory.mktemp("tracking"), cluster.outside)
        tracking.start()
        host, port = buckets.get_host_and_port()
        cluster.environment |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "MLFLOW_TRACKING_URI": tracking.uri}
        cluster.start()
        yield cluster
        tracking.stop()
        buckets.stop()


@pytest.fixture(scope="module")
def expected(
    cluster: Cluster, utterances: list[Utterance], s3_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What nobody disturbs, on this machine alone."""
    folder = project(tmp_path_factory.mktemp("undisturbed"), utterances, f"{s3_server}/nodes/undisturbed")
    with pytest.MonkeyPatch.context() as patch, ray_session():
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", cluster.environment["MLFLOW_TRACKING_URI"])
        params = load_params(Path("params.yaml"))
        shard.main(params)
        train.main(params, VARIANT)
        score(ScoreJob(scoring_model(f"models/{VARIANT}"), open_input("data/shards"), "scored", SCORING))
    return folder


@pytest.fixture(scope="module")
def work(utterances: list[Utterance], s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("work"), utterances, f"{s3_server}/nodes/disturbed")


class Driver:
    """A command on a machine."""

    def __init__(self, cluster: Cluster, machine: Machine, cwd: Path, *command: str):
        self._log = cluster.folder / f"driver-{time.monotonic_ns()}.log"
        self._process = cluster.popen(machine, [sys.executable, "-m", *command], self._log, cwd)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_until(self, is_so: Callable[[], Any]) -> None:
        """Returns when it is so, while the command runs."""
        while not is_so():
            assert self._process.poll() is None, self.said
            time.sleep(0.1)  # asking the S3 server costs 20 ms of the cores that all share

    def ends(self, status: int = 0) -> str:
        """Waits for the end; returns what was said."""
        assert self._process.wait(timeout=200) == status, self.said
        return self.said

    def ends_for_the_head(self) -> None:
        said = self.ends(1)
        assert "is lost: its head was ended or restarted" in said
        assert "the same command goes on from here" in said
        assert "Traceback" not in said


def test_shards(cluster: Cluster, expected: Path, work: Path, s3_server: str) -> None:
    """A node is lost; what it was at is done by another, and the bytes are the same."""
    url = f"{s3_server}/nodes/disturbed/shards"
    driver = Driver(cluster, cluster.head, work, "stages.shard")
    driver.wait_until(lambda: len(found(f"{url}/*/receipts/*")) >= 3)
    cluster.workers[0].kill()
    assert len(found(f"{url}/*/receipts/*")) < UNITS
    driver.ends()
    cluster.give_back(cluster.workers[0])
    shards, wanted = (contents(f"{s3_server}/nodes/{each}/shards/*/*") for each in ("disturbed", "undisturbed"))
    assert sum(name.endswith(".tar") for name in shards) == UNITS
    assert shards == wanted


def test_training(cluster: Cluster, expected: Path, work: Path) -> None:
    """The node of rank 0 is lost, then the head; neither the model nor a step's numbers tell of it."""
    driver = Driver(cluster, cluster.head, work, "stages.train", VARIANT)
    driver.wait_until(lambda: steps(work) >= 9)
    lost = next(machine for machine in cluster.workers if has_rank_0(machine))
    lost.kill()
    cluster.give_back(lost)
    driver.wait_until(lambda: steps(work) >= 18)
    cluster.kill_ray(cluster.head)
    driver.ends_for_the_head()
    assert steps(work) < STEPS
    cluster.restart()
    assert "going on from step" in Driver(cluster, cluster.head, work, "stages.train", VARIANT).ends()
    for name in ("model.safetensors", "trainer.safetensors", "progress.json"):
        trained, wanted = (folder / "models" / VARIANT / name for folder in (work, expected))
        assert trained.read_bytes() == wanted.read_bytes()
    history, wanted = (folder / "training" / VARIANT / "history.csv" for folder in (work, expected))
    assert history.read_text() == wanted.read_text()
    assert steps(work) == STEPS


def test_a_registered_version(cluster: Cluster, expected: Path, work: Path) -> None:
    """The weights that the tracking server has are those of the undisturbed run; its run has each step once."""
    Driver(cluster, cluster.head, work, "stages.evaluate", VARIANT).ends()
    Driver(cluster, cluster.head, work, "stages.register", VARIANT).ends()
    client = MlflowClient(cluster.environment["MLFLOW_TRACKING_URI"])
    version = client.get_model_version_by_alias(f"psclap-{VARIANT}", "champion")
    assert version.tags["weights_sha256"] == weights_sha256(expected / "models" / VARIANT)
    logged = client.get_metric_history(version.run_id, "loss/total")
    assert [metric.step for metric in logged] == list(range(1, STEPS + 1))


def test_scores(cluster: Cluster, expected: Path, work: Path, s3_server: str) -> None:
    """A node is lost, with the driver on the other worker, where no file of it is needed."""
    scored, here = f"{s3_server}/nodes/disturbed/scored", cluster.workers[1]
    (shards,) = found(f"{s3_server}/nodes/disturbed/shards/*")
    command = ["pipelines.score", "--model", f"models:/psclap-{VARIANT}@champion", "--input", f"s3://{shards}"]
    command += ["--output", scored, "--caption", *SCORING.captions, "--attribute", *SCORING.attributes]
    command += ["--block-clips", str(SCORING.block_clips)]
    driver = Driver(cluster, here, Path("/"), *command)
    driver.wait_until(lambda: len(found(f"{scored}/clips/*")) >= 3)
    cluster.workers[0].kill()
    assert len(found(f"{scored}/clips/*")) < BLOCKS
    assert f"{CLIPS} clips" in driver.ends()
    assert len(found(f"{scored}/clips/*")) == BLOCKS
    assert table(scored) == table(f"{expected}/scored")


def found(pattern: str) -> list[str]:
    s3 = fsspec.filesystem("s3")
    s3.invalidate_cache()
    return s3.glob(pattern)


def contents(pattern: str) -> dict[str, bytes]:
    """The files right in one folder, by name."""
    s3 = fsspec.filesystem("s3")
    return {path.rsplit("/", 1)[1]: s3.cat_file(path) for path in found(pattern) if s3.isfile(path)}


def steps(folder: Path) -> int:
    """How many steps of the training in a project have their numbers in the journal."""
    journals = [Journal(path) for path in folder.glob(f"runs/{VARIANT}-*/journal")]
    return len(journals[0].history()) if journals else 0


def has_rank_0(machine: Machine) -> bool:
    """Whether the worker that writes the checkpoints runs there: it has opened its report of hangs."""
    return any(machine.path(machine.temp / "cache/hangs").glob("*/*rank-0*"))


def table(scored: str) -> pa.Table:
    """The scored clips, but for the names of what they come from."""
    filesystem, path = fsspec.core.url_to_fs(f"{scored}/clips")
    clips = ds.dataset(path, filesystem=filesystem, format="parquet").to_table().replace_schema_metadata()
    return clips.drop_columns(["model", "audio"]).sort_by("key")
