"""`psclap export`: a model in another form, for serving on CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

export_app = typer.Typer()

Format = Literal["bf16", "onnx"]


@export_app.command("export")
def export(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    out: Annotated[Path, typer.Argument(help="The folder to make; it must not exist.")],
    form: Annotated[
        Format, typer.Option("--format", help="bf16: a model folder of half the size; onnx: both towers for ONNX.")
    ],
) -> None:
    """Write a model in another form, checked against the model itself."""
    if form == "bf16":
        from psclap.export.bf16 import export_bf16

        deviation = export_bf16(model, out)
    else:
        from psclap.export.onnx import export_onnx

        deviation = export_onnx(model, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    typer.echo(
        f"{out}: {form}, {size:,} bytes; on check clips and prompts the smallest cosine with the model's embeddings "
        f"is {deviation.min_cosine:.6f}, the largest difference {deviation.max_difference:.1e}"
    )
