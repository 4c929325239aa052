"""Both towers as ONNX files: `audio.onnx` from waves and their mask, `text.onnx` from token ids and theirs.

Any number of clips or texts and any length; the outputs are L2-normalised embeddings. The processor's files lie
beside them. Needs the packages of the extra `onnx`, which nothing else of psclap imports.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from psclap.errors import PsclapError
from psclap.export.check import (
    Deviation,
    Inputs,
    audio_batches,
    embeddings,
    refuse_unless,
    text_batches,
)
from psclap.export.plain import make_plain
from psclap.export.session import AUDIO, TEXT, OnnxModel
from psclap.files import atomic_folder, refuse_existing, share_files
from psclap.models.build import load_model
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.processor import ParaSpeechCLAPProcessor

MAX_DIFFERENCE = 1e-4
_OPSET = 20  # the first with GELU
_MAX_BYTES = 1_900_000_000  # a file of protobuf ends at 2 GiB; above this, weights lie beside it
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def check_installed() -> None:
    """Raises PsclapError where the extra is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise PsclapError(f"ONNX needs {', '.join(missing)}; install them with pip install 'psclap[onnx]'")


def export_onnx(folder: Path | str, out: Path | str) -> Deviation:
    """Makes the folder `out` from a model folder; returns how far it is from the model on check clips and prompts.

    Raises PsclapError where `out` exists, CheckpointError where a number of an embedding differs by more than
    MAX_DIFFERENCE, PsclapError for a speech encoder that cannot be exported.
    """
    check_installed()
    folder, out = Path(folder), Path(out)
    refuse_existing(out)
    model, processor = load_model(folder)
    expected = embeddings(model.float(), audio_batches(processor), text_batches(processor))
    make_plain(model)
    with atomic_folder(out) as partial:
        processor.save_pretrained(partial)
        _write(partial / AUDIO, model, "audio", audio_batches(processor))
        _write(partial / TEXT, model, "text", text_batches(processor))
        share_files(partial)
        deviation = Deviation.of(_embeddings(partial, processor), np.concatenate(expected))
        refuse_unless(deviation.max_difference <= MAX_DIFFERENCE, str(out), deviation, f"{MAX_DIFFERENCE:g}")
    return deviation


class _Tower(nn.Module):
    """One tower, whose two inputs come in the order of `names`."""

    def __init__(self, model: ParaSpeechCLAPModel, kind: str, names: list[str]):
        super().__init__()
        self.model, self.kind, self.names = model, kind, names

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return getattr(self.model, f"embed_{self.kind}")(**dict(zip(self.names, (values, mask), strict=True)))


def _write(path: Path, model: ParaSpeechCLAPModel, kind: str, batches: Iterator[Inputs]) -> None:
    # A batch of several rows: of what is 1 in an example, the exporter takes that it is always so.
    example = next(batch for batch in batches if all(len(tensor) > 1 for tensor in batch.values()))
    tower = _Tower(model, kind, list(example)).eval()
    size = sum(parameter.nbytes for parameter in getattr(model, f"{kind}_model").parameters())
    sizes = [_any_size(tensor, mask=list(example.values())[-1]) for tensor in example.values()]
    with _quietly():
        try:
            program = torch.onnx.export(
                tower,
                tuple(example.values()),
                dynamo=True,
                dynamic_shapes=tuple(sizes),
                input_names=list(example),
                output_names=[f"{kind}_embeds"],
                opset_version=_OPSET,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            encoder = getattr(model, f"{kind}_model").config.model_type
            reason = (str(error.__cause__).strip().splitlines() or ["no reason given"])[0]
            raise PsclapError(
                f"torch cannot write the encoder {encoder} as ONNX; export the model as bf16 ({reason})"
            ) from error
        assert program is not None
        program.save(path, external_data=size > _MAX_BYTES)


def _any_size(tensor: torch.Tensor, mask: torch.Tensor) -> dict[int, Any]:
    """Any number of rows, and of samples, frames or tokens; but for Whisper, whose features have one length."""
    rows = {0: torch.export.Dim.DYNAMIC}
    return rows if tensor.shape[-1] == mask.shape[1] and tensor.ndim > 2 else {**rows, 1: torch.export.Dim.DYNAMIC}


def _embeddings(folder: Path, processor: ParaSpeechCLAPProcessor) -> np.ndarray:
    exported = OnnxModel(folder)
    return np.concatenate(
        [
            *(exported.run_audio(batch) for batch in audio_batches(processor)),
            *(exported.run_text(batch) for batch in text_batches(processor)),
        ]
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of its own doings; whether they are right is checked on the result."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
