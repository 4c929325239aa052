"""The Embedder: loads a model once, then maps speech, texts and style tags to vectors of one space."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch

from psclap import audio, metrics, tags
from psclap.batching import windows, within_budget
from psclap.decoding import MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ
from psclap.errors import AudioError, PsclapError
from psclap.models.build import load_model
from psclap.models.device import device_of
from psclap.models.dual_encoder import ParaSpeechCLAPModel, weights_dtype
from psclap.models.fetch import fetch
from psclap.models.precision import Precision, bf16_pays, to_bf16
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.storage import redacted

T = TypeVar("T")
AudioSource = Path | str | bytes | BinaryIO

_BATCH_S = {False: 30.0, True: 300.0}  # on a CPU, on a GPU
_BATCH_CHARACTERS = 8192
_BATCHES_PER_WINDOW = 16  # sorted by length together: the more, the less padding


@dataclass(frozen=True)
class Classified:
    """The nearest of some candidate tags, and the cosine of each."""

    tag: str
    scores: Mapping[str, float]


class Embedder:
    """Speech and texts to L2-normalised float32 embeddings, (N, D); a cosine is their dot product.

    It may be called from several threads: they decode side by side, and the model computes one batch at a time.
    """

    def __init__(
        self,
        model: Path | str,
        device: str | None = None,
        *,
        precision: Precision = "stored",
        batch_s: float | None = None,
    ):
        """Loads a model onto `device` (a GPU where there is one).

        `model` is a checkpoint folder, a URI (models:/NAME/VERSION, models:/NAME@ALIAS), or a name on the Hugging
        Face Hub. `precision`: "stored", as the weights are; "bf16"; "auto", bf16 where it is faster. `batch_s`: the
        seconds of sound, padding included, that the model computes at once; memory grows with it, embeddings do not
        change. Raises CheckpointError for a folder that holds no whole model of ours, PsclapError where there is
        none to be had.
        """
        self._set(*load_model(fetch(model)), device, batch_s)
        if precision == "bf16" or (precision == "auto" and bf16_pays(self.model, self.device)):
            to_bf16(self.model)

    @classmethod
    def of(cls, model: ParaSpeechCLAPModel, processor: ParaSpeechCLAPProcessor) -> Embedder:
        """An Embedder of a model in memory, where it lies and as it is."""
        embedder = cls.__new__(cls)
        embedder._set(model, processor, str(model.device), None)
        return embedder

    def _set(
        self,
        model: ParaSpeechCLAPModel,
        processor: ParaSpeechCLAPProcessor,
        device: str | None,
        batch_s: float | None,
    ) -> None:
        self.device = device_of(device)
        self.model, self.processor = model.to(self.device), processor
        self.batch_s = _BATCH_S[self.device.type == "cuda"] if batch_s is None else batch_s
        if not self.batch_s > 0:
            raise PsclapError(f"batch_s {batch_s} must be above 0: the seconds of sound in a batch")
        self._lock = threading.Lock()  # the tokenizer, too, takes one caller at a time

    @property
    def computes_in_bf16(self) -> bool:
        """Whether the speech encoder multiplies in bfloat16."""
        return weights_dtype(self.model.audio_model) == torch.bfloat16

    @property
    def dim(self) -> int:
        """D, the number of dimensions."""
        return self.model.config.projection_dim

    @property
    def sample_rate_hz(self) -> int:
        """The model's rate, to which sound of any other is resampled."""
        return self.processor.feature_extractor.sampling_rate

    def embed_audio(self, waves: Iterable[np.ndarray], sample_rate_hz: int | None = None) -> np.ndarray:
        """(N, D) embeddings of mono waves (num_samples,), whole, in order.

        `sample_rate_hz` is the rate of all of them, the model's where None. Raises PsclapError that names the wave
        which is not 1-D, not of floats, not finite, too short or too long.
        """
        rate_hz = self.sample_rate_hz if sample_rate_hz is None else _checked_rate(sample_rate_hz)
        return self._embed_waves(
            self._heard(_checked(wave, f"waves[{number}]"), rate_hz, f"waves[{number}]")
            for number, wave in enumerate(waves)
        )

    def embed_files(self, sources: Iterable[AudioSource]) -> np.ndarray:
        """(N, D) embeddings of audio files of any rate: paths, URLs, the bytes of files, or binary files.

        Raises PsclapError that names the file which cannot be read or decoded, and why.
        """
        return self._embed_waves(
            self.load(source, redacted(str(source)) if isinstance(source, (str, Path)) else f"sources[{number}]")
            for number, source in enumerate(_listed(sources))
        )

    def load(self, source: AudioSource, name: str, max_duration_s: float | None = None) -> np.ndarray:
        """(num_samples,) the wave of an audio file at the model's rate, as `embed_files` embeds it.

        Raises PsclapError that begins with `name` where it cannot be decoded, or is too short or too long.
        """
        try:
            wave = audio.load(source, self.sample_rate_hz, max_duration_s=max_duration_s)
        except AudioError as error:
            raise PsclapError(f"{name}: {error}") from error
        return self._heard(wave, self.sample_rate_hz, name)

    def embed_text(self, texts: Iterable[str]) -> np.ndarray:
        """(N, D) embeddings of texts, in order."""
        texts = (_checked_text(text) for text in _listed(texts))
        return self._embed(texts, len, _BATCH_CHARACTERS, self.processor.texts, self.model.embed_text)

    def embed_tags(self, tags_: Iterable[str], ensemble: bool = False) -> np.ndarray:
        """(K, D) embeddings of style tags, each that of its default prompt.

        With `ensemble`, the mean of the embeddings of all of a tag's wordings, normalised again (CLIP's prompt
        ensembles). Raises PsclapError for a tag that is not in the vocabulary.
        """
        names = tags.check_tags(_listed(tags_))
        if not ensemble:
            return self.embed_text([tags.default_prompt(tag) for tag in names])
        prompts = [tags.training_prompts(tag) for tag in names]
        embeddings = iter(self.embed_text([prompt for of_tag in prompts for prompt in of_tag]))
        means = [np.mean([*islice(embeddings, len(of_tag))], axis=0) for of_tag in prompts]
        return np.array([mean / np.linalg.norm(mean) for mean in means], np.float32).reshape(-1, self.dim)

    def score(self, sources: Iterable[AudioSource], texts: Iterable[str]) -> np.ndarray:
        """(N, K) cosines of audio files (as `embed_files` takes them) with texts."""
        return self.embed_files(sources) @ self.embed_text(texts).T

    def classify(
        self, sources: Iterable[AudioSource], candidates: Iterable[str], ensemble: bool = False
    ) -> list[Classified]:
        """For each audio file the nearest of the candidates, which are tags, or attributes such as "texture".

        Prompts as in `embed_tags`. Raises PsclapError for unknown candidates, and fewer than two.
        """
        names = tags.resolve_candidates(_listed(candidates))
        return self.classify_embeddings(self.embed_files(sources), names, ensemble)

    def classify_embeddings(
        self, speech_ND: np.ndarray, candidates: Sequence[str], ensemble: bool = False
    ) -> list[Classified]:
        """As `classify`, from embeddings of speech and tags."""
        cosines_NK = speech_ND @ self.embed_tags(candidates, ensemble).T
        return [
            Classified(candidates[best], dict(zip(candidates, cosines.tolist(), strict=True)))
            for best, cosines in zip(metrics.nearest(cosines_NK), cosines_NK, strict=True)
        ]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Maps a dict of columns to one: `audio` (bytes of a file each) gives way to `embedding` (N, D)."""
        columns = {name: column for name, column in batch.items() if name != "audio"}
        return {**columns, "embedding": self.embed_files(list(batch["audio"]))}

    def check_duration(self, wave: np.ndarray) -> None:
        """Raises PsclapError for a wave at the model's rate that is too short or too long for the speech encoder."""
        self.processor.feature_extractor.check_duration(len(wave) / self.sample_rate_hz)

    def _heard(self, wave: np.ndarray, rate_hz: int, name: str) -> np.ndarray:
        """The wave at the model's rate. Raises PsclapError for one that the speech encoder cannot hear."""
        wave = audio.resample(wave, rate_hz, self.sample_rate_hz)
        try:
            self.check_duration(wave)
        except PsclapError as error:
            raise PsclapError(f"{name}: {error}") from error
        return wave

    def _embed_waves(self, waves: Iterable[np.ndarray]) -> np.ndarray:
        budget = self.batch_s * self.sample_rate_hz
        return self._embed(waves, len, budget, self.processor.waves, self.model.embed_audio)

    def _embed(
        self, items: Iterable[T], size_of: Callable[[T], int], budget: float, process: Callable, embed: Callable
    ) -> np.ndarray:
        """(N, D) embeddings in the items' order; no more than a window of items is held at a time."""
        parts = [np.empty((0, self.dim), np.float32)]
        for window in windows(items, size_of, _BATCHES_PER_WINDOW * budget):
            parts.append(np.empty((len(window), self.dim), np.float32))
            for batch in within_budget([size_of(item) for item in window], budget):
                parts[-1][batch] = self._embed_batch([window[number] for number in batch], process, embed)
            del window  # its waves go before the next ones come
        return np.concatenate(parts)

    def _embed_batch(self, items: Sequence[T], process: Callable, embed: Callable) -> np.ndarray:
        with self._lock, _evaluating(self.model), torch.inference_mode():
            inputs = {name: tensor.to(self.device) for name, tensor in process(items).items()}
            return embed(**inputs).float().cpu().numpy()


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    if not model.training:  # to say so to every part of a large model takes as long as a short text
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def _checked_rate(rate_hz: int) -> int:
    if not isinstance(rate_hz, (int, np.integer)) or not MIN_SAMPLE_RATE_HZ <= rate_hz <= MAX_SAMPLE_RATE_HZ:
        raise PsclapError(
            f"sample_rate_hz {rate_hz!r} must be a whole number from {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ}"
        )
    return int(rate_hz)


def _listed(items: Iterable[T]) -> Iterable[T]:
    """The items. Raises PsclapError for one alone, whose characters would be taken for items."""
    if isinstance(items, (str, bytes, Path)):
        raise PsclapError(f"{str(items)[:80]!r} is one item; give a list of them")
    return items


def _checked_text(text: str) -> str:
    if not isinstance(text, str):
        raise PsclapError(f"texts must be strings, got {text!r}")
    return text


def _checked(wave: np.ndarray, name: str) -> np.ndarray:
    """The wave as float32. Raises PsclapError where it is none."""
    wave = np.asarray(wave)
    if wave.ndim != 1:
        raise PsclapError(f"{name} has the shape {wave.shape}, expected (num_samples,): a list of mono waves")
    if not np.issubdtype(wave.dtype, np.floating):
        raise PsclapError(f"{name} is of {wave.dtype}, expected floats in [-1, 1]; divide 16-bit samples by 32768")
    if not len(wave):
        raise PsclapError(f"{name} is empty; leave it out")
    with np.errstate(over="ignore"):
        wave = wave.astype(np.float32, copy=False)
    if not np.isfinite(wave).all():
        raise PsclapError(f"{name} holds NaN or infinite samples; mend it or leave it out")
    return wave
