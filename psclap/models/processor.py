"""Waves and texts to the model's inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import ProcessorMixin


class ParaSpeechCLAPProcessor(ProcessorMixin):
    """A wav2vec 2.0 feature extractor for the speech and the text encoder's tokenizer."""

    def __init__(self, feature_extractor=None, tokenizer=None):  # type: ignore[no-untyped-def]
        super().__init__(feature_extractor, tokenizer)

    def waves(self, waves: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Mono waves at the extractor's rate to `input_values` float32 and `attention_mask` bool, both (B, T).

        What the feature extractor itself returns, several times as fast: the loader calls this at every step.
        """
        lengths = np.array([len(wave) for wave in waves])
        values = np.zeros((len(waves), lengths.max()), np.float32)
        for row, wave in enumerate(waves):
            if self.feature_extractor.do_normalize:
                wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
            values[row, : len(wave)] = wave
        mask = np.arange(values.shape[1]) < lengths[:, None]
        return {"input_values": torch.from_numpy(values), "attention_mask": torch.from_numpy(mask)}

    def texts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Texts to `input_ids` and `attention_mask`, both (N, L); long ones are cut at the model's length."""
        encoding = self.tokenizer(
            list(texts), padding=True, truncation=True, return_token_type_ids=False, return_tensors="pt"
        )
        return dict(encoding)
