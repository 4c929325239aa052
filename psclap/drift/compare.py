"""New data against a reference: scores, tags, durations and embeddings of a model, or the labels of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psclap.drift.dealing import p_values
from psclap.drift.distances import distances
from psclap.drift.result import LEVEL, THRESHOLD, Drift, Number
from psclap.drift.samples import CLIP, SPEAKER, Sample, of_index, of_scores
from psclap.errors import PsclapError
from psclap.search.scored import ScoredOutput
from psclap.shards.index import ShardIndex
from psclap.storage import redacted

DEALS = 999


def compare_scores(
    reference: Path | str,
    new: Path | str,
    *,
    reference_where: str | None = None,
    where: str | None = None,
    unit: str | None = None,
    threshold: float = THRESHOLD,
    level: float = LEVEL,
    deals: int = DEALS,
    seed: int = 0,
) -> Drift:
    """Compares two outputs of `python -m pipelines.score`, folders or URLs, by one model with the same options.

    `reference_where` and `where` filter the reference's and the new clips, as `psclap.search.where` does. `unit` is a
    column whose equal values mark clips that belong together, or "clip"; by default the speaker, where both outputs
    have that column. The result is a function of the data and the arguments.
    Raises PsclapError where one is no output, where models, captions or attributes differ, for a column that is
    missing, a filter that leaves nothing, and a threshold or level that is none.
    """
    _check(threshold, level, deals)
    sources = ScoredOutput(reference), ScoredOutput(new)
    summary = _check_same(*sources)
    unit = unit or (SPEAKER if all(SPEAKER in source.schema.names for source in sources) else CLIP)
    samples = (of_scores(sources[0], unit, reference_where, seed), of_scores(sources[1], unit, where, seed))
    measured, numbers = distances(*samples, deals, seed)
    return Drift(
        what="scores",
        reference=samples[0].side,
        new=samples[1].side,
        model=summary["model"],
        weights_sha256=summary["weights_sha256"],
        unit=unit,
        measured=measured,
        numbers=[*numbers, *_reject_rate(*samples, deals, seed)],
        deals=deals,
        seed=seed,
        level=level,
        threshold=threshold,
    )


def compare_labels(
    reference: Path | str,
    new: Path | str,
    *,
    split: str | None = "train",
    unit: str | None = None,
    threshold: float = THRESHOLD,
    level: float = LEVEL,
    deals: int = DEALS,
    seed: int = 0,
) -> Drift:
    """Compares tags and durations of two data sets of shards, folders or URLs: one split of the reference, all new.

    `split` None takes all of the reference; `unit` is as for scores, by default the speaker. Raises PsclapError where
    one is no data set, or has no clips.
    """
    _check(threshold, level, deals)
    unit = unit or SPEAKER
    samples = (
        of_index(ShardIndex(reference), str(reference), unit, split, seed),
        of_index(ShardIndex(new), str(new), unit, None, seed),
    )
    measured, numbers = distances(*samples, deals, seed)
    return Drift(
        what="labels",
        reference=samples[0].side,
        new=samples[1].side,
        model=None,
        weights_sha256=None,
        unit=unit,
        measured=measured,
        numbers=numbers,
        deals=deals,
        seed=seed,
        level=level,
        threshold=threshold,
    )


def _check(threshold: float, level: float, deals: int) -> None:
    if not 0 <= threshold < 1:
        raise PsclapError(f"threshold {threshold} must lie in [0, 1): it is a share of the new clips")
    if not 0 < level < 1:
        raise PsclapError(f"level {level} must lie in (0, 1): it is a share of comparisons")
    if (deals + 1) * level < 1:
        raise PsclapError(f"{deals} deals are too few for the level {level}; give {int(np.ceil(1 / level))} or more")


def _check_same(reference: ScoredOutput, new: ScoredOutput) -> Mapping[str, Any]:
    """The summary of both."""
    ours, theirs = reference.listing.summary, new.listing.summary
    differing = [
        f"{name}: {ours.get(name)!r} and {theirs.get(name)!r}"
        for name in ("weights_sha256", "captions", "attributes")
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise PsclapError(
            f"{redacted(reference.listing.location)} (by {ours['model']}) and {redacted(new.listing.location)} (by "
            f"{theirs['model']}) were scored differently: {'; '.join(differing)}. Score both with one model and the "
            "same captions and attributes"
        )
    return ours


def _reject_rate(reference: Sample, new: Sample, deals: int, seed: int) -> Sequence[Number]:
    """The share of clips that scoring left out, beside draws of both at their common rate; of filters, not known."""
    ours, theirs = reference.side, new.side
    if ours.rejects is None or theirs.rejects is None:
        return []
    tried = ours.clips + ours.rejects, theirs.clips + theirs.rejects
    rejects = ours.rejects + theirs.rejects
    rates = ours.rejects / tried[0], theirs.rejects / tried[1]
    drawn_R2 = np.random.default_rng(seed).binomial(tried, rejects / sum(tried), (deals, 2)) / tried
    by_chance_R = np.abs(drawn_R2[:, 1] - drawn_R2[:, 0])
    p_value = p_values(np.array([abs(rates[1] - rates[0])]), by_chance_R[:, None])[0]
    return [Number("reject_rate", *rates, float(by_chance_R.mean()), float(p_value))]
