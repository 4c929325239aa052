"""What a data set is made of, counted: clips, hours, speakers, tags, captions, durations, rejects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from psclap.schema import CAPTION_SETS, SPLITS
from psclap.soundness.columns import TAG_COLUMNS, Coded, Columns, distinct, distinct_pairs

_QUANTILES = {"p1": 0.01, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}


def statistics(columns: Columns, sample_rate_hz: int | None, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of a data set as plain numbers, free of NaN.

    Hours and durations are None where the clips were not measured yet, as in a manifest. `summary` is the shards'
    summary.json, or empty.
    """
    durations_s = clip_durations_s(columns, sample_rate_hz)
    return {
        "clips": len(columns),
        "hours": None if durations_s is None else _hours(durations_s.sum()),
        "speakers": len(distinct(columns.speaker_ids)),
        "sample_rate_hz": sample_rate_hz,
        "splits": _groups(columns, "split", durations_s, SPLITS),
        "sources": _groups(columns, "source", durations_s),
        "languages": _groups(columns, "language", durations_s),
        "tags": {level: _tags(columns, level) for level in TAG_COLUMNS},
        "captions": _captions(columns),
        "captions_in_several_splits": captions_in_several_splits(columns),
        "durations_s": _quantiles(durations_s),
        "rejects": _rejects(summary, len(columns)),
    }


def clip_durations_s(columns: Columns, sample_rate_hz: int | None) -> np.ndarray | None:
    """(len(columns),) seconds of each clip; None where they are not known."""
    if sample_rate_hz is None or "num_samples" not in columns:
        return None
    return columns.numbers("num_samples") / sample_rate_hz


def _hours(seconds: float) -> float:
    return round(float(seconds) / 3600, 4)


def _groups(
    columns: Columns, name: str, durations_s: np.ndarray | None, order: tuple[str, ...] = ()
) -> dict[str, dict[str, Any]]:
    """Clips, hours and speakers by the values of a column: first those in `order`, then the rest by name."""
    group = columns.coded(name)
    size = len(group.values)
    seconds = None if durations_s is None else np.bincount(group.codes, durations_s, size)
    speakers = np.bincount(distinct_pairs(columns.speaker_ids, group)[1], minlength=size)
    known = {value: number for number, value in enumerate(group.names)}
    return {
        value: {
            "clips": int(group.counts[known[value]]),
            "hours": None if seconds is None else _hours(seconds[known[value]]),
            "speakers": int(speakers[known[value]]),
        }
        for value in [*(value for value in order if value in known), *sorted(known.keys() - set(order))]
    }


def _tags(columns: Columns, level: str) -> dict[str, dict[str, Any]]:
    """How many times each tag is given, the most frequent first, and as a share of the clips."""
    tags = columns.tags(level)
    counted = sorted(zip(tags.counts.tolist(), tags.names, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return {tag: {"count": count, "share": round(count / len(columns), 4)} for count, tag in counted if count}


def _captions(columns: Columns) -> dict[str, dict[str, Any]]:
    """Per caption set: captions, distinct texts, clips that have one, and words per caption."""
    captions = columns.captions
    words = captions.texts.words
    known = captions.sets.names
    entries = {}
    for name in [*(name for name in CAPTION_SETS if name in known), *sorted(set(known) - set(CAPTION_SETS))]:
        chosen = captions.sets.codes == known.index(name)
        codes = captions.texts.codes[chosen]
        entries[name] = {
            "total": len(codes),
            "distinct": len(distinct(codes)),
            "clips": len(distinct(captions.rows[chosen])),
            "min_words": int(words[codes].min()),
            "mean_words": round(float(words[codes].mean()), 1),
            "max_words": int(words[codes].max()),
        }
    return entries


def captions_in_several_splits(columns: Columns) -> int:
    """How many distinct caption texts occur in more than one split; templates and basic tags repeat, so no fault."""
    captions, split = columns.captions, columns.coded("split")
    of_caption = Coded(split.values, split.codes[captions.rows])
    texts, _ = distinct_pairs(captions.texts.codes, of_caption)
    return int((np.bincount(texts, minlength=1) > 1).sum())


def _quantiles(durations_s: np.ndarray | None) -> dict[str, float] | None:
    if durations_s is None or not len(durations_s):
        return None
    values = np.quantile(durations_s, list(_QUANTILES.values()))
    named = {
        "min": durations_s.min(),
        **dict(zip(_QUANTILES, values, strict=True)),
        "max": durations_s.max(),
        "mean": durations_s.mean(),
    }
    return {name: round(float(value), 3) for name, value in named.items()}


def _rejects(summary: Mapping[str, Any], clips: int) -> dict[str, Any] | None:
    if "rejected" not in summary:
        return None
    rejected = summary["rejected"]
    return {
        "count": rejected,
        "rate": round(rejected / max(rejected + clips, 1), 4),
        "reasons": dict(summary.get("reject_reasons", {})),
    }


@dataclass(frozen=True)
class Section:
    """A titled table of texts."""

    title: str
    header: list[str]
    rows: list[list[str]]


def sections(numbers: Mapping[str, Any]) -> Iterator[Section]:
    """The statistics as tables to print; a table without rows is left out."""
    total = {"all": {name: numbers[name] for name in ("clips", "hours", "speakers")}}
    found = [
        _group_section("Splits", "split", {**numbers["splits"], **total}),
        _group_section("Sources", "source", numbers["sources"]),
        _group_section("Languages", "language", numbers["languages"]),
        *(_tag_section(level, tags) for level, tags in numbers["tags"].items()),
        _caption_section(numbers),
        Section("Durations", ["quantile", "seconds"], _rows(numbers["durations_s"] or {}, "{:.2f}")),
    ]
    if numbers["rejects"] is not None:
        found.append(Section("Rejects", ["reason", "clips"], _rows(numbers["rejects"]["reasons"], "{}")))
    return (section for section in found if section.rows)


def _group_section(title: str, name: str, groups: Mapping[str, Mapping[str, Any]]) -> Section:
    measured = any(group["hours"] is not None for group in groups.values())
    return Section(
        title,
        [name, "clips", *(["hours"] if measured else []), "speakers"],
        [
            [value, str(group["clips"]), *([f"{group['hours']:.2f}"] if measured else []), str(group["speakers"])]
            for value, group in groups.items()
        ],
    )


def _tag_section(level: str, tags: Mapping[str, Mapping[str, Any]]) -> Section:
    rows = [[tag, str(entry["count"]), f"{100 * entry['share']:.1f} %"] for tag, entry in tags.items()]
    return Section(f"Tags, {level}", ["tag", "times", "of the clips"], rows)


def _caption_section(numbers: Mapping[str, Any]) -> Section:
    rows = []
    for name, entry in numbers["captions"].items():
        words = f"{entry['min_words']} / {entry['mean_words']} / {entry['max_words']}"
        rows.append([name, *(str(entry[key]) for key in ("total", "distinct", "clips")), words])
    title = f"Captions ({numbers['captions_in_several_splits']} texts occur in several splits)"
    return Section(title, ["set", "captions", "distinct", "clips", "words min / mean / max"], rows)


def _rows(numbers: Mapping[str, Any], form: str) -> list[list[str]]:
    return [[name, form.format(number)] for name, number in numbers.items()]
