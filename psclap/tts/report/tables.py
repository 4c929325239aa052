"""Evaluation results (psclap/tts/evaluation/results.py) as the rows and cells of the page's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psclap.report.numbers import Row, cell, retrieval_cells
from psclap.tts.evaluation.retrieval import DIRECTIONS

NAMES = {
    "copy_synthesis": "recording, through the vocoder",
    "model": "this model",
    "untrained": "untrained",
    "mean_mel": "mean mel",
    "predicted": "this model",
    "even": "all equally long",
}
"""What the page calls what is measured."""

_OF_SYSTEMS = {
    "MCD, dB": ("mcd_db", 1, 2),
    "of the mel, dB": ("mel_mcd_db", 1, 2),
    "F0, cents": ("f0_rmse_cents", 1, 0),
    "F0, Hz": ("f0_rmse_hz", 1, 1),
    "gross pitch, %": ("gross_pitch_error", 100, 1),
    "voicing, %": ("voicing_error", 100, 1),
    "length, %": ("length_error", 100, 1),
}
_OF_ALIGNMENTS = {
    "mean, ms": ("mean_ms", 1, 1),
    "median, ms": ("median_ms", 1, 1),
    "within 20 ms, %": ("within_20_ms", 100, 1),
    "within 50 ms, %": ("within_50_ms", 100, 1),
    "durations, ms": ("duration_ms", 1, 1),
}


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; a row's `kind` is one of NAMES."""

    columns: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Aligned:
    """A table of boundary errors, and how many phones it is of."""

    title: str
    table: Table
    matched: int
    unmatched_predicted: int
    unmatched_known: int


def systems(results: Mapping[str, Any]) -> Table | None:
    """A row for each system; None where none was measured."""
    return _table(results["systems"], _OF_SYSTEMS) if "systems" in results else None


def alignments(results: Mapping[str, Any]) -> list[Aligned]:
    """The tables of what was aligned: by Speech-Clip, by the duration predictor."""
    titles = {"alignment": "Speech-Clip's alignment", "durations": "Predicted durations"}
    return [
        Aligned(
            title=title,
            table=_table(results[part], _OF_ALIGNMENTS),
            **{
                name: results[part]["predicted"][name] for name in ("matched", "unmatched_predicted", "unmatched_known")
            },
        )
        for part, title in titles.items()
        if part in results
    ]


def retrieval(results: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of each direction: the model's and chance's; empty where nothing was retrieved."""
    if "retrieval" not in results:
        return {}
    found = results["retrieval"]
    return {
        direction: [
            Row("model", retrieval_cells(found[direction])),
            Row("chance", retrieval_cells(found["chance"][direction])),
        ]
        for direction in DIRECTIONS
    }


def _table(scores: Mapping[str, Any], columns: Mapping[str, tuple[str, float, int]]) -> Table:
    rows = [Row(kind, [cell(of_kind, *how) for how in columns.values()]) for kind, of_kind in scores.items()]
    return Table(list(columns), rows)
