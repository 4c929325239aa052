"""transformers' WavLM, computed faster: the same parameters under the same names, the same numbers.

`accelerate` changes the classes of a model's parts in place, so that loading, saving, gradient checkpointing and old
checkpoints go on as they are. What costs time in the originals, and what is done instead:

- convolutions: `psclap.models.wavlm_conv`
- attention whose weights are averaged for nobody and whose position bias is repeated for every clip: scaled-dot-product
  attention; on a CPU clip by clip, over the valid frames
- dropout, for which torch draws one number after the other on a CPU: 16 random bits for each element, drawn in bulk

Axes: B clips, F frames, E hidden dimensions, H heads, D dimensions of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.wavlm import modeling_wavlm as original

from psclap.models.wavlm_conv import (
    ConvLayer,
    FeatureEncoder,
    GroupNormConvLayer,
    LayerNormConvLayer,
    PositionalConv,
    full_precision,
)


def accelerate(model: nn.Module) -> None:
    """Makes every WavLM within `model` compute by this module; other models are left as they are."""
    for wavlm in model.modules():
        if isinstance(wavlm, original.WavLMModel):
            for part in wavlm.modules():
                part.__class__ = FASTER.get(type(part), type(part))


class Dropout(nn.Dropout):
    """As torch's, but for the random numbers on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or not _on_eager_cpu(input):
            return super().forward(input)
        return torch.where(_draw_kept(input.shape, self.p), input, 0) * (1 / (1 - self.p))


class WavLM(original.WavLMModel):
    """The whole, whose norm over time (WavLM-base) learns which samples are padding."""

    def forward(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """As transformers', but that padding does not change what the frames of a clip become."""
        return super().forward((input_values, attention_mask), attention_mask, **kwargs)


def _draw_kept(shape: torch.Size, p: float) -> torch.Tensor:
    """True with probability 1 - p, rounded to a multiple of 2^-16."""
    count = math.prod(shape)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return (words.view(torch.int16)[:count] >= round(p * 2**16) - 2**15).view(shape)


class Attention(original.WavLMAttention):
    """Attention whose scores are q k / sqrt(D) + gate x position bias. The mask must be one of padding at the end."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        index: int = 0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None, torch.Tensor]:
        """(B, F, E) states, (B, F) mask, True where valid, and the first layer's (H, F, >= F) position bias.

        Returns states, no weights, and the bias. What a frame of padding becomes is not defined, but finite.
        """
        if position_bias is None:
            position_bias = self.compute_bias(hidden_states.shape[1], hidden_states.shape[1])
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        gate_BHF1 = self._gate(hidden_states)
        dropout = self.dropout if self.training else 0.0
        if _on_eager_cpu(hidden_states):
            frames = [hidden_states.shape[1]] * len(hidden_states)
            if attention_mask is not None:
                frames = attention_mask.sum(1).tolist()
            mixed = _ClipwiseAttention.apply(query, key, value, gate_BHF1, position_bias, frames, dropout)
        else:
            bias = _GatedBias.apply(gate_BHF1, position_bias, attention_mask, query.dtype)
            query, key, value = (states.transpose(1, 2) for states in (query, key, value))
            with sdpa_kernel(_WITH_BIAS_GRADIENT):
                mixed = F.scaled_dot_product_attention(query, key, value, bias, dropout).transpose(1, 2)
        return self.out_proj(mixed.flatten(2)), None, position_bias

    def _gate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # The original sums four outputs for each gate; summing their weights comes to the same.
        weight, bias = (
            parameter.unflatten(0, (2, 4)).sum(1)
            for parameter in (self.gru_rel_pos_linear.weight, self.gru_rel_pos_linear.bias)
        )
        logits = F.linear(hidden_states.unflatten(-1, (self.num_heads, self.head_dim)), weight, bias)
        gate_a, gate_b = full_precision(logits).sigmoid().transpose(1, 2).split(1, dim=-1)
        return gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0

    def compute_bias(self, query_length: int, key_length: int) -> torch.Tensor:
        """The (H, F, F) bias, or a few keys more, so that its rows are aligned as the GPU's kernels want them."""
        key_length += -key_length % 16
        distance = torch.arange(1 - query_length, key_length, device=self.rel_attn_embed.weight.device)
        bias = self.rel_attn_embed(self._relative_positions_bucket(distance)).T
        # Row by row the same numbers, each row one further to the left.
        return bias.unfold(1, key_length, 1).flip(1).contiguous()


class _ClipwiseAttention(torch.autograd.Function):
    """Clip by clip, the valid frames only: scores of one clip stay in the CPU's cache."""

    @staticmethod
    def forward(ctx, query, key, value, gate, bias, frames, dropout):  # type: ignore[no-untyped-def]
        mixed = torch.zeros_like(query)
        weights, kept = [], []
        with torch.autocast("cpu", enabled=False):
            for clip, length in enumerate(frames):
                q, k, v = (states[clip, :length].transpose(0, 1) for states in (query, key, value))
                if not dropout and not any(ctx.needs_input_grad):
                    _attend(q, k, v, gate[clip, :, :length], bias, mixed[clip, :length].transpose(0, 1))
                    continue
                scores = full_precision((q * q.shape[-1] ** -0.5) @ k.mT)
                scores.addcmul_(gate[clip, :, :length], bias[:, :length, :length])
                used = of_clip = scores.softmax(-1).to(q.dtype)
                if dropout:
                    kept.append(_draw_kept(scores.shape, dropout))
                    used = _dropped(of_clip, kept[-1], dropout)
                mixed[clip, :length] = (used @ v).transpose(0, 1)
                if any(ctx.needs_input_grad):
                    weights.append(of_clip)
        ctx.save_for_backward(query, key, value, gate, bias, mixed, *weights, *kept)
        ctx.frames, ctx.dropout = frames, dropout
        return mixed

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        query, key, value, gate, bias, mixed, *rest = ctx.saved_tensors
        weights, kept = rest[: len(query)], rest[len(query) :]
        d_query, d_key, d_value = (torch.zeros_like(states) for states in (query, key, value))
        d_gate, d_bias = torch.zeros_like(gate), torch.zeros_like(bias)
        for clip, length in enumerate(ctx.frames):
            q, k, v, g = (states[clip, :length].transpose(0, 1) for states in (query, key, value, gradient))
            d_weights, used = g @ v.mT, weights[clip]
            if kept:
                d_weights, used = (_dropped(scores, kept[clip], ctx.dropout) for scores in (d_weights, used))
            # Softmax: d_scores = weights (d_weights - sum of weights d_weights), and that sum is g . mixed.
            inner = (full_precision(g) * mixed[clip, :length].transpose(0, 1)).sum(-1, keepdim=True)
            d_scores = full_precision(d_weights).sub_(inner).mul_(weights[clip])
            d_gate[clip, :, :length] = (d_scores * bias[:, :length, :length]).sum(-1, keepdim=True)
            d_bias[:, :length, :length].addcmul_(d_scores, gate[clip, :, :length])
            d_scores = (d_scores * q.shape[-1] ** -0.5).to(q.dtype)
            for d_states, of_clip in ((d_query, d_scores @ k), (d_key, d_scores.mT @ q), (d_value, used.mT @ g)):
                d_states[clip, :length] = of_clip.transpose(0, 1)
        return d_query, d_key, d_value, d_gate, d_bias, None, None


def _attend(q, k, v, gate, bias, mixed):  # type: ignore[no-untyped-def]
    """Writes one clip's attention to `mixed`, in tiles of heads and queries whose scores stay in a core's own cache.

    All are (H, F, D), but the (H, F, 1) gate and the (H, >= F, >= F) bias.
    """
    heads, length, width = q.shape
    for h in (slice(start, start + _TILE_HEADS) for start in range(0, heads, _TILE_HEADS)):
        keys, values = k[h].mT, v[h]
        for f in (slice(start, start + _TILE_QUERIES) for start in range(0, length, _TILE_QUERIES)):
            scores = full_precision((q[h, f] * width**-0.5) @ keys)
            scores.addcmul_(gate[h, f], bias[h, :length, :length][:, f])
            mixed[h, f] = scores.softmax(-1).to(q.dtype) @ values


_TILE_HEADS, _TILE_QUERIES = 2, 256


def _dropped(weights: torch.Tensor, kept: torch.Tensor, p: float) -> torch.Tensor:
    return torch.where(kept, weights, 0).mul_(1 / (1 - p))


class _GatedBias(torch.autograd.Function):
    """(B, H, F, 1) gate x (H, F, >= F) bias, and next to nothing where the (B, F) mask is False: (B, H, F, F)."""

    @staticmethod
    def forward(ctx, gate, bias, mask, dtype):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, bias)
        frames = gate.shape[2]
        gate, bias = gate.to(dtype).contiguous(), bias.to(dtype)
        padding = torch.zeros((), dtype=dtype, device=gate.device)
        if mask is not None:
            padding = torch.zeros(len(mask), bias.shape[2], dtype=dtype, device=gate.device)
            padding[:, :frames].masked_fill_(~mask, torch.finfo(dtype).min)
            padding = padding[:, None, None]
        return torch.addcmul(padding, gate, bias)[..., :frames]

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        gate, bias = ctx.saved_tensors
        # Batched matrix products: no (B, H, F, F) product is written out before it is summed.
        d_gate = torch.einsum("bhij,hij->bhi", gradient, bias[..., : gradient.shape[-1]].to(gradient.dtype))
        d_bias = torch.zeros_like(bias)
        d_bias[..., : gradient.shape[-1]] = torch.einsum("bhij,bhi->hij", gradient, gate[..., 0].to(gradient.dtype))
        return d_gate[..., None].to(gate.dtype), d_bias, None, None


def _on_eager_cpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


# The other kernels of scaled-dot-product attention give the bias no gradient.
_WITH_BIAS_GRADIENT = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

FASTER = {
    nn.Dropout: Dropout,
    original.WavLMAttention: Attention,
    original.WavLMModel: WavLM,
    original.WavLMFeatureEncoder: FeatureEncoder,
    original.WavLMGroupNormConvLayer: GroupNormConvLayer,
    original.WavLMLayerNormConvLayer: LayerNormConvLayer,
    original.WavLMNoLayerNormConvLayer: ConvLayer,
    original.WavLMPositionalConvEmbedding: PositionalConv,
}
