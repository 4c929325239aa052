"""An acoustic judge: which style attributes are there, by measures of the sound; it knows no embedding.

Each question is answered by one Gaussian per class over a few measures (quadratic discriminant analysis, with equal
priors and a ridge), fitted on labelled clips. Axes: N clips, F measures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psclap.acoustics import BAND_EDGES_HZ, Measures, count_syllables, measure
from psclap.decoding import Wave
from psclap.errors import PsclapError
from psclap.tags import tag_of

Answer = tuple[str, ...]  # a tag of each attribute of a question
Features = Mapping[str, float]

_RIDGE = 0.05
_MIN_CLIPS = 2
_BANDS = tuple(f"band_{number}" for number in range(len(BAND_EDGES_HZ) - 1))


@dataclass(frozen=True)
class Question:
    """Attributes that are judged together, by some measures. What is `of_voice` cannot be heard in a whisper."""

    attributes: tuple[str, ...]
    measures: tuple[str, ...]
    of_voice: bool = False

    def label(self, tags: Collection[str]) -> Answer | None:
        """The right answer for a clip of these tags, where there is one."""
        carried = [tag for name in self.attributes if (tag := tag_of(name, tags)) is not None]
        unheard = self.of_voice and "whispered" in tags
        return None if unheard or len(carried) < len(self.attributes) else tuple(carried)


QUESTIONS = (
    Question(("phonation",), ("voiced_share", "tilt")),
    Question(("volume",), ("loudness", "voiced_share")),
    Question(("rate",), ("log_rate",)),
    # A pitch level is relative to the gender.
    Question(("gender", "pitch-level"), ("log_f0", "log_f0_low", "log_f0_spread", *_BANDS), of_voice=True),
    Question(("texture",), ("hnr", "log_f0_wobble", *_BANDS), of_voice=True),
    Question(("intonation",), ("log_f0_spread",), of_voice=True),
)
JUDGED_ATTRIBUTES = tuple(name for question in QUESTIONS for name in question.attributes)


def listen(wave: Wave, sample_rate_hz: int, text: str) -> dict[str, float]:
    """What the judge goes by: the measures of a clip that says `text`, on scales on which differences compare.

    NaN is what the clip has nothing of. Raises as `psclap.acoustics.measure`.
    """
    return features(measure(wave, sample_rate_hz), text)


def features(measures: Measures, text: str) -> dict[str, float]:
    """As `listen`, from the measures."""
    return {
        "voiced_share": measures.voiced_share,
        "tilt": measures.tilt_db,
        "loudness": measures.loudness_lufs,
        "log_rate": float(np.log(max(1, count_syllables(text)) / measures.speech_s)),
        "hnr": measures.hnr_db,
        "log_f0": float(np.log(measures.f0_hz)),
        "log_f0_low": float(np.log(measures.f0_low_hz)),
        # A spread of nothing and one of a third of a semitone sound the same.
        "log_f0_spread": float(np.log(measures.f0_spread_st + 0.3)),
        "log_f0_wobble": float(np.log(measures.f0_wobble_st + 0.03)),
        **dict(zip(_BANDS, measures.bands_db, strict=True)),
    }


UNHEARD: Features = {name: float("nan") for question in QUESTIONS for name in question.measures}
"""Of a clip in which nothing can be heard."""


@dataclass(frozen=True)
class _Gaussians:
    """The answers to a question, each with its mean and covariance over standardised measures."""

    answers: Sequence[Answer]
    centre: np.ndarray  # (F,)
    scale: np.ndarray  # (F,)
    means: Sequence[np.ndarray]  # (F,) each
    covariances: Sequence[np.ndarray]  # (F, F) each

    @classmethod
    def fit(cls, features_NF: np.ndarray, labels: Sequence[Answer]) -> _Gaussians:
        """From clips of two answers or more, each given by _MIN_CLIPS clips or more."""
        centre, scale = features_NF.mean(0), features_NF.std(0) + 1e-6
        standard_NF = (features_NF - centre) / scale
        answers = sorted(set(labels))
        groups = [standard_NF[[label == answer for label in labels]] for answer in answers]
        ridge_FF = _RIDGE * np.eye(len(centre))
        covariances = [np.atleast_2d(np.cov(group.T, bias=True)) + ridge_FF for group in groups]
        return cls(answers, centre, scale, [group.mean(0) for group in groups], covariances)

    def answer(self, features_F: np.ndarray) -> Answer:
        """The likeliest answer."""
        standard_F = (features_F - self.centre) / self.scale
        costs = []
        for mean_F, covariance_FF in zip(self.means, self.covariances, strict=True):
            off_F = standard_F - mean_F
            costs.append(off_F @ np.linalg.solve(covariance_FF, off_F) + np.linalg.slogdet(covariance_FF)[1])
        return self.answers[int(np.argmin(costs))]


@dataclass(frozen=True)
class AcousticJudge:
    """Judges what each calibrated question asks for."""

    gaussians: Mapping[Question, _Gaussians]

    @classmethod
    def calibrate(cls, clips: Iterable[Features], tags: Iterable[Collection[str]]) -> AcousticJudge:
        """From clips (as `listen` hears them) and the tags of each.

        A question with fewer than two answers that two clips or more give stays unasked. Raises PsclapError where
        that leaves none.
        """
        labelled = list(zip(clips, tags, strict=True))
        gaussians = {}
        for question in QUESTIONS:
            pairs = [(_row(clip, question), question.label(of_clip)) for clip, of_clip in labelled]
            known = [(row, label) for row, label in pairs if row is not None and label is not None]
            labels = [label for _, label in known]
            kept = [(row, label) for row, label in known if labels.count(label) >= _MIN_CLIPS]
            if len({label for _, label in kept}) >= 2:
                gaussians[question] = _Gaussians.fit(np.array([row for row, _ in kept]), [label for _, label in kept])
        if not gaussians:
            raise PsclapError(
                f"the judge cannot be calibrated: of {len(labelled)} clips, no attribute has two values with "
                f"{_MIN_CLIPS} clips each; give it more clips, with tags of {', '.join(JUDGED_ATTRIBUTES)}"
            )
        return cls(gaussians)

    def judge(self, clip: Features) -> dict[str, str]:
        """The tag that is heard of each attribute; what cannot be heard in this clip is left out."""
        heard: dict[str, str] = {}
        for question, gaussians in self.gaussians.items():
            row = _row(clip, question)
            if row is not None and not (question.of_voice and heard.get("phonation") == "whispered"):
                heard |= zip(question.attributes, gaussians.answer(row), strict=True)
        return heard

    def accuracy(self, clips: Iterable[Features], tags: Iterable[Collection[str]]) -> dict[str, float]:
        """The balanced accuracy of each attribute: the mean over its values of the share of clips judged right."""
        judged = [(self.judge(clip), of_clip) for clip, of_clip in zip(clips, tags, strict=True)]
        accuracies = {}
        for question in self.gaussians:
            labelled = [(heard, label) for heard, of_clip in judged if (label := question.label(of_clip)) is not None]
            for place, name in enumerate(question.attributes):
                hits: dict[str, list[bool]] = {}
                for heard, label in labelled:
                    hits.setdefault(label[place], []).append(heard.get(name) == label[place])
                if hits:
                    accuracies[name] = float(np.mean([np.mean(of_tag) for of_tag in hits.values()]))
        return accuracies


def _row(clip: Features, question: Question) -> np.ndarray | None:
    """(F,) the measures that a question goes by, where the clip has them."""
    row = np.array([clip[name] for name in question.measures])
    return row if np.isfinite(row).all() else None
