"""The parts that the encoders and the decoder are made of (Clip-TTS, sections 4 and 5; figures 2 and 3).

Axes: B sentences, T positions (symbols or frames), L symbols, F frames, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def length_mask(lengths_B: torch.Tensor, size: int) -> torch.Tensor:
    """(B, size) bool: which positions are within the lengths.

    >>> length_mask(torch.tensor([1, 3]), 3).tolist()
    [[True, False, False], [True, True, True]]
    """
    return torch.arange(size, device=lengths_B.device) < lengths_B[:, None]


def sinusoids(count: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """(count, size) positional encodings (Vaswani et al. 2017, section 3.5), the sines in the first half."""
    rates = torch.exp(torch.arange(0, size, 2, device=like.device) * (-math.log(10000.0) / size))
    angles = torch.arange(count, device=like.device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :size].to(like.dtype)


class FFTBlock(nn.Module):
    """Self-attention, then two convolutions with ReLU; each is added to its input and normalised."""

    def __init__(self, size: int, num_heads: int, conv_size: int, kernels: Sequence[int], dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_projection = nn.Linear(size, 3 * size)
        self.out_projection = nn.Linear(size, size)
        self.attention_norm = nn.LayerNorm(size)
        first, second = kernels
        self.conv1 = nn.Conv1d(size, conv_size, first, padding=first // 2)
        self.conv2 = nn.Conv1d(conv_size, size, second, padding=second // 2)
        self.conv_norm = nn.LayerNorm(size)

    def forward(self, hidden_BTD: torch.Tensor, mask_BT: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
        """Positions outside the mask are 0 in what is returned, so that convolutions see the same at every padding.

        `allowed` says which positions may be attended to, (B, 1, 1, T); None: the own and all before it.
        """
        valid_BT1 = mask_BT[..., None]
        attended = self._drop(self._attend(hidden_BTD, allowed))
        hidden_BTD = self.attention_norm(hidden_BTD + attended) * valid_BT1
        convolved = self.conv2(F.relu(self.conv1(hidden_BTD.transpose(1, 2)))).transpose(1, 2)
        return self.conv_norm(hidden_BTD + self._drop(convolved)) * valid_BT1

    def _attend(self, hidden_BTD: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
        heads = self.in_projection(hidden_BTD).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = (part.transpose(1, 2) for part in heads.unbind(2))
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=allowed,
            is_causal=allowed is None,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_projection(attended.transpose(1, 2).flatten(2))

    def _drop(self, values: torch.Tensor) -> torch.Tensor:
        return F.dropout(values, self.dropout, self.training)


class FFTStack(nn.Module):
    """Feed-forward Transformer blocks over positional encodings; `causal` masks what comes later."""

    def __init__(
        self,
        num_blocks: int,
        size: int,
        num_heads: int,
        conv_size: int,
        kernels: Sequence[int],
        dropout: float,
        causal: bool = False,
    ):
        super().__init__()
        self.causal = causal
        self.blocks = nn.ModuleList(FFTBlock(size, num_heads, conv_size, kernels, dropout) for _ in range(num_blocks))

    def forward(self, hidden_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """(B, T, D) to (B, T, D); 0 outside the mask."""
        length, size = hidden_BTD.shape[1:]
        # Padding comes last: where no position looks ahead, none that counts sees it.
        allowed = None if self.causal else mask_BT[:, None, None, :]
        hidden_BTD = (hidden_BTD + sinusoids(length, size, hidden_BTD)) * mask_BT[..., None]
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD, mask_BT, allowed)
        return hidden_BTD


class DurationPredictor(nn.Module):
    """FastSpeech 2's: twice convolution, ReLU, layer norm and dropout, then the logarithm of 1 + the frames."""

    def __init__(self, size: int, kernel: int, dropout: float):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(size, size, kernel, padding=kernel // 2) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(size, 1)

    def forward(self, hidden_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """(B, L) log(1 + frames) of each symbol; 0 outside the mask."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            convolved = F.relu(conv((hidden_BLD * mask_BL[..., None]).transpose(1, 2))).transpose(1, 2)
            hidden_BLD = self.dropout(norm(convolved))
        return self.out(hidden_BLD).squeeze(-1) * mask_BL


def frames_of(log_durations: torch.Tensor) -> torch.Tensor:
    """The frames, not whole, that a duration predictor's output stands for."""
    return log_durations.expm1().clamp(min=0)


def symbol_at(durations_BL: torch.Tensor, num_frames: int) -> torch.Tensor:
    """(B, F) the number of the symbol at each frame; L after the end.

    >>> symbol_at(torch.tensor([[2, 1]]), 4).tolist()
    [[0, 0, 1, 2]]
    """
    frames = torch.arange(num_frames, device=durations_BL.device).expand(len(durations_BL), -1).contiguous()
    return torch.searchsorted(durations_BL.cumsum(1), frames, right=True)


def regulate(hidden_BLD: torch.Tensor, durations_BL: torch.Tensor, num_frames: int) -> torch.Tensor:
    """(B, F, D): every symbol's state as often as its duration says; 0 after the last (FastSpeech, section 3.2).

    >>> regulate(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[2, 1]]), 4).flatten().tolist()
    [1.0, 1.0, 2.0, 0.0]
    """
    symbol_BF = symbol_at(durations_BL, num_frames)
    spoken_BF = symbol_BF < hidden_BLD.shape[1]
    symbol_BF = symbol_BF.clamp(max=hidden_BLD.shape[1] - 1)
    states = hidden_BLD.gather(1, symbol_BF[..., None].expand(-1, -1, hidden_BLD.shape[2]))
    return states * spoken_BF[..., None]


class TextEncoder(nn.Module):
    """Phoneme embedding, Transformer encoder, duration predictor (figure 2a). Symbol number 0 is padding."""

    def __init__(
        self, num_symbols: int, stack: FFTStack, size: int, duration_kernel: int, duration_dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_symbols, size, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=size**-0.5)
        self.scale = math.sqrt(size)
        self.stack = stack
        self.duration_predictor = DurationPredictor(size, duration_kernel, duration_dropout)

    def forward(self, symbols_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """(B, L) numbers of symbols to (B, L, D) states."""
        return self.stack(self.scale * self.embedding(symbols_BL), mask_BL)
