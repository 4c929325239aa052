"""The paper's model written out: transformers' own encoders, and the rest of it in numpy in float64.

One clip and one text at a time, so that there is no padding. It takes nothing of psclap's models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

Array = np.ndarray[Any, np.dtype[np.float64]]


def to_numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def normalised(clip: np.ndarray) -> torch.Tensor:
    """Zero mean and unit variance; (1, T)."""
    wave = (clip - clip.mean()) / math.sqrt(clip.var() + 1e-7)
    return torch.from_numpy(wave)[None].float()


def projected(x: Array, weights: Mapping[str, torch.Tensor]) -> Array:
    """e1 = W1 x; out = LayerNorm(e1 + W2 GELU(e1)), without dropout; then to unit length."""
    weight = {name: to_numpy(tensor) for name, tensor in weights.items()}
    e1 = weight["linear1.weight"] @ x
    gelu = np.array([e * 0.5 * (1 + math.erf(e / math.sqrt(2))) for e in e1])
    inner = e1 + weight["linear2.weight"] @ gelu
    normalised = (inner - inner.mean()) / np.sqrt(inner.var() + 1e-5)
    out = normalised * weight["layer_norm.weight"] + weight["layer_norm.bias"]
    return out / np.sqrt((out**2).sum())


@dataclass(frozen=True)
class Release:
    """A released model: its parts, and its `state_dict` under the published names."""

    wavlm: PreTrainedModel
    xlm_r: PreTrainedModel
    audio_projection: Mapping[str, torch.Tensor]
    text_projection: Mapping[str, torch.Tensor]
    log_logit_scale: torch.Tensor

    def state_dict(self) -> dict[str, torch.Tensor]:
        parts = {
            "audio_branch.base": self.wavlm.state_dict(),
            "text_branch.base": self.xlm_r.state_dict(),
            "audio_projection": self.audio_projection,
            "text_projection": self.text_projection,
        }
        named = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
        return named | {"log_logit_scale": self.log_logit_scale}

    @torch.no_grad()
    def speech_embedding(self, clip: np.ndarray) -> Array:
        """The encoder's last layer; the mean over its frames."""
        frames = self.wavlm.eval()(normalised(clip)).last_hidden_state[0]
        return projected(to_numpy(frames).mean(0), self.audio_projection)

    @torch.no_grad()
    def text_embedding(self, ids: list[int]) -> Array:
        """The encoder's last layer at the first token."""
        tokens = self.xlm_r.eval()(torch.tensor([ids])).last_hidden_state[0]
        return projected(to_numpy(tokens)[0], self.text_projection)


def random_projection(width: int, dim: int) -> dict[str, torch.Tensor]:
    """Weights far from what a fresh layer norm has."""
    return {
        "linear1.weight": torch.randn(dim, width) / math.sqrt(width),
        "linear2.weight": torch.randn(dim, dim) / math.sqrt(dim),
        "layer_norm.weight": 1 + torch.randn(dim) / 5,
        "layer_norm.bias": torch.randn(dim) / 5,
    }
