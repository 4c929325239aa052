"""Waves to what the speech encoder takes: the waves themselves, or the features of the encoder's own extractor.

Axes: B clips, T samples, F frames of features, M mel bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import BatchFeature, FeatureExtractionMixin
from transformers.audio_utils import load_audio

from psclap.errors import PsclapError


class ParaSpeechCLAPFeatureExtractor(FeatureExtractionMixin):
    """Mono waves to a padded batch and its mask, named so that captions can stand beside them.

    Without `features`, the encoder takes waves, of zero mean and unit variance each where `do_normalize`. `features`
    is the configuration of the extractor that goes with another encoder (Whisper, w2v-BERT). Clips below
    `min_duration_s` give no frame, and Whisper hears no more than `max_duration_s`.
    """

    def __init__(
        self,
        sampling_rate: int = 16000,
        do_normalize: bool = True,
        min_duration_s: float = 0.0,
        max_duration_s: float | None = None,
        features: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.sampling_rate, self.do_normalize = sampling_rate, do_normalize
        self.min_duration_s, self.max_duration_s, self.features = min_duration_s, max_duration_s, features
        self.auto_map = {"AutoFeatureExtractor": "feature_extractor.ParaSpeechCLAPFeatureExtractor"}
        self._extractor = None
        if features is not None:
            self._extractor = getattr(transformers, features["feature_extractor_type"]).from_dict(features)

    @property
    def model_input_names(self) -> list[str]:
        """What a batch holds."""
        return ["input_values" if self._extractor is None else "input_features", "audio_attention_mask"]

    def to_dict(self) -> dict[str, Any]:
        """What is saved."""
        return {name: value for name, value in super().to_dict().items() if name != "_extractor"}

    def __call__(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        **others: Any,
    ) -> BatchFeature:
        """One clip, or a list of them, to a BatchFeature. Clips are always padded to the longest, and never cut.

        A clip is a mono wave of floats, or a path or URL, which transformers then decodes. Raises PsclapError
        (a ValueError) for a wave of another rate, shape or type, for clips too short or too long, and for arguments
        that are not known.
        """
        refuse_unknown(others, ("padding", "return_attention_mask"))
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise PsclapError(
                f"the model hears {self.sampling_rate} Hz and the audio has {sampling_rate} Hz; resample it, "
                "or let psclap's Embedder do so"
            )
        several = [audio] if not isinstance(audio, (list, tuple)) or _is_wave(audio) else audio
        if not several:
            raise PsclapError("there is no clip; give at least one")
        return BatchFeature(self.batch([self._wave(one) for one in several]), tensor_type=return_tensors)

    def _wave(self, audio: Any) -> np.ndarray:
        wave = load_audio(audio, self.sampling_rate) if isinstance(audio, str) else np.asarray(audio)
        if wave.ndim != 1 or wave.dtype.kind != "f":
            raise PsclapError(
                f"a wave has the shape {wave.shape} and the type {wave.dtype}; give mono waves of floats in [-1, 1], "
                "of shape (num_samples,)"
            )
        return wave.astype(np.float32, copy=False)

    def batch(self, waves: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Mono float32 waves at `sampling_rate` to `input_values` (B, T), or `input_features`, and their mask.

        `audio_attention_mask` is bool, (B, T) or (B, F). What transformers' extractor of waves returns, several
        times as fast: the loader calls this at every step.
        """
        for wave in waves:
            self.check_duration(len(wave) / self.sampling_rate)
        if self._extractor is not None:
            return self._features(waves)
        lengths = np.array([len(wave) for wave in waves])
        values = np.zeros((len(waves), lengths.max()), np.float32)
        for row, wave in enumerate(waves):
            if self.do_normalize:
                wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
            values[row, : len(wave)] = wave
        mask = np.arange(values.shape[1]) < lengths[:, None]
        return {"input_values": torch.from_numpy(values), "audio_attention_mask": torch.from_numpy(mask)}

    def _features(self, waves: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        assert self._extractor is not None
        features = self._extractor(
            list(waves), sampling_rate=self.sampling_rate, return_attention_mask=True, return_tensors="pt"
        )
        return {
            "input_features": features["input_features"],
            "audio_attention_mask": features["attention_mask"].bool(),
        }

    def check_duration(self, duration_s: float) -> None:
        """Raises PsclapError for a clip that is too short or too long for the speech encoder."""
        if duration_s < self.min_duration_s or duration_s == 0:
            raise PsclapError(
                f"too short: it has {duration_s:.3f} s, and the speech encoder needs {self.min_duration_s:.3f} s"
            )
        if self.max_duration_s is not None and duration_s > self.max_duration_s:
            raise PsclapError(
                f"too long: it has {duration_s:.1f} s, and the speech encoder hears {self.max_duration_s:g} s at most; "
                "cut it into windows"
            )


def _is_wave(values: Sequence[Any]) -> bool:
    return len(values) > 0 and isinstance(values[0], float)


def refuse_unknown(arguments: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises PsclapError for a misspelt argument, which would else do nothing."""
    if unknown := sorted(set(arguments) - set(known)):
        raise PsclapError(f"unknown arguments {', '.join(unknown)}: clips are padded to the longest and never cut")
