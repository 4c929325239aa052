"""An object store that answers 503 or slowly, and a tracking server that loses answers: nothing is lost or doubled."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import SHARDING
from mlflow import MlflowClient
from small_model import save_small_model
from small_training import mini
from storm import Rule, Storm, storm

from pipelines.registry import fetch_model, push_model
from pipelines.score import ScoreBlocks
from psclap import storage
from psclap.config import ScoreOptions
from psclap.errors import PsclapError
from psclap.loop_config import CheckpointConfig
from psclap.schema import Utterance, utterances_to_table
from psclap.scoring.inputs import open_input
from psclap.scoring.job import ScoreJob, ScoringModel
from psclap.scoring.tables import CLIPS, Statistics, path
from psclap.shards.writer import ShardJob, write_shards
from psclap.training.loop import train
from psclap.training.store import CheckpointStore
from psclap.training.tracker import NullTracker

FEW = 24


def every(number: int, fate: Any) -> Rule:
    return lambda seen, method, path: fate if seen % number == 0 else "pass"


@contextmanager
def store_in_storm(rule: Rule) -> Iterator[Storm]:
    """The S3 server of the tests, behind a storm; clients try a request three times."""
    with pytest.MonkeyPatch.context() as patch, storm(os.environ["AWS_ENDPOINT_URL"], rule) as (url, weather):
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_MAX_ATTEMPTS", "3")
        fsspec.filesystem("s3").clear_instance_cache()
        try:
            yield weather
        finally:
            fsspec.filesystem("s3").clear_instance_cache()


def down(seen: int, method: str, path: str) -> Any:
    return "refuse"


@pytest.fixture(scope="module")
def few(mini_corpus: tuple[Path, list[Utterance]]) -> Any:
    return utterances_to_table(mini_corpus[1][:FEW])


def build(few: Any, destination: str, receipts: str) -> dict[str, Any]:
    return write_shards(ShardJob(few, Path("/"), SHARDING, destination, receipts), run=map)


@pytest.mark.parametrize(("name", "rule"), [("errors", every(4, "refuse")), ("slow", every(2, "slow"))])
def test_shards_of_a_bad_hour_are_those_of_a_good_one(
    few: Any, s3_server: str, tmp_path: Path, name: str, rule: Rule
) -> None:
    expected = build(few, str(tmp_path / "shards"), str(tmp_path / "receipts"))
    url = f"{s3_server}/storms/{name}"
    with store_in_storm(rule) as weather:
        summary = build(few, url, f"{url}/receipts")
    assert weather.met > 3
    assert summary == expected
    for shard in summary["shards"]:
        assert storage.read(f"{url}/{shard}") == (tmp_path / "shards" / shard).read_bytes()


def test_a_store_that_is_away_ends_the_build_and_it_goes_on_later(few: Any, s3_server: str, tmp_path: Path) -> None:
    url = f"{s3_server}/storms/away"
    with store_in_storm(lambda seen, *_: "pass" if seen < 6 else "refuse"), pytest.raises(PsclapError, match="reach"):
        build(few, url, f"{url}/receipts")
    assert build(few, url, f"{url}/receipts") == build(few, str(tmp_path / "shards"), str(tmp_path / "receipts"))


def weights(store: CheckpointStore) -> bytes:
    with store.reading(store.best()) as folder:
        return (folder / "model.safetensors").read_bytes()


def test_a_training_of_a_bad_hour_ends_as_one_of_a_good_one(
    mini_shards: Path, params_mapping: dict[str, Any], s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = CheckpointStore(tmp_path / "checkpoints", CheckpointConfig())
    train(mini(params_mapping, mini_shards), NullTracker(), undisturbed)
    url = f"{s3_server}/storms/data"
    fsspec.filesystem("s3").put(f"{mini_shards}/", f"{url}/", recursive=True)
    monkeypatch.setenv("PSCLAP_CACHE_DIR", str(tmp_path / "cache"))
    training = replace(mini(params_mapping, mini_shards), shards=url)
    store = CheckpointStore(f"{s3_server}/storms/checkpoints", CheckpointConfig())
    with store_in_storm(lambda seen, *_: "pass" if seen < 60 else "refuse"), pytest.raises(PsclapError, match="reach"):
        train(training, NullTracker(), store)
    with store_in_storm(every(5, "refuse")) as weather:
        train(training, NullTracker(), store)
    assert weather.met > 3
    assert weights(store) == weights(undisturbed)


def scored(job: ScoreJob) -> Statistics:
    """All blocks of a job, as one actor does them."""
    items = job.begin()
    blocks = ScoreBlocks(job.model, job.options, job.input.root, job.output, threads=1, tracking_uri=None)
    return sum((blocks._block(number) for number in range(items.blocks)), Statistics())


def test_scores_of_a_bad_hour_are_those_of_a_good_one(
    mini_shards: Path, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_small_model(tmp_path / "model")
    model, options = ScoringModel("small", str(folder), "0"), ScoreOptions(captions=("a deep voice",), block_clips=8)
    source = f"{s3_server}/storms/source"
    fsspec.filesystem("s3").put(f"{mini_shards}/", f"{source}/", recursive=True)
    here = ScoreJob(model, open_input(str(mini_shards), "val"), str(tmp_path / "scores"), options)
    expected = scored(here)
    monkeypatch.setenv("PSCLAP_CACHE_DIR", str(tmp_path / "cache"))
    with store_in_storm(every(5, "refuse")) as weather:
        there = ScoreJob(model, open_input(source, "val"), f"{s3_server}/storms/scores", options)
        assert scored(there) == expected
    assert weather.met > 3
    assert storage.read(path(there.output, CLIPS, 0)) == storage.read(path(here.output, CLIPS, 0))


def test_a_registry_that_is_away_for_a_while_and_loses_answers_has_each_thing_once(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lost = save_small_model(tmp_path / "model"), set[str]()

    def rule(seen: int, method: str, path: str) -> Any:
        kind = path.partition("?")[0].rpartition("/mlflow/")[2]
        if kind in ("runs/create", "model-versions/create") and kind not in lost:
            lost.add(kind)  # it is made, and nobody hears of it
            return "lose"
        return "refuse" if 3 <= seen <= 4 else "pass"

    with storm(server, rule) as (url, weather):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        assert push_model(folder, "stormy", "champion") == "models:/stormy/1"
    assert (weather.met, lost) == (4, {"runs/create", "model-versions/create"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    client = MlflowClient(server)
    (version,) = client.search_model_versions("name='stormy'")
    (run,) = client.search_runs(
        [client.get_experiment_by_name("psclap-pushed").experiment_id], "tags.`psclap.pushed_to` = 'stormy'"
    )
    assert (version.run_id, run.info.status) == (run.info.run_id, "FINISHED")
    assert fetch_model("models:/stormy@champion").is_dir()
