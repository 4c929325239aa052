"""The Embedder: loads a model once, then maps speech and texts to vectors of one space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from psclap import audio
from psclap.models.build import load_model
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.processor import ParaSpeechCLAPProcessor

T = TypeVar("T")


class Embedder:
    """Speech and texts to L2-normalised float32 embeddings, (N, D); a cosine is their dot product."""

    def __init__(self, model_folder: Path | str, batch_size: int = 32, device: str | None = None):
        """Loads the checkpoint folder onto `device` (a GPU where there is one). Raises CheckpointError."""
        model, processor = load_model(model_folder)
        self._set(model, processor, batch_size, device)

    @classmethod
    def of(cls, model: ParaSpeechCLAPModel, processor: ParaSpeechCLAPProcessor, batch_size: int = 32) -> Embedder:
        """An Embedder of a model in memory, where it lies."""
        embedder = cls.__new__(cls)
        embedder._set(model, processor, batch_size, str(model.device))
        return embedder

    def _set(
        self, model: ParaSpeechCLAPModel, processor: ParaSpeechCLAPProcessor, batch_size: int, device: str | None
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.processor, self.batch_size = model.to(self.device), processor, batch_size

    @property
    def dim(self) -> int:
        """D, the number of dimensions."""
        return self.model.config.projection_dim

    @property
    def sample_rate_hz(self) -> int:
        """The rate that waves must have."""
        return self.processor.feature_extractor.sampling_rate

    def embed_audio(self, waves: Iterable[np.ndarray]) -> np.ndarray:
        """(N, D) embeddings of mono float32 waves at `sample_rate_hz`, whole, in order."""
        return self._embed(waves, self.processor.waves, self.model.embed_audio)

    def embed_text(self, texts: Iterable[str]) -> np.ndarray:
        """(N, D) embeddings of texts, in order."""
        return self._embed(texts, self.processor.texts, self.model.embed_text)

    def embed_files(self, paths: Iterable[Path | str | bytes]) -> np.ndarray:
        """(N, D) embeddings of audio files, or their bytes, of any rate. Raises AudioError."""
        return self.embed_audio(audio.load(path, self.sample_rate_hz) for path in paths)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Maps a dict of columns to one: `audio` (bytes of a file each) gives way to `embedding` (N, D)."""
        columns = {name: column for name, column in batch.items() if name != "audio"}
        return {**columns, "embedding": self.embed_files(list(batch["audio"]))}

    def _embed(self, items: Iterable[T], process: Callable, embed: Callable) -> np.ndarray:
        was_training = self.model.training
        self.model.eval()
        parts = [np.empty((0, self.dim), np.float32)]
        with torch.inference_mode():
            for batch in _batched(items, self.batch_size):
                inputs = {name: tensor.to(self.device) for name, tensor in process(batch).items()}
                parts.append(embed(**inputs).float().cpu().numpy())
        self.model.train(was_training)
        return np.concatenate(parts)


def _batched(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
