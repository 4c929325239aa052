"""One self-contained HTML page about a model on its test sets, to look at and listen to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psclap.evaluation.evaluate import Embedded, TestSets
from psclap.evaluation.report import kinds
from psclap.evaluation.retrieval import DIRECTIONS, Direction
from psclap.report import examples, numbers
from psclap.report.clips import PlayableClips
from psclap.report.curve import Drawing, rank_curve
from psclap.report.document import write_document
from psclap.report.projection import clip_map
from psclap.report.queries import sides
from psclap.tags import ATTRIBUTES


@dataclass(frozen=True)
class CaptionSetPart:
    """What the page shows of a caption set."""

    name: str
    num_clips: int
    num_captions: int
    rows: Mapping[Direction, list[numbers.Row]]
    curve: Drawing
    of_clips: examples.Examples
    of_captions: examples.Examples


def write_html(
    path: Path | str, title: str, test_sets: TestSets, embedded: Embedded, results: Mapping[str, Any]
) -> None:
    """Writes the page about a model named `title`: at most 8 MB, equal bytes for equal arguments.

    `embedded` is what the model made of `test_sets`; `results` as psclap/evaluation/report.py takes it. Raises
    PsclapError where a clip cannot be read, and for embeddings that are not finite.
    """
    clips = PlayableClips(test_sets.index)
    attributes = [of_attribute.attribute for of_attribute in test_sets.classification]
    content = {
        "title": title,
        "facts": _facts(test_sets, results),
        "caption_sets": [_caption_set(name, test_sets, embedded, results, clips) for name in test_sets.retrieval],
        "columns": numbers.COLUMNS,
        "attributes": numbers.attributes(results),
        "composition": {direction: numbers.composition(results, direction) for direction in DIRECTIONS},
        "map": clip_map(test_sets.index, test_sets.rows, embedded.speech, attributes or ATTRIBUTES),
    }
    write_document(path, "page.html", content, scripts=("sound.js", "map.js"))


def _facts(test_sets: TestSets, results: Mapping[str, Any]) -> dict[str, Any]:
    index, rows = test_sets.index, test_sets.rows
    return {
        "num_clips": len(rows),
        "hours": float(index.num_samples[rows].sum() / index.sample_rate_hz / 3600),
        "split": test_sets.split,
        "unit": test_sets.clips.unit if numbers.has_intervals(results) else None,  # what intervals resample
        "kinds": kinds(results),
    }


def _caption_set(
    name: str, test_sets: TestSets, embedded: Embedded, results: Mapping[str, Any], clips: PlayableClips
) -> CaptionSetPart:
    test_set = test_sets.retrieval[name]
    speech_ND = embedded.speech[np.searchsorted(test_sets.rows, test_set.rows)]
    both = sides(test_set, speech_ND, embedded.texts[name])
    return CaptionSetPart(
        name=name,
        num_clips=len(test_set.rows),
        num_captions=len(test_set.captions),
        rows={direction: numbers.retrieval_rows(results, name, direction) for direction in DIRECTIONS},
        curve=rank_curve(both),
        of_clips=examples.of_clips(test_set, both["audio_to_text"], clips),
        of_captions=examples.of_captions(test_set, both["text_to_audio"], clips),
    )
