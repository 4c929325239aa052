"""How far synthesised speech is from the recording: spectrum, pitch, voicing, length.

Mel cepstra and their distortion, in decibels: Kubichek, Mel-cepstral distance measure for objective speech quality
assessment, 1993. Errors of pitch and voicing: Chu and Alwan, Reducing F0 frame error of F0 tracking algorithms under
noisy conditions with an unvoiced/voiced classification frontend, 2009. Dynamic time warping: Sakoe and Chiba, Dynamic
programming algorithm optimization for spoken word recognition, 1978.

Axes: T and U frames of the recording and of the synthesis, B mel bands, C cepstral coefficients, P steps of a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.fft import dct
from scipy.spatial.distance import cdist

MCD_DB = 10 * np.sqrt(2) / np.log(10)
"""Decibels for a Euclidean distance of 1 between mel cepstra, of natural logarithms of amplitudes."""
NUM_COEFFICIENTS = 24
"""c1 to c24, as is usual at 16 kHz; c0, the level, does not count."""
FLOOR = 1e-5
"""An amplitude of a mel band below which differences are not heard: HiFi-GAN's floor, about 100 dB below speech."""
GROSS_SHARE = 0.2
"""A pitch that is off by more than this share of the right one is a gross error."""


def mel_cepstra(
    log_mel_TB: np.ndarray, log: Literal["e", "10"], num_coefficients: int = NUM_COEFFICIENTS
) -> np.ndarray:
    """(T, C) c1, c2, ... of log-mels: coefficients of cosines that add up to the log spectrum, without its mean.

    `log` is the base of the log-mels. With c of all coefficients, MCD_DB times the distance of two frames is the root
    mean square over the bands of what their levels differ by in decibels, but for a common gain:

    >>> quiet, louder = np.zeros((1, 80)), np.repeat([0.0, 0.1], 40)[None]  # above, the upper half is 2 dB louder
    >>> difference = mel_cepstra(louder, "10", 79) - mel_cepstra(quiet, "10", 79)
    >>> round(float(MCD_DB * np.linalg.norm(difference)), 6)
    1.0
    """
    base = np.log(10) if log == "10" else 1.0
    natural_TB = np.maximum(base * log_mel_TB.astype(np.float64), np.log(FLOOR))
    return dct(natural_TB, axis=1)[:, 1 : num_coefficients + 1] / log_mel_TB.shape[1]


@dataclass(frozen=True, eq=False)
class Frames:
    """What is compared of one sound: per mel frame its cepstra, and its F0 in hertz, 0 where it is unvoiced."""

    cepstra: np.ndarray  # (T, C)
    f0_hz: np.ndarray  # (T,)


def compare(recorded: Frames, synthesised: Frames) -> dict[str, float]:
    """The distances of a synthesis from a recording, along the path that warps their cepstra onto each other.

    All frames count, those of silence too. `mcd_db`; of voicing the share of the path's steps where it differs; of F0,
    where both are voiced, the root mean square error in hertz and in cents, and the share of gross errors. These are
    NaN where no step is voiced in both.

    >>> tone = Frames(np.zeros((4, 24)), np.full(4, 100.0))
    >>> compare(tone, Frames(np.zeros((5, 24)), np.full(5, 150.0)))["gross_pitch_error"]
    1.0
    """
    distances_TU = cdist(recorded.cepstra, synthesised.cepstra)
    path_P2 = warp(distances_TU)
    recorded_P, synthesised_P = path_P2.T
    return {
        "mcd_db": float(MCD_DB * distances_TU[recorded_P, synthesised_P].mean()),
        **pitch_errors(recorded.f0_hz[recorded_P], synthesised.f0_hz[synthesised_P]),
    }


def mel_cepstral_distortion(recorded_TC: np.ndarray, synthesised_UC: np.ndarray) -> float:
    """Decibels, mean over the steps of the warping path.

    >>> round(mel_cepstral_distortion(np.zeros((3, 24)), np.full((5, 24), 0.1)), 3)
    3.009
    """
    distances_TU = cdist(recorded_TC, synthesised_UC)
    return float(MCD_DB * distances_TU[tuple(warp(distances_TU).T)].mean())


def pitch_errors(right_hz: np.ndarray, hz: np.ndarray) -> dict[str, float]:
    """The errors of pitch and voicing of `hz`, (P,), against `right_hz`, frame by frame; 0 is unvoiced.

    >>> errors = pitch_errors(np.array([100.0, 200.0, 0.0, 0.0]), np.array([200.0, 200.0, 150.0, 0.0]))
    >>> errors["voicing_error"], errors["gross_pitch_error"], round(errors["f0_rmse_cents"])
    (0.25, 0.5, 849)
    """
    both = (right_hz > 0) & (hz > 0)
    errors = {"voicing_error": float(((right_hz > 0) != (hz > 0)).mean())}
    if not both.any():
        return errors | dict.fromkeys(("f0_rmse_hz", "f0_rmse_cents", "gross_pitch_error"), float("nan"))
    ratio = hz[both] / right_hz[both]
    return errors | {
        "f0_rmse_hz": _root_mean_square(hz[both] - right_hz[both]),
        "f0_rmse_cents": _root_mean_square(1200 * np.log2(ratio)),
        "gross_pitch_error": float((np.abs(ratio - 1) > GROSS_SHARE).mean()),
    }


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def warp(cost_TU: np.ndarray) -> np.ndarray:
    """(P, 2) the path of the least total cost from the first pair of frames to the last.

    A step goes on by one frame in either sound, or in both; all steps weigh the same, and where several paths cost the
    same, the last steps that go on in both win.

    >>> warp(np.abs(np.subtract.outer([0, 1, 5], [0, 1, 1, 5]))).tolist()
    [[0, 0], [1, 1], [1, 2], [2, 3]]
    """
    return _path(_total_costs(cost_TU))


def _total_costs(cost_TU: np.ndarray) -> np.ndarray:
    """(T + 1, U + 1) the least total cost of a path to each pair, whose first row and column are a border.

    One diagonal at a time: its pairs depend on the two diagonals before it only. In a flat array the pairs of a
    diagonal lie evenly apart, so each is a slice.
    """
    rows, columns = cost_TU.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    flat, cost = total.ravel(), np.pad(cost_TU, ((1, 0), (1, 0))).ravel()
    width = columns + 1
    for diagonal in range(2, rows + columns + 1):
        first, last = max(1, diagonal - columns), min(rows, diagonal - 1)  # rows that it passes
        start, stop = first * width + diagonal - first, last * width + diagonal - last + 1
        here, above, left, before = (slice(start - back, stop - back, columns) for back in (0, width, 1, width + 1))
        flat[here] = cost[here] + np.minimum(flat[before], np.minimum(flat[above], flat[left]))
    return total


def _path(total: np.ndarray) -> np.ndarray:
    row, column = total.shape[0] - 1, total.shape[1] - 1
    path = [(row, column)]
    while row > 1 or column > 1:
        before, above, left = total[row - 1, column - 1], total[row - 1, column], total[row, column - 1]
        if before <= above and before <= left:
            row, column = row - 1, column - 1
        elif above <= left:
            row -= 1
        else:
            column -= 1
        path.append((row, column))
    return np.array(path[::-1]) - 1
