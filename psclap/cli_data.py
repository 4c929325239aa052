"""The `psclap data` commands: is a data set sound, and what is it made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from psclap.errors import PsclapError

if TYPE_CHECKING:
    from psclap.soundness.findings import Finding, Report

data_app = typer.Typer(no_args_is_help=True, help="Check a data set.")


@data_app.command("check")
def check(
    path: Annotated[
        str, typer.Argument(help="A folder of shards, one with utterances.parquet, or its file; or a URL.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Also hash every shard and decode every clip.")] = False,
) -> None:
    """Is this data set sound? Ends with 0 where it is, 1 where it is not, 2 where it cannot be read."""
    from psclap.soundness.integrity import check_location

    try:
        report = check_location(path, deep=deep)
    except (PsclapError, OSError) as error:  # an OSError names the file and what the system says
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps({"path": path, **report.to_json()}, indent=2, allow_nan=False))
    else:
        typer.echo("\n".join(_lines(report)))
    raise typer.Exit(0 if report.sound else 1)


def _lines(report: Report) -> Iterator[str]:
    from psclap.markdown import table
    from psclap.soundness.statistics import sections

    yield report.verdict
    for finding in report.findings:
        yield from _finding_lines(finding)
    for section in sections(report.statistics):
        yield from ("", section.title, "", *table(section.header, section.rows))


def _finding_lines(finding: Finding) -> Iterator[str]:
    from psclap.soundness.findings import MAX_EXAMPLES

    yield ""
    yield f"{finding.severity:7}  {finding.title}"
    for example in finding.examples:
        yield f"           {example}"
    if len(finding.examples) < finding.count and len(finding.examples) == MAX_EXAMPLES:
        yield "           ..."
    yield f"         {finding.advice}"
