"""Whether an exported model gives the embeddings of the model that it was made from.

Axes: N clips or texts, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from psclap.errors import CheckpointError
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.tags import VOCABULARY, default_prompt

Inputs = dict[str, torch.Tensor]
_DURATIONS_S = ((1.0,), (0.4, 2.3, 0.9, 1.7), (4.1, 3.0))


@dataclass(frozen=True)
class Deviation:
    """The smallest cosine of an embedding with what it should be, and the largest difference of one number."""

    min_cosine: float
    max_difference: float

    @classmethod
    def of(cls, found_ND: np.ndarray, expected_ND: np.ndarray) -> Deviation:
        """Of L2-normalised embeddings. NaN anywhere makes both NaN."""
        return cls(float((found_ND * expected_ND).sum(1).min()), float(np.abs(found_ND - expected_ND).max()))


def audio_batches(processor: ParaSpeechCLAPProcessor) -> Iterator[Inputs]:
    """Batches of one clip and of several, of mixed lengths, down to the shortest that the model hears.

    The clips are voices of a kind: harmonics of a moving pitch, and noise.
    """
    rate_hz, rng = processor.feature_extractor.sampling_rate, np.random.default_rng(0)
    shortest_s = max(processor.feature_extractor.min_duration_s, 0.03)
    for durations_s in (*_DURATIONS_S, (shortest_s, 0.5)):
        yield processor.waves([_voice(rng, round(duration_s * rate_hz) + 1, rate_hz) for duration_s in durations_s])


def text_batches(processor: ParaSpeechCLAPProcessor) -> Iterator[Inputs]:
    """One prompt, the prompts of all tags, and texts of mixed lengths up to more than the model reads."""
    prompts = [default_prompt(tag) for tag in VOCABULARY]
    for texts in (prompts[:1], prompts, ["", prompts[1], " ".join(prompts)]):
        yield processor.texts(texts)


def embeddings(model: ParaSpeechCLAPModel, audio: Iterator[Inputs], text: Iterator[Inputs]) -> list[np.ndarray]:
    """What a model makes of the batches, an (N, D) array each."""
    return [*_run(model.embed_audio, audio), *_run(model.embed_text, text)]


def refuse_unless(is_close: bool, what: str, deviation: Deviation, rule: str) -> None:
    """Raises CheckpointError with what was measured."""
    if not is_close:
        raise CheckpointError(
            f"{what} was not kept: its embeddings differ from the model's (smallest cosine "
            f"{deviation.min_cosine:.5f}, largest difference {deviation.max_difference:.1e}; the rule is {rule})"
        )


def _run(embed: Callable[..., torch.Tensor], batches: Iterator[Inputs]) -> Iterator[np.ndarray]:
    with torch.inference_mode():
        for batch in batches:
            yield embed(**batch).float().numpy()


def _voice(rng: np.random.Generator, num_samples: int, rate_hz: int) -> np.ndarray:
    time_s = np.arange(num_samples) / rate_hz
    pitch_hz = rng.uniform(90, 300) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(1, 4) * time_s))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate_hz
    tones = sum(np.sin(order * phase) / order for order in range(1, 20))
    return (0.1 * (tones + 0.3 * rng.standard_normal(num_samples))).astype(np.float32)
