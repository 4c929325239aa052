"""Running an ONNX folder that `psclap export` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from psclap.models.processor import ParaSpeechCLAPProcessor

AUDIO, TEXT = "audio.onnx", "text.onnx"


class OnnxModel:
    """Speech and texts to L2-normalised float32 embeddings, (N, D), by onnxruntime on the CPU."""

    def __init__(self, folder: Path | str, threads: int = 0):
        """Opens both towers and the processor; `threads` 0 is what onnxruntime chooses, all cores."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        folder = Path(folder)
        self.audio, self.text = (
            onnxruntime.InferenceSession(folder / name, options, ["CPUExecutionProvider"]) for name in (AUDIO, TEXT)
        )
        self.processor = ParaSpeechCLAPProcessor.from_pretrained(folder)

    def embed_audio(self, waves: Sequence[np.ndarray]) -> np.ndarray:
        """(N, D) embeddings of one batch of mono float32 waves at the model's rate."""
        return self.run_audio(self.processor.waves(waves))

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) embeddings of one batch of texts."""
        return self.run_text(self.processor.texts(texts))

    def run_audio(self, inputs: Mapping[str, torch.Tensor]) -> np.ndarray:
        """As `embed_audio`, of what the processor made."""
        return self.audio.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]

    def run_text(self, inputs: Mapping[str, torch.Tensor]) -> np.ndarray:
        """As `embed_text`, of what the processor made."""
        return self.text.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
