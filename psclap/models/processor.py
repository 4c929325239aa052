"""Waves and texts to the model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from psclap.errors import PsclapError
from psclap.models.feature_extractor import refuse_unknown

_OF_OTHER_KINDS = ("images_kwargs", "videos_kwargs", "common_kwargs")  # as sentence-transformers gives them


class ParaSpeechCLAPProcessor(ProcessorMixin):
    """A feature extractor for the speech and the text encoder's tokenizer."""

    def __init__(self, feature_extractor=None, tokenizer=None, **kwargs):  # type: ignore[no-untyped-def]
        super().__init__(feature_extractor, tokenizer, **kwargs)
        self.auto_map = {"AutoProcessor": "processor.ParaSpeechCLAPProcessor"}

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        audio_kwargs: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> BatchFeature:
        """Texts, clips or both to the model's arguments; both are padded to the longest.

        Texts are cut at the model's length, clips never. `audio_kwargs` may hold the sampling rate, as in transformers'
        processors. Raises PsclapError as the feature extractor does, and for arguments that are not known.
        """
        refuse_unknown(others, ("padding", "truncation", "text_kwargs", *_OF_OTHER_KINDS))
        inputs: dict[str, Any] = {}
        if audio is not None:
            inputs |= self.feature_extractor(audio, **{"sampling_rate": sampling_rate, **(audio_kwargs or {})})
        if text is not None:
            inputs |= self.texts([text] if isinstance(text, str) else text)
        if not inputs:
            raise ValueError("give text, audio, or both")
        return BatchFeature(inputs, tensor_type=return_tensors)

    def waves(self, waves: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Mono waves at the extractor's rate to a batch and its mask, see `ParaSpeechCLAPFeatureExtractor.batch`."""
        return self.feature_extractor.batch(waves)

    def texts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Texts to `input_ids` and `attention_mask`, both (N, L); long ones are cut at the model's length."""
        if not len(texts) or not all(isinstance(text, str) for text in texts):
            raise PsclapError("texts must be strings, and at least one")
        encoding = self.tokenizer(
            list(texts), padding=True, truncation=True, return_token_type_ids=False, return_tensors="pt"
        )
        return dict(encoding)
