import gc
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from hypothesis import settings
from tracking_server import TrackingServer

from psclap.config import PRESETS_FOLDER
from psclap.corpora import build_corpus
from psclap.data_config import ShardConfig
from psclap.parallel import process_map
from psclap.schema import Utterance, utterances_to_table
from psclap.shards.writer import ShardJob, write_shards

if TYPE_CHECKING:
    from small_speech import SmallSpeech

# Derandomised: a run finds the same examples everywhere, so a failure is never a matter of luck.
settings.register_profile("psclap", deadline=None, derandomize=True, database=None)
settings.load_profile("psclap")

# The tests' models are so small that more threads only wait for each other, here and in the processes they start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish() -> None:
    """All that was imported stays: garbage is not looked for among it again and again."""
    gc.collect()
    gc.freeze()


WAVLM = {
    "model_type": "wavlm",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [32, 32, 32],
    "conv_stride": [10, 8, 4],
    "conv_kernel": [10, 8, 4],
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
"""A WavLM of real shape and little size, for encoders 'from a config'."""

XLM_R = {
    "model_type": "xlm-roberta",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 70,
}
"""And an XLM-R."""


SHARDING = ShardConfig(
    url=None,
    sample_rate_hz=16000,
    loudness_lufs=None,
    max_samples_per_shard=40,
    max_bytes_per_shard=10**8,
    min_duration_s=0.2,
    max_duration_s=60.0,
    max_reject_rate=0.0,
)
"""Shards as the demo makes them, but smaller."""

SPEECH_SHARDING = replace(SHARDING, phonemes=True)
"""And those of its voices."""

MINI_CORPUS = {"train_clips": 96, "val_clips": 24, "test_clips": 48}
"""The options of a small demo corpus."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is fetched in tests, here and in the processes they start, stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PSCLAP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def demo_without_voices() -> dict[str, Any]:
    """The demo preset as plain YAML, for tests of the dual encoder."""
    mapping = yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())
    return mapping | {"voices": [], "tts": {}}


@pytest.fixture
def params_mapping() -> dict[str, Any]:
    """The demo preset as plain YAML, without its voices, free to be broken by the test."""
    return demo_without_voices()


@pytest.fixture(scope="session")
def mini_corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Utterance]]:
    """A small demo corpus: its folder and its utterances, whose audio paths are absolute. Not to be changed."""
    folder = tmp_path_factory.mktemp("corpus")
    corpus = build_corpus("demo", MINI_CORPUS)
    utterances = corpus.utterances(folder, processes=2)
    return folder, [replace(utterance, audio=str(folder / utterance.audio)) for utterance in utterances]


@pytest.fixture(scope="session")
def mini_shards(mini_corpus: tuple[Path, list[Utterance]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of `mini_corpus`. Not to be changed: a test that damages shards damages a copy."""
    folder = tmp_path_factory.mktemp("shards")
    shard(mini_corpus[1], folder, SHARDING)
    return folder


@pytest.fixture(scope="session")
def small_speech(tmp_path_factory: pytest.TempPathFactory) -> "SmallSpeech":
    """A small corpus of espeak-ng with its phonemes' times. Not to be changed."""
    from small_speech import SmallSpeech  # which imports from here

    return SmallSpeech.make(tmp_path_factory.mktemp("speech"))


def shard(utterances: Iterable[Utterance], folder: Path, config: ShardConfig, processes: int = 2) -> dict[str, Any]:
    """Writes shards of utterances whose audio paths are absolute; returns the summary."""
    receipts = folder.with_name(f"{folder.name}-receipts")
    job = ShardJob(utterances_to_table(utterances), Path("/"), config, str(folder), str(receipts))
    return write_shards(job, partial(process_map, processes=processes))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an empty bucket on an S3 server of this machine; AWS_* point every client at it. A test writes to
    a prefix of its own.
    """
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("psclap-test")
        yield "s3://psclap-test"
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a real MLflow server on loopback, with its own database and artefact folder."""
    server = TrackingServer(tmp_path_factory.mktemp("mlflow-server"))
    server.start()
    yield server.uri
    server.stop()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a headless Chromium listens; tests are skipped where there is none."""
    from browser import HOW, chromium

    with chromium() as found:
        if found is None:
            pytest.skip(HOW)
        yield found
