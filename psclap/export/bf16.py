"""A model folder with bfloat16 weights: half as large, and faster where the processor multiplies bfloat16.

It is loaded and used as any other. The encoders compute under autocast; norms, projections and filters stay float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from psclap.export.check import (
    Deviation,
    audio_batches,
    embeddings,
    refuse_unless,
    text_batches,
)
from psclap.files import atomic_folder, refuse_existing, share_files
from psclap.models.build import load_model
from psclap.models.precision import to_bf16
from psclap.models.quiet import no_progress_bars

MIN_COSINE = 0.99


def export_bf16(folder: Path | str, out: Path | str) -> Deviation:
    """Makes `out` from a model folder; returns how far it is from float32 on check clips and prompts.

    Raises PsclapError where `out` exists, CheckpointError where a cosine with the model's own embeddings is below
    MIN_COSINE.
    """
    folder, out = Path(folder), Path(out)
    refuse_existing(out)
    model, processor = load_model(folder)
    expected = embeddings(model, audio_batches(processor), text_batches(processor))
    to_bf16(model)
    with atomic_folder(out) as partial, no_progress_bars():
        model.save_pretrained(partial)
        model.config.dtype = torch.bfloat16  # its first parameter's, by which transformers goes, is float32
        model.config.save_pretrained(partial)
        processor.save_pretrained(partial)
        share_files(partial)
        exported, processor = load_model(partial)
        found = embeddings(exported, audio_batches(processor), text_batches(processor))
        deviation = Deviation.of(np.concatenate(found), np.concatenate(expected))
        refuse_unless(deviation.min_cosine >= MIN_COSINE, str(out), deviation, f"a cosine of {MIN_COSINE}")
    return deviation
