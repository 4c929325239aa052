"""The data card: what a folder of shards holds, as a page to read and a picture to glance at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from psclap.files import atomic_file
from psclap.markdown import table as markdown_table
from psclap.soundness.checks import check
from psclap.soundness.columns import Columns
from psclap.soundness.findings import Report
from psclap.soundness.statistics import clip_durations_s, sections

CARD_NAME = "data_card.md"
PICTURE_NAME = "data_card.png"
_MAX_BARS = 30
_MAX_SOURCES = 9
_BINS = 40


def write_card(folder: Path, table: pa.Table, summary: Mapping[str, Any]) -> Report:
    """Writes data_card.md and data_card.png to a folder; returns the report that they show.

    `table` is the index, `summary` the content of summary.json. The bytes of both files depend on these alone.
    Raises PsclapError for a table that is no index.
    """
    report = check(table, summary["sample_rate_hz"], summary)
    with atomic_file(folder / CARD_NAME) as path:
        path.write_text("\n".join([*_lines(report, summary), ""]), encoding="utf-8")
    with atomic_file(folder / PICTURE_NAME) as path:
        _draw(path, Columns(table), report.statistics)
    return report


def _lines(report: Report, summary: Mapping[str, Any]) -> Iterator[str]:
    numbers = report.statistics
    yield from ("# Data card", "")
    yield f"{numbers['clips']} clips, {numbers['hours']:.2f} hours, {numbers['speakers']} speakers."
    yield from (f"FLAC, mono, 16 bit, {numbers['sample_rate_hz']} Hz.", "", f"![overview]({PICTURE_NAME})")
    yield from ("", "## Soundness", "", f"{report.verdict[0].upper()}{report.verdict[1:]}.", "")
    for finding in report.findings:
        yield f"- {finding.severity}: {finding.title}. {finding.advice}"
        yield from (f"  - {example}" for example in finding.examples)
    for section in sections(numbers):
        yield from ("", f"## {section.title}", "", *markdown_table(section.header, section.rows))
    yield from ("", "## Made from", "", *markdown_table(["what", "value"], list(_origin(summary))))


def _origin(summary: Mapping[str, Any]) -> Iterator[list[str]]:
    """What the summary says beyond the counts, such as hashes; hashes of shards are left to summary.json."""
    for name, value in sorted(summary.items()):
        if isinstance(value, str | int | float) and name not in ("clips", "rejected"):
            yield [name, str(value)]
    yield ["shards", str(len(summary["shards"]))]


def _draw(path: Path, columns: Columns, numbers: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure  # a second to import, and only cards and reports need it

    tags = _most_frequent(numbers["tags"])
    height = max(6.5, 3.2 + 0.17 * len(tags))
    figure = Figure(figsize=(12, height), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.35, 1)).ravel()
    durations, hours, captions = left.subplots(3, 1)
    _draw_durations(durations, columns, numbers)
    _draw_hours(hours, columns, numbers)
    _draw_captions(captions, numbers["captions"])
    _draw_tags(right.subplots(), tags)
    figure.suptitle(f"{numbers['clips']:,} clips, {numbers['hours']:,.2f} hours, {numbers['speakers']:,} speakers")
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _most_frequent(tags: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, int, str]]:
    """(tag, count, level) of the most frequent tags of the clips' own levels, the most frequent first."""
    counted = [
        (tag, entry["count"], level) for level in ("intrinsic", "situational") for tag, entry in tags[level].items()
    ]
    return sorted(counted, key=lambda entry: (-entry[1], entry[0]))[:_MAX_BARS]


def _draw_durations(axes: Any, columns: Columns, numbers: Mapping[str, Any]) -> None:
    durations_s = clip_durations_s(columns, numbers["sample_rate_hz"])
    split = columns.coded("split")
    if durations_s is not None and len(durations_s):
        edges = np.linspace(0, max(float(np.quantile(durations_s, 0.999)), 0.1), _BINS + 1)
        for name in numbers["splits"]:
            of_split = durations_s[split.codes == split.names.index(name)]
            # The few clips beyond the last edge are counted in the last bin.
            heights, _ = np.histogram(of_split.clip(0, edges[-1]), edges)
            axes.stairs(heights / max(len(of_split), 1) * 100, edges, label=name, linewidth=1.4)
        _legend_beside(axes)
    axes.set(title="Durations", xlabel="seconds", ylabel="% of the split's clips")


def _draw_hours(axes: Any, columns: Columns, numbers: Mapping[str, Any]) -> None:
    """Hours per split, a bar each, stacked by source; of many sources the small ones are one part."""
    sources = sorted(numbers["sources"], key=lambda name: -numbers["sources"][name]["hours"])
    shown, other = sources[:_MAX_SOURCES], sources[_MAX_SOURCES:]
    splits = list(numbers["splits"])
    hours = _hours_by(columns, numbers["sample_rate_hz"], splits, sources)
    parts = [*hours[:, : len(shown)].T, *([hours[:, len(shown) :].sum(1)] if other else [])]
    left = np.zeros(len(splits))
    for label, part in zip([*shown, f"{len(other)} others"], parts, strict=False):
        axes.barh(splits, part, left=left, label=label, height=0.6)
        left += part
    for place, total in enumerate(left):
        axes.annotate(f" {total:,.2f} h", (total, place), va="center", fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    _legend_beside(axes)
    axes.set(title="Hours per split, by source", xlabel="hours")


def _legend_beside(axes: Any) -> None:
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1.03))


def _hours_by(columns: Columns, sample_rate_hz: int, splits: list[str], sources: list[str]) -> np.ndarray:
    """(splits, sources) hours."""
    split, source = columns.coded("split"), columns.coded("source")
    shape = (len(split.values), len(source.values))
    cells = np.ravel_multi_index((split.codes, source.codes), shape)
    seconds = np.bincount(cells, clip_durations_s(columns, sample_rate_hz), shape[0] * shape[1]).reshape(shape)
    places = [split.names.index(name) for name in splits], [source.names.index(name) for name in sources]
    return seconds[np.ix_(*places)] / 3600


def _draw_captions(axes: Any, captions: Mapping[str, Mapping[str, Any]]) -> None:
    places = np.arange(len(captions))
    for offset, key in ((-0.2, "total"), (0.2, "distinct")):
        bars = axes.bar(places + offset, [entry[key] for entry in captions.values()], 0.38, label=key)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize="small")
    axes.set_xticks(places, list(captions))
    axes.margins(y=0.15)
    _legend_beside(axes)
    axes.set(title="Captions per set", ylabel="captions")


def _draw_tags(axes: Any, tags: list[tuple[str, int, str]]) -> None:
    for color, level in (("C0", "intrinsic"), ("C1", "situational")):
        places = [place for place, entry in enumerate(tags) if entry[2] == level]
        bars = axes.barh(places, [tags[place][1] for place in places], color=color, label=level)
        axes.bar_label(bars, fmt=" {:,.0f}", fontsize="small")
    axes.set_yticks(range(len(tags)), [tag for tag, _, _ in tags], fontsize="small")
    axes.set_ylim(len(tags) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.legend(fontsize="small", loc="lower right")
    title = f"Clips per tag, the {_MAX_BARS} most frequent" if len(tags) == _MAX_BARS else "Clips per tag"
    axes.set(title=title, xlabel="clips")
