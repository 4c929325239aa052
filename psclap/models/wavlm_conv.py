"""WavLM's convolutions, computed as matrix products: the same parameters under the same names, the same numbers.

`psclap.models.wavlm` puts these classes in the place of transformers'. Over (B, C, T), as they were written, torch's
convolutions reach half of what the machine can in bf16; over rows of C channels they are plain products, and the
layer norm over the channels needs no transposition.

Axes: B clips, T samples, F frames, E hidden dimensions, C channels, K taps, S the stride, N and M rows: the frames of
one clip after those of another.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.wavlm import modeling_wavlm as original


class PositionalConv(original.WavLMPositionalConvEmbedding):
    """The grouped convolution of K taps by FFT of overlapping blocks of 2 K frames, in float32 at least."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, F, E) to (B, F, E)."""
        conv, frames = self.conv, hidden_states.shape[1]
        taps, groups, left = conv.kernel_size[0], conv.groups, conv.padding[0]
        block, hop = 2 * taps, taps + 1  # the outputs of a block that no wrap-around reaches
        num_blocks = -(-frames // hop)
        with torch.autocast(hidden_states.device.type, enabled=False):
            right = (num_blocks - 1) * hop + block - frames - left
            padded = F.pad(full_precision(hidden_states).mT, (left, right)).unflatten(1, (groups, -1))
            spectrum = torch.fft.rfft(padded.unfold(3, block, hop))  # (B, groups, C in, blocks, frequencies)
            kernel = torch.fft.rfft(full_precision(conv.weight), block).conj().unflatten(0, (groups, -1))
            product = torch.einsum("bginf,goif->bgonf", spectrum, kernel)
            convolved = torch.fft.irfft(product, block)[..., :hop].flatten(3).flatten(1, 2)[..., :frames]
            convolved = (convolved + conv.bias[:, None]).mT
        return self.activation(convolved.to(hidden_states.dtype))


class FeatureEncoder(original.WavLMFeatureEncoder):
    """The convolutions of the wave, one layer after the other."""

    def forward(self, inputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
        """(B, T) waves, or they and their mask, to (B, C, F), in autocast's type where it is on."""
        input_values, mask_BT = inputs if isinstance(inputs, tuple) else (inputs, None)
        device = input_values.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input_values.dtype
        first, *others = self.conv_layers
        if self._requires_grad and self.training and first.gradient_checkpointing:
            input_values = input_values.detach().requires_grad_()  # checkpoints need it
        frames = (input_values.shape[1] - first.conv.kernel_size[0]) // first.conv.stride[0] + 1
        rows = frames + -frames % math.prod([layer.conv.stride[0] for layer in others])
        with torch.autocast(device, enabled=False):
            hidden = first(input_values, mask_BT=mask_BT, frames=frames, rows=rows, dtype=dtype)
            for layer in others:
                hidden = layer(hidden)
                frames = (frames - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
        return hidden.unflatten(0, (len(input_values), -1))[:, :frames].transpose(1, 2)


def _first_conv(
    layer: Any, wave: torch.Tensor, mask_BT: torch.Tensor | None, frames: int, rows: int, dtype: torch.dtype
) -> torch.Tensor:
    """(B, T) waves to (B rows, C), with the group norm where there is one.

    It is over the first `frames` rows of a clip, of those that lie in the clip: padding changes nothing, which in
    transformers' own it does.
    """
    conv, norm = layer.conv, getattr(layer, "layer_norm", None)
    taps, stride = conv.kernel_size[0], conv.stride[0]
    wave = F.pad(wave, (0, max(0, (rows - 1) * stride + taps - wave.shape[1])))
    windows = wave.unfold(1, taps, stride)[:, :rows]  # (B, rows, K)
    weight = conv.weight[:, 0]
    if not isinstance(norm, nn.GroupNorm):
        return F.linear(windows.to(dtype), weight.to(dtype), _to(conv.bias, dtype)).flatten(0, 1)
    # The moments of a linear map's outputs follow from its inputs'. In float64: a filter can take nearly all away.
    valid, weight = windows[:, :frames].double(), weight.double()
    count_B1 = torch.full((len(wave), 1), frames, device=wave.device)
    if mask_BT is not None:
        count_B1 = ((mask_BT.sum(1, keepdim=True) - taps) // stride + 1).clamp(min=1)
        valid = valid * (torch.arange(frames, device=wave.device) < count_B1)[..., None]
    mean_BK = valid.sum(1) / count_B1
    covariance_BKK = valid.mT @ valid / count_B1[..., None] - mean_BK[:, :, None] * mean_BK[:, None]
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


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in float64 where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
