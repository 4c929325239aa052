"""Evaluation results of text-to-speech: what they hold, the numbers for a metrics file, the rows for a CSV.

`results` is a mapping with any of these parts, and `about`:
`systems`: of each system the means of its measures (evaluate.py), with their intervals;
`retrieval`: of Speech-Clip, both ways, and chance (retrieval.py);
`alignment`: of Speech-Clip's aligner, and `durations`: of the duration predictor, both as alignment.py has them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psclap.evaluation import RESAMPLES
from psclap.files import atomic_file
from psclap.tts.evaluation.means import means

MEASURES = (
    "mcd_db",
    "mel_mcd_db",
    "f0_rmse_cents",
    "f0_rmse_hz",
    "gross_pitch_error",
    "voicing_error",
    "length_error",
    "length_ratio",
)
_RECALLS = ("R@1", "R@5", "R@10", "MRR")
_ALIGNED = ("mean_ms", "median_ms", "within_20_ms", "within_50_ms", "duration_ms")
_COUNTS = ("matched", "unmatched_predicted", "unmatched_known")


def summary(
    rows: Sequence[Mapping[str, Any]], unit_names: Mapping[str, str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The mean of every measure of each system, with 95 % intervals; `clips`, and of how many F0 could be compared.

    `rows` are those of `evaluate.Heard`; `unit_names` says by a clip's key which unit it was drawn with.
    """
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(unit_names[row["key"]] for row in rows))}
    systems = {}
    for name in dict.fromkeys(row["system"] for row in rows):
        of_system = [row for row in rows if row["system"] == name]
        values = {measure: np.array([row[measure] for row in of_system], float) for measure in MEASURES}
        unit_N = np.array([numbers[unit_names[row["key"]]] for row in of_system])
        systems[name] = {
            **means(values, unit_N, resamples, seed),
            "clips": len(of_system),
            "clips_voiced": int((~np.isnan(values["f0_rmse_cents"])).sum()),
        }
    return systems


def headline(results: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers worth a metrics file, rounded to 4 digits; each stands beside the ends of its interval."""
    entries: dict[str, Any] = {
        name: _numbers(scores, (*MEASURES, "clips", "clips_voiced"))
        for name, scores in results.get("systems", {}).items()
    }
    if "retrieval" in results:
        chance = results["retrieval"]["chance"]
        entries["retrieval"] = {
            direction: _numbers(results["retrieval"][direction], _RECALLS)
            | {f"chance_{name}": round(value, 4) for name, value in of_chance.items()}
            for direction, of_chance in chance.items()
        }
    for part in ("alignment", "durations"):
        if part in results:
            entries[part] = {kind: _numbers(of, (*_ALIGNED, *_COUNTS)) for kind, of in results[part].items()}
    return entries


def _numbers(scores: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    entry = {}
    for name in names:
        if name in scores:
            entry[name] = round(scores[name], 4)
            ends = scores.get("intervals", {}).get(name, ())
            entry |= {f"{name}_{end}": round(value, 4) for end, value in zip(("low", "high"), ends, strict=False)}
    return entry


def write_rows(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as CSV, one for each clip and system; empty where a clip lacks a measure."""
    columns = ["system", "key", *MEASURES]
    with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if np.isnan(value) else round(value, 6)
    return value
