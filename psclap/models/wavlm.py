"""transformers' WavLM, computed faster: the same parameters under the same names, the same numbers.

`accelerate` changes the classes of a model's parts in place, so that loading, saving, gradient checkpointing and old
checkpoints go on as they are. What costs time in the originals, and what is done instead:

- convolutions over (B, C, T): over (B T, C) they are plain matrix products, as fast in bf16 as in fp32, and the layer
  norm needs no transposition
- the first convolution's group norm: a linear map's moments follow from its input's, so that both are one product
- the positional convolution, 128 taps wide: by FFT
- attention with weights averaged for nobody, and a position bias repeated for every clip: scaled-dot-product attention
  over the valid frames
- dropout, whose random numbers torch draws one by one on a CPU: 16 bits for each element, drawn in bulk

Axes: B clips, T samples or frames of a convolution, F frames, E hidden dimensions, H heads, D dimensions of a head,
C channels, K taps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.wavlm import modeling_wavlm as original


def accelerate(model: nn.Module) -> None:
    """Makes every WavLM within `model` compute by this module; other models are left as they are."""
    for wavlm in model.modules():
        if isinstance(wavlm, original.WavLMModel):
            for part in wavlm.modules():
                part.__class__ = _FASTER.get(type(part), type(part))


class Dropout(nn.Dropout):
    """As torch's, but for the random numbers on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or not _on_eager_cpu(input):
            return super().forward(input)
        return torch.where(_draw_kept(input.shape, self.p), input, 0) * (1 / (1 - self.p))


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
            mixed = F.scaled_dot_product_attention(query, key, value, bias, dropout).transpose(1, 2)
        return self.out_proj(mixed.flatten(2)), None, position_bias

    def _gate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # The original sums four outputs for each gate; summing their weights comes to the same.
        weight, bias = (
            parameter.unflatten(0, (2, 4)).sum(1)
            for parameter in (self.gru_rel_pos_linear.weight, self.gru_rel_pos_linear.bias)
        )
        logits = F.linear(hidden_states.unflatten(-1, (self.num_heads, self.head_dim)), weight, bias)
        gate_a, gate_b = logits.float().sigmoid().transpose(1, 2).split(1, dim=-1)
        return gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0

    def compute_bias(self, query_length: int, key_length: int) -> torch.Tensor:
        """The (H, F, F) bias, or a few keys more, so that its rows are aligned as the GPU's kernels want them."""
        key_length += -key_length % 16
        distance = torch.arange(1 - query_length, key_length, device=self.rel_attn_embed.weight.device)
        bias = self.rel_attn_embed(self._relative_positions_bucket(distance)).T
        return bias.unfold(1, key_length, 1).flip(1)  # row by row the same numbers, each row one further to the left


class _ClipwiseAttention(torch.autograd.Function):
    """Clip by clip, the valid frames only: scores of one clip stay in the CPU's cache."""

    @staticmethod
    def forward(ctx, query, key, value, gate, bias, frames, dropout):  # type: ignore[no-untyped-def]
        mixed = torch.zeros_like(query)
        weights, kept = [], []
        with torch.autocast("cpu", enabled=False):
            for clip, length in enumerate(frames):
                q, k, v = (states[clip, :length].transpose(0, 1) for states in (query, key, value))
                scores = ((q * q.shape[-1] ** -0.5) @ k.mT).float()
                scores.addcmul_(gate[clip, :, :length], bias[:, :length, :length])
                weights.append(scores.softmax(-1).to(q.dtype))
                kept += [_draw_kept(scores.shape, dropout)] if dropout else []
                used = _dropped(weights[clip], kept[clip], dropout) if dropout else weights[clip]
                mixed[clip, :length] = (used @ v).transpose(0, 1)
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
            inner = (g.float() * mixed[clip, :length].transpose(0, 1)).sum(-1, keepdim=True)
            d_scores = d_weights.float().sub_(inner).mul_(weights[clip])
            d_gate[clip, :, :length] = (d_scores * bias[:, :length, :length]).sum(-1, keepdim=True)
            d_bias[:, :length, :length].addcmul_(d_scores, gate[clip, :, :length])
            d_scores = (d_scores * q.shape[-1] ** -0.5).to(q.dtype)
            for d_states, of_clip in ((d_query, d_scores @ k), (d_key, d_scores.mT @ q), (d_value, used.mT @ g)):
                d_states[clip, :length] = of_clip.transpose(0, 1)
        return d_query, d_key, d_value, d_gate, d_bias, None, None


def _dropped(weights: torch.Tensor, kept: torch.Tensor, p: float) -> torch.Tensor:
    return torch.where(kept, weights, 0).mul_(1 / (1 - p))


class _GatedBias(torch.autograd.Function):
    """(B, H, F, 1) gate x (H, F, >= F) bias, and next to nothing where the (B, F) mask is False: (B, H, F, F)."""

    @staticmethod
    def forward(ctx, gate, bias, mask, dtype):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, bias)
        frames = gate.shape[2]
        gate, bias = gate.to(dtype), bias.to(dtype)
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


class PositionalConv(original.WavLMPositionalConvEmbedding):
    """The grouped convolution of K taps by FFT of overlapping blocks of 2 K frames, in float32."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, F, E) to (B, F, E)."""
        conv, frames = self.conv, hidden_states.shape[1]
        taps, groups, left = conv.kernel_size[0], conv.groups, conv.padding[0]
        block, hop = 2 * taps, taps + 1  # the outputs of a block that no wrap-around reaches
        num_blocks = -(-frames // hop)
        with torch.autocast(hidden_states.device.type, enabled=False):
            right = (num_blocks - 1) * hop + block - frames - left
            padded = F.pad(hidden_states.float().mT, (left, right)).unflatten(1, (groups, -1))
            spectrum = torch.fft.rfft(padded.unfold(3, block, hop))  # (B, groups, C in, blocks, frequencies)
            kernel = torch.fft.rfft(conv.weight.float(), block).conj().unflatten(0, (groups, -1))
            product = torch.einsum("bginf,goif->bgonf", spectrum, kernel)
            convolved = torch.fft.irfft(product, block)[..., :hop].flatten(3).flatten(1, 2)[..., :frames]
            convolved = (convolved + conv.bias[:, None]).mT
        return self.activation(convolved.to(hidden_states.dtype))


class FeatureEncoder(original.WavLMFeatureEncoder):
    """The convolutions over rows of C channels; see `_strided_conv`."""

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        """(B, T) waves to (B, C, F), in autocast's type where it is on."""
        device = input_values.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input_values.dtype
        first, *others = self.conv_layers
        if self._requires_grad and self.training and first.gradient_checkpointing:
            input_values = input_values.detach().requires_grad_()  # checkpoints need it
        frames = (input_values.shape[1] - first.conv.kernel_size[0]) // first.conv.stride[0] + 1
        rows = frames + -frames % math.prod([layer.conv.stride[0] for layer in others])
        with torch.autocast(device, enabled=False):
            hidden = first(input_values, frames=frames, rows=rows, dtype=dtype)
            for layer in others:
                hidden = layer(hidden)
                frames = (frames - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
        return hidden.unflatten(0, (len(input_values), -1))[:, :frames].transpose(1, 2)


def _first_conv(layer: Any, wave: torch.Tensor, frames: int, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """(B, T) waves to (B rows, C), with the group norm, over the first `frames` rows of a clip, where there is one."""
    conv, norm = layer.conv, getattr(layer, "layer_norm", None)
    taps, stride = conv.kernel_size[0], conv.stride[0]
    wave = F.pad(wave, (0, max(0, (rows - 1) * stride + taps - wave.shape[1])))
    windows = wave.unfold(1, taps, stride)[:, :rows]  # (B, rows, K)
    weight = conv.weight[:, 0]
    if not isinstance(norm, nn.GroupNorm):
        return F.linear(windows.to(dtype), weight.to(dtype), _to(conv.bias, dtype)).flatten(0, 1)
    # The moments of a linear map's outputs follow from its inputs'. In float64: a filter can take nearly all away.
    valid, weight = windows[:, :frames].double(), weight.double()
    mean_BK = valid.mean(1)
    covariance_BKK = valid.mT @ valid / frames - mean_BK[:, :, None] * mean_BK[:, None]
    variance_BC = torch.einsum("ck,bkl,cl->bc", weight, covariance_BKK, weight)
    scale_BC = norm.weight * (variance_BC + norm.eps).rsqrt()
    shift_BC = norm.bias - mean_BK @ weight.T * scale_BC
    affine = torch.cat([weight * scale_BC[..., None], shift_BC[..., None]], dim=-1).to(dtype)
    return (F.pad(windows, (0, 1), value=1.0).to(dtype) @ affine.mT).flatten(0, 1)


class _StridedConv(torch.autograd.Function):
    """A convolution of stride S and K taps, (M, S C) rows with a (C out, K C) weight, as a product for each S taps.

    The last rows of a clip take some of the next clip's. They are of incomplete windows, and not asked for.
    """

    @staticmethod
    def forward(ctx, rows, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(rows, weight)
        first, *others = weight.split(rows.shape[1], dim=1)
        out = F.linear(rows[:, : first.shape[1]], first, bias)
        for shift, part in enumerate(others, 1):
            out[:-shift].addmm_(rows[shift:, : part.shape[1]], part.T)
        return out

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        rows, weight = ctx.saved_tensors
        first, *others = weight.split(rows.shape[1], dim=1)
        d_rows = gradient @ first
        d_weight = [gradient.T @ rows[:, : first.shape[1]]]
        if first.shape[1] < rows.shape[1]:
            d_rows = F.pad(d_rows, (0, rows.shape[1] - first.shape[1]))
        for shift, part in enumerate(others, 1):
            d_rows[shift:, : part.shape[1]].addmm_(gradient[:-shift], part)
            d_weight.append(gradient[:-shift].T @ rows[shift:, : part.shape[1]])
        return d_rows, torch.cat(d_weight, dim=1), gradient.sum(0) if ctx.needs_input_grad[2] else None


def _convolve(layer: Any, hidden: torch.Tensor, **of_first: Any) -> torch.Tensor:
    """The first layer's convolution of (B, T) waves, or another one's of (M S, C) rows, to (M, C out)."""
    if of_first:
        return _first_conv(layer, hidden, **of_first)
    rows = hidden.view(-1, layer.conv.stride[0] * hidden.shape[1])
    weight = layer.conv.weight.mT.flatten(1)
    return _StridedConv.apply(rows, weight.to(hidden.dtype), _to(layer.conv.bias, hidden.dtype))


class ConvLayer(original.WavLMNoLayerNormConvLayer):
    """Convolution and activation."""

    def forward(self, hidden_states: torch.Tensor, **of_first: Any) -> torch.Tensor:
        """As `_convolve`."""
        return self.activation(_convolve(self, hidden_states, **of_first))


class GroupNormConvLayer(original.WavLMGroupNormConvLayer):
    """The first convolution of WavLM-base, with its norm over time."""

    forward = ConvLayer.forward


class LayerNormConvLayer(original.WavLMLayerNormConvLayer):
    """Convolution, norm over the channels, activation."""

    def forward(self, hidden_states: torch.Tensor, **of_first: Any) -> torch.Tensor:
        """As `_convolve`."""
        hidden_states, norm = _convolve(self, hidden_states, **of_first), self.layer_norm
        weight, bias = (_to(parameter, hidden_states.dtype) for parameter in (norm.weight, norm.bias))
        return self.activation(F.layer_norm(hidden_states, norm.normalized_shape, weight, bias, norm.eps))


def _to(parameter: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if parameter is None else parameter.to(dtype)


def _on_eager_cpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


_FASTER = {
    nn.Dropout: Dropout,
    original.WavLMAttention: Attention,
    original.WavLMFeatureEncoder: FeatureEncoder,
    original.WavLMGroupNormConvLayer: GroupNormConvLayer,
    original.WavLMLayerNormConvLayer: LayerNormConvLayer,
    original.WavLMNoLayerNormConvLayer: ConvLayer,
    original.WavLMPositionalConvEmbedding: PositionalConv,
}
