"""Loudness by EBU R 128: integrated loudness (ITU-R BS.1770-4) in LUFS, true peak in dBTP."""

from __future__ import annotations

import math

import numpy as np
import soxr

from psclap.decoding import Wave
from psclap.errors import AudioError

MAX_TRUE_PEAK_DBTP = -1.0
"""The highest true peak that EBU R 128 permits in production."""
_BLOCK_S = 0.4
_OVERSAMPLING = 4


def integrated_loudness(wave: Wave, sample_rate_hz: int) -> float:
    """The gated loudness of a mono wave (num_samples,) in LUFS; -inf where no block lies above the gate of -70 LUFS.

    A mono wave counts as one channel: a sine of 997 Hz at -20 dBFS has -23 LUFS, as has one of -23 dBFS in both
    channels of a stereo file (EBU Tech 3341, case 1). A clip shorter than one block of 0.4 s is measured repeated.
    """
    import pyloudnorm

    repeats = math.ceil(_BLOCK_S * sample_rate_hz / len(wave))
    repeated = np.tile(wave.astype(np.float64), repeats)
    return float(pyloudnorm.Meter(sample_rate_hz, block_size=_BLOCK_S).integrated_loudness(repeated))


def true_peak(wave: Wave, sample_rate_hz: int) -> float:
    """The largest magnitude of the wave at four times its rate (BS.1770-4, annex 2), or of its own samples."""
    oversampled = soxr.resample(wave, sample_rate_hz, _OVERSAMPLING * sample_rate_hz)
    return float(max(np.abs(oversampled).max(), np.abs(wave).max()))


def normalise_loudness(wave: Wave, sample_rate_hz: int, target_lufs: float) -> Wave:
    """The mono wave (num_samples,) with one gain on it, at `target_lufs` by EBU R 128; float32.

    The gain is the largest that keeps the true peak at or below -1 dBTP, so a clip of high peaks stays quieter than
    the target. Raises AudioError "empty", and "silent" where the loudness is not measurable (see
    `integrated_loudness`).
    """
    if not len(wave):
        raise AudioError("empty", "it has no samples")
    loudness_lufs = integrated_loudness(wave, sample_rate_hz)
    if not math.isfinite(loudness_lufs):
        raise AudioError("silent", f"its loudness is {loudness_lufs} LUFS, the gate is at -70; leave it out")
    peak_gain = _gain(MAX_TRUE_PEAK_DBTP) / true_peak(wave, sample_rate_hz)
    return (wave * min(_gain(target_lufs - loudness_lufs), peak_gain)).astype(np.float32)


def _gain(decibels: float) -> float:
    return 10 ** (decibels / 20)
