from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from psclap.config import PRESETS_FOLDER, ShardConfig
from psclap.corpora import build_corpus
from psclap.schema import Utterance
from psclap.shards.writer import write_shards

# Derandomised: a run finds the same examples everywhere, so a failure is never a matter of luck.
settings.register_profile("psclap", deadline=None, derandomize=True, database=None)
settings.load_profile("psclap")


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


@pytest.fixture
def params_mapping() -> dict[str, Any]:
    """The demo preset as plain YAML, free to be broken by the test."""
    return yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())


@pytest.fixture(scope="session")
def mini_corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Utterance]]:
    """A small demo corpus: its folder and its utterances, whose audio paths are absolute. Not to be changed."""
    folder = tmp_path_factory.mktemp("corpus")
    corpus = build_corpus("demo", {"train_clips": 96, "val_clips": 24, "test_clips": 48})
    utterances = corpus.utterances(folder, processes=2)
    return folder, [replace(utterance, audio=str(folder / utterance.audio)) for utterance in utterances]


@pytest.fixture(scope="session")
def mini_shards(mini_corpus: tuple[Path, list[Utterance]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of `mini_corpus`. Not to be changed: a test that damages shards damages a copy."""
    folder = tmp_path_factory.mktemp("shards")
    mapping = yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())["shard"]
    write_shards(mini_corpus[1], folder, ShardConfig(**{**mapping, "max_samples_per_shard": 40}), processes=2)
    return folder
