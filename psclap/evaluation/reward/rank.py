"""Best-of-N: the candidate of each prompt that a reward prefers.

A candidate's score is `text_weight` times the cosine of its audio with the prompt's text, plus `reference_weight` times
that with the reference clip's audio, plus the weighted columns that come with it. A candidate that breaks fewer gates
goes before one that breaks more, whatever their scores; of those that break as many the highest score wins, and of
equal scores the first. So a candidate within all gates wins where there is one, and where there is none the result
says so (`Ranked.within_gates`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psclap import audio
from psclap.batching import windows
from psclap.embedding import Embedder
from psclap.errors import AudioError, PsclapError
from psclap.evaluation.reward.criteria import Reward, check, value_of
from psclap.evaluation.reward.prompts import Candidate, Prompt
from psclap.metrics import check_finite

_BLOCK_CANDIDATES = 4096  # whose embeddings are held at a time
# Cosines of one file in two batches differ in the seventh decimal; what is written and compared is the same number.
_DECIMALS = 6
NO_EMBEDDING = "no embedding: the model makes NaN or infinity of it"  # as of a clip that is scored


@dataclass(frozen=True)
class Scored:
    """A candidate with its cosines and its score; `reject` says why it has none ("missing: there is no such file")."""

    candidate: Candidate
    text_cosine: float | None
    reference_cosine: float | None
    score: float | None
    broken_gates: tuple[str, ...]
    reject: str | None

    @property
    def preference(self) -> tuple[int, float]:
        """What is compared, higher is better; only where it has a score."""
        assert self.score is not None
        return (-len(self.broken_gates), self.score)


@dataclass(frozen=True)
class Ranked:
    """A prompt with its candidates in their order, and the number of the chosen one; None, for `reason`."""

    prompt: Prompt
    candidates: tuple[Scored, ...]
    chosen: int | None
    reason: str | None

    @property
    def within_gates(self) -> bool:
        """Whether the chosen one is within all gates."""
        return self.chosen is not None and not self.candidates[self.chosen].broken_gates


def rank(embedder: Embedder, prompts: Sequence[Prompt], reward: Reward | None = None) -> Iterator[Ranked]:
    """Ranks the candidates of every prompt, in order, as they are computed.

    Each distinct text and reference is embedded once, and held with the prompts; candidates are decoded and embedded as
    they come, and neither their sound nor their embeddings are held beyond a block of some thousands. A candidate that
    cannot be decoded, or that the model makes no finite embedding of, is a reject with its reason. Raises PsclapError
    at once for a prompt that the reward has nothing to say of, and for columns that are absent or not numbers; later,
    for a model that makes no finite embedding of a text.
    """
    reward = reward or Reward()
    check(prompts, reward)
    return _ranked(embedder, prompts, reward)


def _ranked(embedder: Embedder, prompts: Sequence[Prompt], reward: Reward) -> Iterator[Ranked]:
    texts = list(dict.fromkeys(prompt.text for prompt in prompts if prompt.text and reward.text_weight))
    texts_ND = embedder.embed_text(texts)
    check_finite(texts_ND)
    text_of = dict(zip(texts, texts_ND, strict=True))
    references = (prompt.reference for prompt in prompts if prompt.reference and reward.reference_weight)
    reference_of = _embedded(embedder, references)
    for block in windows(prompts, lambda prompt: len(prompt.candidates), _BLOCK_CANDIDATES):
        speech_of = _embedded(embedder, (candidate.audio for prompt in block for candidate in prompt.candidates))
        for prompt in block:
            text_D, reference = text_of.get(prompt.text or ""), reference_of.get(prompt.reference or "")
            yield _choice(prompt, speech_of, text_D, reference, reward)


def _embedded(embedder: Embedder, sources: Iterable[str]) -> dict[str, np.ndarray | str]:
    """The embedding (D,) of each distinct source, or why it has none."""
    rejects: dict[str, str] = {}
    heard: list[str] = []

    def waves() -> Iterator[np.ndarray]:
        for source in dict.fromkeys(sources):
            try:
                wave = audio.load(source, embedder.sample_rate_hz)
            except AudioError as error:  # an outage of a remote is another PsclapError, and no fault of the candidate
                rejects[source] = str(error)
                continue
            try:
                embedder.check_duration(wave)
            except PsclapError as error:
                rejects[source] = f"duration: {error}"
                continue
            heard.append(source)
            yield wave

    embeddings_ND = embedder.embed_audio(waves())
    finite_N = np.isfinite(embeddings_ND).all(1)
    embedded = zip(heard, embeddings_ND, finite_N, strict=True)
    return {**rejects, **{source: row_D if finite else NO_EMBEDDING for source, row_D, finite in embedded}}


def _choice(
    prompt: Prompt,
    speech_of: Mapping[str, np.ndarray | str],
    text_D: np.ndarray | None,
    reference: np.ndarray | str | None,
    reward: Reward,
) -> Ranked:
    lost = isinstance(reference, str)
    reference_D = None if isinstance(reference, str) else reference
    scored = tuple(
        _scored(candidate, speech_of[candidate.audio], text_D, reference_D, reward) for candidate in prompt.candidates
    )
    usable = [number for number, candidate in enumerate(scored) if candidate.score is not None]
    if lost or not usable:
        reason = f"its reference: {reference}" if lost else f"none of its {len(scored)} candidates can be used"
        return Ranked(prompt, scored, None, reason)
    return Ranked(prompt, scored, max(usable, key=lambda number: scored[number].preference), None)


def _scored(
    candidate: Candidate,
    speech: np.ndarray | str,
    text_D: np.ndarray | None,
    reference_D: np.ndarray | None,
    reward: Reward,
) -> Scored:
    broken = tuple(str(gate) for gate in reward.gates if not gate.holds(candidate.columns))
    if isinstance(speech, str):
        return Scored(candidate, None, None, None, broken, speech)
    text = None if text_D is None else _rounded(float(speech @ text_D))
    reference = None if reference_D is None else _rounded(float(speech @ reference_D))
    added = {name: value_of(candidate.columns, name) for name in reward.add}
    if lacking := [name for name, value in added.items() if value is None]:
        return Scored(candidate, text, reference, None, broken, f"no value: of {', '.join(lacking)}")
    score = reward.text_weight * (text or 0.0) + reward.reference_weight * (reference or 0.0)
    score += sum(reward.add[name] * value for name, value in added.items() if value is not None)
    return Scored(candidate, text, reference, _rounded(score), broken, None)


def _rounded(value: float) -> float:
    return round(value, _DECIMALS) + 0.0  # no negative zero
