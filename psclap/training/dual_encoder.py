"""The recipe of the dual encoder: speech and captions in one space (ParaSpeechCLAP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psclap.config import ModelConfig, TrainConfig
from psclap.loader import Stream
from psclap.models.build import build_model
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.shards.index import ShardIndex
from psclap.tags import VOCABULARY, training_prompts
from psclap.training.data import build_stream, carried_tags, check_tags
from psclap.training.optim import freeze
from psclap.training.task import ContrastiveTask
from psclap.training.validation import RetrievalValidation


@dataclass(frozen=True)
class DualEncoderRecipe:
    """A variant of the dual encoder; see `psclap.training.recipe.Recipe`."""

    model: ModelConfig
    train: TrainConfig

    @property
    def max_crop_s(self) -> float:
        """The length of the crops."""
        return self.train.max_crop_s

    def values(self) -> Mapping[str, Any]:
        """The model's configuration."""
        return {"model": asdict(self.model)}

    def reads(self) -> Sequence[str]:
        """The pretrained encoders."""
        return [encoder.pretrained for encoder in (self.model.speech, self.model.text) if encoder.pretrained]

    def stream(self, index: ShardIndex, seed: int) -> Stream:
        """Clips with captions of the variant's sets."""
        return build_stream(self.train, index, seed)

    def build_model(self, index: ShardIndex, seed: int) -> tuple[ParaSpeechCLAPModel, ParaSpeechCLAPProcessor]:
        """The model and processor as they are before the first step."""
        bias = self.train.initial_logit_bias
        if self.model.text.pretrained is not None:  # it brings its tokenizer: no text is needed
            return build_model(self.model, [], index.sample_rate_hz, seed, bias)
        in_train = index.take(index.rows_of("train"), ["captions"])
        captions = (caption["text"] for row in in_train["captions"].to_pylist() for caption in row)
        prompts = (prompt for tag in VOCABULARY for prompt in training_prompts(tag))
        return build_model(self.model, [*captions, *prompts], index.sample_rate_hz, seed, bias)

    def task(self, index: ShardIndex, stream: Stream, seed: int) -> ContrastiveTask:
        """The model under the variant's losses."""
        model, processor = self.build_model(index, seed)
        freeze(model, self.train.freeze)
        compute = self.train.compute
        if compute.gradient_checkpointing:
            model.activation_checkpointing_enable()
        if compute.compile:
            for encoder in (model.audio_model, model.text_model):
                encoder.compile(dynamic=True)  # clips and captions have many lengths
        return ContrastiveTask(model, processor, self.train, carried_tags(index, stream))

    def validation(self, index: ShardIndex) -> RetrievalValidation:
        """Retrieval and classification on val."""
        return RetrievalValidation(index, self.train)

    def check(self, index: ShardIndex, stream: Stream) -> None:
        """A tag loss needs tags."""
        check_tags(self.train, carried_tags(index, stream))
