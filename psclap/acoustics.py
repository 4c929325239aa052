"""What can be measured of a voice: pitch, harmonicity, level, spectrum, speaking rate; no model takes part.

Pitch and harmonicity are Praat's (Boersma 1993, autocorrelation), by praat-parselmouth; loudness is EBU R 128's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from psclap.decoding import Wave
from psclap.errors import AudioError, PsclapError
from psclap.loudness import integrated_loudness

BAND_EDGES_HZ = (50, 200, 400, 600, 800, 1000, 1300, 1600, 2000, 2500, 3000, 3500, 4000, 5000, 6500, 8000)
MIN_SAMPLE_RATE_HZ = 2 * BAND_EDGES_HZ[-1]
_FLOOR_HZ, _CEILING_HZ = 55, 600
_MIN_DURATION_S = 0.1
_HOP_S = 0.01
_WINDOW_S = 0.04
_SPEECH_RANGE_DB = 25
# Praat's defaults, but for the octave cost: a rough voice repeats every second period, and 0.01 finds that octave.
_PITCH = {"voicing_threshold": 0.45, "octave_cost": 0.08, "octave_jump_cost": 0.35, "voiced_unvoiced_cost": 0.14}


@dataclass(frozen=True)
class Measures:
    """What was measured of one clip; what only a voice has is NaN where none is heard, as in a whisper.

    `f0_low_hz` and `f0_spread_st` are the 15th percentile of F0 and the semitones from its 25th to its 75th;
    `f0_wobble_st` is the median change from one hundredth of a second to the next. `voiced_share` is of the frames
    within 25 dB of the loudest, which are `speech_s` apart, first to last. `tilt_db` is the energy above 1 kHz against
    that below. `bands_db`: the level of each band of BAND_EDGES_HZ in voiced frames, against the mean of all bands.
    """

    f0_hz: float
    f0_low_hz: float
    f0_spread_st: float
    f0_wobble_st: float
    hnr_db: float
    voiced_share: float
    loudness_lufs: float
    tilt_db: float
    speech_s: float
    bands_db: tuple[float, ...]


def measure(wave: Wave, sample_rate_hz: int) -> Measures:
    """The measures of a mono wave (num_samples,), of 16 kHz or more.

    Raises AudioError "too short" (below 0.1 s) and "silent", PsclapError for a lower rate.
    """
    if sample_rate_hz < MIN_SAMPLE_RATE_HZ:
        raise PsclapError(f"sample_rate_hz {sample_rate_hz}: the measures need {MIN_SAMPLE_RATE_HZ} or more; resample")
    if len(wave) < _MIN_DURATION_S * sample_rate_hz:
        raise AudioError("too short", f"{len(wave) / sample_rate_hz:.3f} s, at least {_MIN_DURATION_S} s are needed")
    loudness_lufs = integrated_loudness(wave, sample_rate_hz)
    if not np.isfinite(loudness_lufs):
        raise AudioError("silent", "no part of it is above -70 LUFS")
    pitch = track_pitch(wave, sample_rate_hz)
    spectra = _power_spectra(wave, sample_rate_hz, pitch.times_s)
    energy = spectra.sum(1)
    is_speech = energy > energy.max() * 10 ** (-_SPEECH_RANGE_DB / 10)
    is_voiced = is_speech & (pitch.f0_hz > 0)
    spoken = np.flatnonzero(is_speech)
    return Measures(
        **_voice(pitch.f0_hz, pitch.strength, is_voiced),
        voiced_share=float(is_voiced.sum() / is_speech.sum()),
        loudness_lufs=loudness_lufs,
        tilt_db=_tilt_db(spectra[is_speech].mean(0), sample_rate_hz),
        speech_s=float((spoken[-1] - spoken[0] + 1) * _HOP_S),
        bands_db=_bands_db(spectra[is_voiced], sample_rate_hz),
    )


@dataclass(frozen=True)
class Pitch:
    """The pitch of a wave in frames a hundredth of a second apart, (T,) each."""

    times_s: np.ndarray
    f0_hz: np.ndarray  # 0 where unvoiced
    strength: np.ndarray  # the height of the autocorrelation's peak

    def at(self, times_s: np.ndarray) -> np.ndarray:
        """(N,) the F0 of the frame nearest to each time, 0 where that is unvoiced, or further away than half a hop.

        >>> Pitch(np.array([0.03, 0.04]), np.array([0.0, 120.0]), np.ones(2)).at(np.array([0.031, 0.041, 0.06]))
        array([  0., 120.,   0.])
        """
        if not len(self.times_s):
            return np.zeros(len(times_s))
        nearest = np.clip(np.round((times_s - self.times_s[0]) / _HOP_S).astype(int), 0, len(self.times_s) - 1)
        is_near = np.abs(times_s - self.times_s[nearest]) <= 0.51 * _HOP_S
        return np.where(is_near, self.f0_hz[nearest], 0.0)


def track_pitch(wave: Wave, sample_rate_hz: int) -> Pitch:
    """The pitch of a mono wave, from 55 to 600 Hz; without frames for a wave that is shorter than 0.1 s."""
    try:
        import parselmouth
    except ImportError as error:
        raise PsclapError("measuring a voice needs praat-parselmouth: pip install 'psclap[acoustics]'") from error
    if len(wave) < _MIN_DURATION_S * sample_rate_hz:
        return Pitch(*np.zeros((3, 0)))
    sound = parselmouth.Sound(wave.astype(np.float64), sample_rate_hz)
    pitch = sound.to_pitch_ac(_HOP_S, _FLOOR_HZ, pitch_ceiling=_CEILING_HZ, **_PITCH)
    return Pitch(pitch.xs(), pitch.selected_array["frequency"], pitch.selected_array["strength"])


def count_syllables(text: str) -> int:
    """About the number of syllables of an English text: groups of vowels, without a silent e at a word's end.

    >>> count_syllables("The baker wrote a letter.")
    7
    """
    words = re.findall(r"[a-z]+", text.lower())
    return sum(max(1, len(re.findall(r"[aeiouy]+", re.sub(r"(?<=[^aeiouy])e$", "", word)))) for word in words)


def _power_spectra(wave: Wave, rate_hz: int, times_s: np.ndarray) -> np.ndarray:
    """(T, F) of a Hann window around each of the times."""
    size = round(_WINDOW_S * rate_hz)
    starts = np.round(times_s * rate_hz).astype(int)
    padded = np.pad(wave.astype(np.float64), (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[starts]
    return np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2


def _voice(f0_hz: np.ndarray, strength: np.ndarray, is_voiced: np.ndarray) -> dict[str, float]:
    """The measures of voiced frames; the harmonics-to-noise ratio is 10 log10(r / (1 - r)) (Boersma 1993)."""
    names = ("f0_hz", "f0_low_hz", "f0_spread_st", "f0_wobble_st", "hnr_db")
    if not is_voiced.any():
        return dict.fromkeys(names, float("nan"))
    voiced_hz, r = f0_hz[is_voiced], np.clip(strength[is_voiced], 1e-3, 1 - 1e-3)
    low_hz, quarter_hz, median_hz, three_quarters_hz = np.percentile(voiced_hz, (15, 25, 50, 75))
    together = is_voiced[1:] & is_voiced[:-1]
    steps_st = np.abs(12 * np.log2(f0_hz[1:][together] / f0_hz[:-1][together]))
    spread_st = 12 * np.log2(three_quarters_hz / quarter_hz)
    wobble_st = np.median(steps_st) if len(steps_st) else 0.0
    values = (median_hz, low_hz, spread_st, wobble_st, (10 * np.log10(r / (1 - r))).mean())
    return dict(zip(names, map(float, values), strict=True))


def _band_power(spectrum_F: np.ndarray, rate_hz: int, low_hz: float, high_hz: float) -> float:
    hz_F = np.linspace(0, rate_hz / 2, len(spectrum_F))
    return float(spectrum_F[(hz_F >= low_hz) & (hz_F < high_hz)].sum())


def _decibels(power: float) -> float:
    return 10 * np.log10(power + 1e-12)


def _tilt_db(spectrum_F: np.ndarray, rate_hz: int) -> float:
    above, below = (_band_power(spectrum_F, rate_hz, *band) for band in ((1000, 5000), (50, 1000)))
    return float(_decibels(above) - _decibels(below))


def _bands_db(spectra_TF: np.ndarray, rate_hz: int) -> tuple[float, ...]:
    if not len(spectra_TF):
        return (float("nan"),) * (len(BAND_EDGES_HZ) - 1)
    spectrum_F = spectra_TF.mean(0)
    bands = [
        _decibels(_band_power(spectrum_F, rate_hz, low, high) / (high - low)) for low, high in pairwise(BAND_EDGES_HZ)
    ]
    return tuple(float(level - np.mean(bands)) for level in bands)
