"""Spectrograms and alignments as the page draws them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from psclap.tts.evaluation.alignment import Timeline
from psclap.tts.mel import MelConfig

RANGE_DB = 80.0
"""What lies further below the loudest cell than this is black."""
_NO_METADATA: dict[str, Any] = {"Software": None}  # which would name the version of matplotlib
_WIDTH_PER_S = 330.0  # of a drawing with phones' names, in its units; a phone lasts about 0.08 s


@dataclass(frozen=True)
class Phone:
    """A phone of a drawing: where it starts, where its name stands, and its name."""

    start: float
    middle: float
    name: str


@dataclass(frozen=True)
class AlignmentDrawing:
    """A spectrogram with known boundaries above and predicted ones below, in units of the drawing."""

    width: float
    picture: str  # a data: URI
    known: Sequence[Phone]
    predicted: Sequence[Phone]


def loudest_db(log_mel_FM: np.ndarray, mel: MelConfig) -> float:
    """The level of the loudest cell."""
    return float(_decibels(log_mel_FM, mel).max())


def spectrogram_uri(log_mel_FM: np.ndarray, mel: MelConfig, top_db: float) -> str:
    """A PNG of one pixel for each cell, low frequencies below, as a data: URI; `top_db` and above is brightest."""
    from matplotlib.image import imsave  # half a second to import, and only reports need it

    buffer = io.BytesIO()
    shares_MF = 1 + (_decibels(log_mel_FM, mel).T - top_db) / RANGE_DB
    imsave(buffer, shares_MF, vmin=0, vmax=1, origin="lower", cmap="magma", metadata=_NO_METADATA)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _decibels(log_mel_FM: np.ndarray, mel: MelConfig) -> np.ndarray:
    return 20 * log_mel_FM / (1 if mel.log == "10" else np.log(10))


def draw_alignment(log_mel_FM: np.ndarray, mel: MelConfig, predicted: Timeline, known: Timeline) -> AlignmentDrawing:
    """The drawing of one clip's phones."""
    duration_s = len(log_mel_FM) * mel.hop_length / mel.sample_rate_hz
    return AlignmentDrawing(
        width=round(_WIDTH_PER_S * duration_s, 1),
        picture=spectrogram_uri(log_mel_FM, mel, loudest_db(log_mel_FM, mel)),
        known=_phones(known),
        predicted=_phones(predicted),
    )


def _phones(timeline: Timeline) -> list[Phone]:
    phones = timeline.phones()
    places = zip(phones.starts_s.tolist(), phones.ends_s.tolist(), phones.symbols, strict=True)
    return [
        Phone(round(_WIDTH_PER_S * start_s, 1), round(_WIDTH_PER_S * (start_s + end_s) / 2, 1), name)
        for start_s, end_s, name in places
    ]
