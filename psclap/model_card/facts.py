"""What a model card is made from: the files of one run, and the parameters it was made with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from psclap.config import Params, TrainConfig
from psclap.data_config import CorpusConfig
from psclap.models.dual_encoder import ParaSpeechCLAPConfig, ParaSpeechCLAPModel
from psclap.schema import CAPTION_SETS, Split
from psclap.shards.index import ShardIndex
from psclap.soundness.columns import Columns
from psclap.soundness.statistics import statistics


@dataclass(frozen=True)
class Facts:
    """All that a card says. Mappings are the contents of the files that are named behind them."""

    name: str  # of the registered model
    variant: str
    params: Params
    config: Mapping[str, Any]  # models/VARIANT/config.json
    progress: Mapping[str, Any]  # models/VARIANT/progress.json
    parameters: Mapping[str, int]  # by the part of the model, see `count_parameters`
    weights_sha256: str
    run_id: str  # of MLflow
    metrics: Mapping[str, Mapping[str, Any]]  # metrics/VARIANT/*.json by their names
    evaluation: Mapping[str, Any]  # reports/VARIANT/evaluation.json
    summary: Mapping[str, Any]  # data/shards/summary.json
    trained: Mapping[str, Any]  # `split_statistics` of train
    tested: Mapping[str, Any]  # and of the split that was evaluated
    shared_speakers: int  # of those tested: how many were heard in training

    @property
    def train(self) -> TrainConfig:
        """The variant's training."""
        return self.params.train[self.variant]

    @property
    def retrieval(self) -> dict[str, Mapping[str, Any]]:
        """The metrics of each caption set."""
        return {name: self.metrics[name] for name in CAPTION_SETS if name in self.metrics}

    @property
    def classification(self) -> Mapping[str, Any]:
        """The metrics of each attribute; empty where none was scored."""
        return self.metrics.get("classification", {})

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels of tags that the captions of its training speak of."""
        return tuple(name for name in ("intrinsic", "situational") if {name, "combined"} & {*self.train.caption_sets})

    @property
    def corpora(self) -> tuple[str, ...]:
        """The names of the corpora, those of `several` one by one."""
        return corpus_names(self.params.corpus)


def corpus_names(corpus: CorpusConfig) -> tuple[str, ...]:
    """The corpora that a section of params.yaml names."""
    members = corpus.options.get("corpora", ()) if corpus.name == "several" else ()
    return tuple(dict.fromkeys(member["name"] for member in members)) or (corpus.name,)


def split_statistics(index: ShardIndex, split: Split) -> dict[str, Any]:
    """Counts of one split, as `psclap.soundness.statistics.statistics` returns them."""
    return statistics(Columns(index.take(index.rows_of(split))), index.sample_rate_hz, {})


def shared_speakers(index: ShardIndex, split: Split) -> int:
    """How many speakers of a split are in train too; the same name in two sources is two speakers."""
    here, train = (index.take(index.rows_of(name), ["source", "speaker"]) for name in (split, "train"))
    return (
        here.group_by(["source", "speaker"])
        .aggregate([])
        .join(train, ["source", "speaker"], join_type="left semi")
        .num_rows
    )


def count_parameters(model_folder: Path) -> dict[str, int]:
    """The parameters of a checkpoint folder's model by its parts (`audio_model`, ...), without reading the weights.

    What the weights file also holds, such as a filter bank, is no parameter.
    """
    with torch.device("meta"):
        model = ParaSpeechCLAPModel(ParaSpeechCLAPConfig.from_pretrained(model_folder))
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[name.split(".")[0]] += parameter.numel()
    return dict(counts)
