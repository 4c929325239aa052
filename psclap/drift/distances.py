"""The distances between two samples, each beside what the same clips give when they are dealt at random.

Of embeddings, the positions on the main axes (the first principal components of both together) are compared, one by
one, with the p-values taken together: after Rabanser, Guennemann and Lipton, Failing Loudly: An Empirical Study of
Methods for Detecting Dataset Shift (NeurIPS 2019), who find this as good as tests of all dimensions at once.

Axes: N clips of the reference and then of the new data, M measures, B bins, R = 1 + deals: row 0 is as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from psclap.drift.dealing import Units, joint_p_values, means_as_dealt, p_values
from psclap.drift.measures import Measure, moved, of_numbers, of_words, one_hot, stability_index
from psclap.drift.result import Change, Measured, Number
from psclap.drift.samples import Sample

AXES = 8
FAR = 0.99
"""A clip is far out when it is farther from the reference's mean than this share of the reference."""


def distances(reference: Sample, new: Sample, deals: int, seed: int) -> tuple[list[Measured], list[Number]]:
    """All measures of two samples, and the numbers that are told beside them."""
    samples = reference, new
    clips = len(reference.unit), len(new.unit)
    measures = [*_of_columns(samples)]
    embeddings_ND = None
    if reference.embeddings is not None and new.embeddings is not None:
        embeddings_ND = np.concatenate([reference.embeddings, new.embeddings])
        measures += _of_axes(embeddings_ND)
    columns = one_hot(measures)
    num_bins = columns.shape[1]
    if embeddings_ND is not None:
        columns = np.concatenate([columns, _far_out(embeddings_ND, clips[0])[:, None], embeddings_ND], axis=1)
    rng = np.random.default_rng(seed)
    ours_RK, theirs_RK = means_as_dealt(columns, Units.of(reference.unit, new.unit, rng), deals, rng)
    measured = [*_measured(measures, ours_RK[:, :num_bins], theirs_RK[:, :num_bins], clips)]
    if embeddings_ND is None:
        return measured, []
    spread = float(np.sqrt(embeddings_ND[: clips[0]].var(0).sum()))
    return measured, _numbers(ours_RK[:, num_bins:], theirs_RK[:, num_bins:], spread)


def _of_columns(samples: Sequence[Sample]) -> Iterator[Measure]:
    for kind, name in samples[0].words:
        yield of_words(name, kind, [word for sample in samples for word in sample.words[kind, name]])
    for kind, name in samples[0].numbers:
        yield of_numbers(name, kind, np.concatenate([sample.numbers[kind, name] for sample in samples]))
    tags_of_clips = [tags for sample in samples for tags in sample.tags]
    for tag in sorted(frozenset().union(*tags_of_clips)):
        yield of_words(tag, "label", [tag if tag in tags else f"not {tag}" for tags in tags_of_clips])


def _of_axes(embeddings_ND: np.ndarray) -> Iterator[Measure]:
    centred_ND = embeddings_ND.astype(np.float64) - embeddings_ND.mean(0, dtype=np.float64)
    _, axes_DD = np.linalg.eigh(centred_ND.T @ centred_ND)  # ascending by variance
    for number in range(min(AXES, len(axes_DD))):
        yield of_numbers(f"axis {number + 1}", "embedding", centred_ND @ axes_DD[:, -1 - number])


def _far_out(embeddings_ND: np.ndarray, in_reference: int) -> np.ndarray:
    """(N,) float32: 1 for clips that are farther from the reference's mean than the share FAR of the reference."""
    far_N = np.linalg.norm(embeddings_ND - embeddings_ND[:in_reference].mean(0), axis=1)
    return (far_N > np.quantile(far_N[:in_reference], FAR)).astype(np.float32)


def _measured(
    measures: Sequence[Measure], ours_RB: np.ndarray, theirs_RB: np.ndarray, clips: tuple[int, int]
) -> Iterator[Measured]:
    """From the shares in the bins of all measures."""
    ends = np.cumsum([len(measure.bins) for measure in measures])[:-1]
    parts = [*zip(np.split(ours_RB, ends, axis=1), np.split(theirs_RB, ends, axis=1), strict=True)]
    moved_RM = np.stack([moved(*part) for part in parts], axis=1)
    p_values_M = joint_p_values(moved_RM)
    for number, (measure, part) in enumerate(zip(measures, parts, strict=True)):
        psi_R = stability_index(*part, clips)
        yield Measured(
            name=measure.name,
            kind=measure.kind,
            moved=float(moved_RM[0, number]),
            by_chance=float(moved_RM[1:, number].mean()),
            p_value=float(p_values_M[number]),
            psi=float(psi_R[0]),
            psi_by_chance=float(psi_R[1:].mean()),
            changes=[*_changes(measure.bins, *part)],
            mean_reference=_mean(measure, slice(None, clips[0])),
            mean_new=_mean(measure, slice(clips[0], None)),
        )


def _changes(bins: Sequence[str], ours_RB: np.ndarray, theirs_RB: np.ndarray) -> Iterator[Change]:
    differences_RB = theirs_RB - ours_RB
    by_chance_B = np.quantile(np.abs(differences_RB[1:]), 0.95, axis=0)
    for number, name in enumerate(bins):
        ours, theirs, change = (float(shares[0, number]) for shares in (ours_RB, theirs_RB, differences_RB))
        yield Change(name, ours, theirs, change, float(by_chance_B[number]))


def _mean(measure: Measure, clips: slice) -> float | None:
    """Of the numbers that are there."""
    if measure.values is None or np.isnan(measure.values[clips]).all():
        return None
    return float(np.nanmean(measure.values[clips]))


def _numbers(ours_RK: np.ndarray, theirs_RK: np.ndarray, spread: float) -> list[Number]:
    """Column 0 holds the shares of clips that are far out, the others the means of the embeddings."""
    far_R = np.abs(theirs_RK[:, 0] - ours_RK[:, 0])
    # In units of the root mean square distance of the reference's clips from their mean.
    shift_R = np.linalg.norm(theirs_RK[:, 1:] - ours_RK[:, 1:], axis=1) / max(spread, 1e-9)
    return [
        _number("mean_shift", 0.0, float(shift_R[0]), shift_R),
        _number("far_share", float(ours_RK[0, 0]), float(theirs_RK[0, 0]), far_R),
    ]


def _number(name: str, ours: float, theirs: float, differences_R: np.ndarray) -> Number:
    p_value = p_values(differences_R[:1], differences_R[1:, None])[0]
    return Number(name, ours, theirs, float(differences_R[1:].mean()), float(p_value))
