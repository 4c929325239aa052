"""The loop: a Clip-TTS says a text in N manners, and the dual encoder takes the one that fits a style best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from psclap import audio
from psclap.decoding import Wave
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.reward.rank import NO_EMBEDDING
from psclap.tts.say import Manner, TextToSpeech


@dataclass(frozen=True, eq=False)
class Candidates:
    """What was said, in which manners, and the cosine of each with the style; the best has the highest.

    `rejects` says of candidates by their numbers why they have no score, which is then minus infinity: the embedder
    cannot hear them.
    """

    text: str
    style: str
    manners: Sequence[Manner]
    waves: Sequence[Wave]
    scores: np.ndarray  # (N,)
    rejects: Mapping[int, str] = field(default_factory=dict)

    @property
    def order(self) -> list[int]:
        """The candidates' numbers, the best first; of equals the earlier one."""
        return np.argsort(-self.scores, kind="stable").tolist()

    @property
    def best(self) -> int:
        """The number of the best."""
        return self.order[0]

    def rows(self) -> list[dict[str, Any]]:
        """Score and manner of each candidate, the best first; one without a score has None, and why."""
        return [{"candidate": number, **self._score(number), **self.manners[number].to_dict()} for number in self.order]

    def _score(self, number: int) -> dict[str, Any]:
        if number in self.rejects:
            return {"score": None, "reject": self.rejects[number]}
        return {"score": round(float(self.scores[number]), 6), "reject": None}


def best_of_n(
    speech: TextToSpeech,
    embedder: Embedder,
    text: str,
    style: str,
    manners: Sequence[Manner],
    language: str | None = None,
) -> Candidates:
    """Says `text` in each manner and scores it against the caption `style`; errors as `TextToSpeech.say`.

    A candidate that the embedder cannot hear, such as one that is too short, has no score. Raises PsclapError where
    it can hear none.
    """
    if not style.strip():
        raise PsclapError(f"the style {style!r} says nothing; describe a voice, such as 'a deep, slow voice'")
    waves = [*speech.say(text, manners, language)]
    scores, rejects = _scores(embedder, waves, speech.sample_rate_hz, style)
    if len(rejects) == len(waves):
        raise PsclapError(f"{text!r} was said {len(waves)} times, and none can be scored: {rejects[0]}; say more of it")
    return Candidates(text, style, manners, waves, scores, rejects)


def _scores(
    embedder: Embedder, waves: Sequence[Wave], sample_rate_hz: int, style: str
) -> tuple[np.ndarray, dict[int, str]]:
    """(N,) cosines with the style; of those that have none, by number, the reason."""
    heard, rejects = [audio.resample(wave, sample_rate_hz, embedder.sample_rate_hz) for wave in waves], {}
    for number, wave in enumerate(heard):
        try:
            embedder.check_duration(wave)
        except PsclapError as error:
            rejects[number] = str(error)
    scored = [number for number in range(len(heard)) if number not in rejects]
    scores = np.full(len(heard), -np.inf)
    scores[scored] = embedder.embed_audio(heard[number] for number in scored) @ embedder.embed_text([style])[0]
    is_there = np.isfinite(scores)
    rejects |= {number: NO_EMBEDDING for number in scored if not is_there[number]}
    return np.where(is_there, scores, -np.inf), rejects
