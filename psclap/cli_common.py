"""What the commands share: options, the model, and how rows are printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psclap.console import columns
from psclap.startup import uncollected_imports

if TYPE_CHECKING:
    from psclap.embedding import Embedder

DEFAULT_MODEL = "models:/psclap-combined@champion"

Model = Annotated[str, typer.Option(help="A checkpoint folder, a models:/ URI, or a name on the Hub.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def load_embedder(model: str) -> Embedder:
    """The Embedder of a model by any name; torch is imported here, not before."""
    with uncollected_imports():
        from psclap.embedding import Embedder

    return Embedder(model)


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Prints rows, which have the same columns, as a table or as JSON; of no rows the table is empty."""
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    header = list(rows[0]) if rows else []
    for line in columns(header, [[_cell(row[name]) for name in header] for row in rows]):
        typer.echo(line)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:+.4f}" if isinstance(value, float) else str(value)
