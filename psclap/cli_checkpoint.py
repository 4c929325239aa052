"""`psclap import-checkpoint`: the paper's released checkpoints as model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

checkpoint_app = typer.Typer()

Variant = Literal["intrinsic", "situational", "combined"]


@checkpoint_app.command("import-checkpoint")
def import_released(
    file: Annotated[Path, typer.Argument(help="A released .pth.tar file.")],
    out: Annotated[Path, typer.Argument(help="The model folder to make; it must not exist.")],
    variant: Annotated[Variant, typer.Option(help="Which of the paper's models it is.")],
    speech_encoder: Annotated[
        str | None,
        typer.Option(
            help="A name of the Hub, or a folder: its configuration is used, not its weights. Default: the published."
        ),
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="As --speech-encoder; its tokenizer is used too. Default: the published.")
    ] = None,
) -> None:
    """Turn a checkpoint that the paper's authors released into a model folder."""
    from psclap.models.import_checkpoint import SPEECH_ENCODER, TEXT_ENCODER, import_checkpoint

    imported = import_checkpoint(file, out, variant, speech_encoder or SPEECH_ENCODER, text_encoder or TEXT_ENCODER)
    typer.echo(f"{out}: {imported.num_tensors} tensors, {imported.num_parameters:,} parameters, in float32")
    for dtype, count in imported.converted.items():
        typer.echo(f"{count} of the tensors were {dtype}")
    for key in imported.left_out:
        typer.echo(f"left out, as nothing uses it: {key}")
