"""A model on the test sets, to a report folder: what `psclap evaluate` and the evaluate stage both do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation import RESAMPLES
from psclap.evaluation.bootstrap import LEVEL, check_resamples
from psclap.evaluation.evaluate import TestSets
from psclap.evaluation.report import EVALUATION_NAME, write_report
from psclap.files import atomic_folder, check_folder_writable
from psclap.report.document import PAGE_NAME
from psclap.report.page import write_html


def evaluate_to_folder(
    folder: Path,
    title: str,
    test_sets: TestSets,
    model: Embedder,
    untrained: Embedder | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes the report (see psclap.evaluation.report), whole or not at all, and returns the results that are in it.

    `untrained` is a model to stand beside it, such as its own first step. Raises PsclapError before anything is
    computed where `folder` cannot be written to, or holds something that is no report.
    """
    check_resamples(resamples)
    check_report_folder(folder)
    embedded = test_sets.embed(model)
    evaluation = test_sets.score(embedded)
    results = {
        "about": _about(test_sets, title, resamples, seed),
        "model": evaluation.with_intervals(resamples, seed),
        **({"untrained": test_sets.evaluate(untrained).results} if untrained else {}),
        "chance": test_sets.chance(),
    }
    with atomic_folder(folder) as partial:
        write_report(partial, title, results, evaluation.queries)
        write_html(partial / PAGE_NAME, title, test_sets, embedded, results)
    return results


def check_report_folder(folder: Path) -> None:
    """Raises PsclapError where a report cannot be written to `folder`, or would replace something that is none."""
    check_folder_writable(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / EVALUATION_NAME).exists():
        raise PsclapError(f"{folder} holds files that are no report, which would be lost; name another folder")


def _about(test_sets: TestSets, title: str, resamples: int, seed: int) -> dict[str, Any]:
    """What the numbers are of, and how their intervals came about."""
    clips = test_sets.clips
    return {
        "model": title,
        "split": test_sets.split,
        "clips": len(test_sets.rows),
        "index_sha256": test_sets.index.sha256,
        "test_sets": test_sets.fingerprints(),
        "unit": clips.unit,
        "units": len({*clips.unit_names}),
        "resamples": resamples,
        "seed": seed,
        "level": LEVEL,
    }
