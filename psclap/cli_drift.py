"""`psclap drift`: does new data still sound like the reference?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psclap.cli_common import AsJson
from psclap.console import columns, shortened
from psclap.errors import PsclapError
from psclap.files import check_writable, write_json
from psclap.startup import uncollected_imports

if TYPE_CHECKING:
    from psclap.drift import Drift
    from psclap.drift.result import Measured

drift_app = typer.Typer()

DRIFTED = 3
_LONGEST_NAME = 34
_MOST_CHANGES, _LONGEST_CHANGES = 3, 49
_MOST_ROWS = 24
_NUMBERS = {
    "mean_shift": "shift of the embeddings' mean, in units of their spread",
    "far_share": "share of clips farther from that mean than 99 % of the reference",
    "reject_rate": "share of clips that scoring could not use",
}
_LEGEND = (
    "",
    "moved: the share of the new clips that would have to be in another bin (a tag, or a tenth of all clips)",
    "chance: the mean of {drift.deals} deals of the same {drift.unit}s to both at random",
    "p: how often such a deal moves any measure as much as this one; headline: the largest `moved` less chance whose",
    "   p is at most {drift.level:g}, so equal data show drift in one of {drift.once_in} comparisons",
)


@drift_app.command()
def drift(
    reference: Annotated[str, typer.Argument(help="An output of the scoring job (folder or URL); or shards.")],
    new: Annotated[str, typer.Argument(help="The same for the new data, by the same model.")],
    fail_above: Annotated[
        float | None, typer.Option(help="Exit with status 3 where the headline is above this share. Default: never.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="A filter of the new clips, as of psclap search.")] = None,
    reference_where: Annotated[str | None, typer.Option(help="A filter of the reference's clips.")] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="A column that marks clips that belong together, or clip. Default: speaker, where there is."),
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Compare the tags of two folders of shards, not scores.")
    ] = False,
    split: Annotated[str, typer.Option(help="With --labels: the reference's split; all for all of it.")] = "train",
    output: Annotated[
        Path | None,
        typer.Option(help="Also write the JSON there; psclap status shows runs/drift.json or runs/*/drift.json."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """By how much do new clips differ from a reference, beyond what chance gives?"""
    with uncollected_imports():
        from psclap.drift import compare_labels, compare_scores
        from psclap.drift.result import THRESHOLD

    if output:
        check_writable(output)
    threshold = THRESHOLD if fail_above is None else fail_above
    if labels:
        if where or reference_where:
            raise PsclapError("--where and --reference-where are for scores, not --labels; --split chooses a split")
        found = compare_labels(reference, new, split=None if split == "all" else split, unit=unit, threshold=threshold)
    else:
        found = compare_scores(
            reference, new, reference_where=reference_where, where=where, unit=unit, threshold=threshold
        )
    if output:
        write_json(output, found.to_dict())
    typer.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False) if as_json else "\n".join(lines(found)))
    if fail_above is not None and found.drifted:
        raise typer.Exit(DRIFTED)


def lines(drift: Drift) -> Iterator[str]:
    """The result for people."""
    yield verdict(drift)
    yield ""
    for side, name in ((drift.reference, "reference"), (drift.new, "new")):
        compared = "" if side.compared == side.clips else f", {side.compared:,} of them compared"
        units = "" if drift.unit == "clip" else f", {drift.unit}s: {side.units:,}"
        where = f" where {side.where}" if side.where else ""
        yield f"{name:9}  {side.location}{where}: {side.clips:,} clips{compared}{units}"
    if drift.model:
        yield f"model      {drift.model}"
    yield ""
    ordered = sorted(drift.measured, key=lambda one: (one.p_value, -one.beyond_chance))
    header = ["measure", "moved", "chance", "p", "PSI", "chance", "the largest changes"]
    yield from columns(header, [_row(one) for one in ordered[:_MOST_ROWS]])
    if len(ordered) > _MOST_ROWS:
        yield f"and {len(ordered) - _MOST_ROWS} more with p from {ordered[_MOST_ROWS].p_value:.3f} on, see --json"
    if drift.numbers:
        yield ""
    for number in drift.numbers:
        told = f"{number.reference:.3f} -> {number.new:.3f}" if number.name != "mean_shift" else f"{number.new:.3f}"
        yield f"{_NUMBERS[number.name]}: {told} (chance: {number.by_chance:.3f}, p {number.p_value:.3f})"
    yield from (line.format(drift=drift) for line in _LEGEND)


def verdict(drift: Drift) -> str:
    """The result in a sentence."""
    if not drift.can_tell:
        return (
            f"no drift that could be told from chance: {drift.reference.units:,} and {drift.new.units:,} {drift.unit}s "
            f"are too few; score more, or name what else clips have in common with --unit; headline 0"
        )
    if drift.worst is None:
        return (
            f"no drift: chance explains every difference (lowest p {min(one.p_value for one in drift.measured):.3f} > "
            f"{drift.level:g}); headline 0"
        )
    what = f"headline {drift.headline:.3f}: {drift.worst.title!r} moved {drift.worst.moved:.3f}"
    rule = f"{what}, {drift.worst.by_chance:.3f} of it by chance; the threshold is {drift.threshold:g}"
    return f"DRIFTED: {rule}" if drift.drifted else f"no drift: {rule}"


def _row(measured: Measured) -> list[str]:
    numbers = [f"{value:.3f}" for value in (measured.moved, measured.by_chance, measured.p_value)]
    psi = [f"{value:.3f}" for value in (measured.psi, measured.psi_by_chance)]
    return [
        shortened(measured.title, _LONGEST_NAME),
        *numbers,
        *psi,
        shortened(_largest_changes(measured), _LONGEST_CHANGES),
    ]


def _largest_changes(measured: Measured) -> str:
    """Of the tags; of numbers, where the mean went."""
    if measured.mean_reference is not None and measured.mean_new is not None:
        return f"mean {_plain(measured.mean_reference)} -> {_plain(measured.mean_new)}"
    told = [one for one in measured.changes if measured.kind != "label" or one.bin == measured.name]
    largest = sorted(told, key=lambda one: -abs(one.change))[:_MOST_CHANGES]
    return ", ".join(f"{one.bin} {100 * one.reference:.0f} -> {100 * one.new:.0f} %" for one in largest)


def _plain(value: float) -> str:
    """Three decimals, without a sign of zero."""
    return f"{round(value, 3) + 0.0:.3f}"
