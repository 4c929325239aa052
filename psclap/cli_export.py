"""`psclap export`: a model in another form, for serving on CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

export_app = typer.Typer()

Format = Literal["bf16", "onnx"]


@export_app.command("export")
def export(
    model: Annotated[str, typer.Argument(help="A model folder, a models:/ URI, or a name on the Hub.")],
    out: Annotated[Path, typer.Argument(help="The folder to make; it must not exist.")],
    form: Annotated[
        Format, typer.Option("--format", help="bf16: a model folder of half the size; onnx: both towers for ONNX.")
    ],
) -> None:
    """Write a model in another form, checked against the model itself."""
    from psclap.models.fetch import fetch

    if form == "bf16":
        from psclap.export.bf16 import export_bf16 as write
    else:
        from psclap.export.onnx import export_onnx as write
    deviation = write(fetch(model), out)
    size = sum(path.stat().st_size for path in out.iterdir())
    typer.echo(
        f"{out}: {form}, {size:,} bytes; on check clips and prompts the smallest cosine with the model's embeddings "
        f"is {deviation.min_cosine:.6f}, the largest difference {deviation.max_difference:.1e}"
    )
