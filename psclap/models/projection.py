"""The projection that ends each tower (ParaSpeechCLAP, model)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Projection(nn.Module):
    """e1 = W1 x; LayerNorm(e1 + Dropout(W2 GELU(e1))); no biases. (B, d_in) -> (B, d_out)."""

    def __init__(self, d_in: int, d_out: int, dropout: float):
        super().__init__()
        self.linear1 = nn.Linear(d_in, d_out, bias=False)
        self.linear2 = nn.Linear(d_out, d_out, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(d_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e1 = self.linear1(x)
        return self.layer_norm(e1 + self.dropout(self.linear2(F.gelu(e1))))
