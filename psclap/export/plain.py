"""The model's computation in operations that ONNX has: no autograd functions, no FFT, no loops over clips.

The weights and their names stay as they are. Axes: B clips, T samples, F frames, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from transformers.models.wavlm import modeling_wavlm as original

from psclap.errors import PsclapError
from psclap.models import wavlm
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.encoders import leaves_padding_out
from psclap.models.logmel_conv import LogMelConvModel


def make_plain(model: ParaSpeechCLAPModel) -> None:
    """Changes the classes of the speech encoder's parts in place. Raises PsclapError for one that cannot be exported.

    WavLM goes back to transformers' own classes, but for its norm over time, which stays masked.
    """
    encoder = model.audio_model
    if not leaves_padding_out(encoder):
        raise PsclapError(
            f"the speech encoder {encoder.config.model_type} runs clips of one length at a time, which ONNX cannot; "
            "export the model as bf16"
        )
    for part in model.modules():
        part.__class__ = _PLAIN.get(type(part), type(part))
        if parametrize.is_parametrized(part, "weight"):  # weight norm: one weight instead of its two factors
            parametrize.remove_parametrizations(part, "weight")


class _LogMel(LogMelConvModel):
    """The windowed Fourier transform as a convolution with cosines and sines."""

    def _log_mel(self, wave_BT: torch.Tensor) -> torch.Tensor:
        length = self.config.window_length
        # Padded always, not where a clip is too short for a window: what is beyond the clips is masked.
        wave_B1T = F.pad(wave_BT, (0, length))[:, None]
        real, imaginary = F.conv1d(wave_B1T, self._waves(length), stride=self.config.hop_length).chunk(2, dim=1)
        return torch.log((real.square() + imaginary.square()).mT @ self.mel_filters + 1e-4).mT

    def _waves(self, length: int) -> torch.Tensor:
        time, frequency = torch.arange(length), torch.arange(length // 2 + 1)
        angle = (time * frequency[:, None] % length).double() * (2 * torch.pi / length)
        return (torch.cat([angle.cos(), angle.sin()]) * self.window.double()).float()[:, None]


class _FeatureEncoder(original.WavLMFeatureEncoder):
    """transformers' convolutions; the norm over time, where there is one, is told which samples are padding."""

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        wave_BT, mask_BT = inputs
        hidden = wave_BT[:, None]
        for layer in self.conv_layers:
            hidden = layer(hidden, mask_BT) if isinstance(layer, _GroupNormConvLayer) else layer(hidden)
        return hidden


class _GroupNormConvLayer(original.WavLMGroupNormConvLayer):
    def forward(self, hidden_states: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        conv, norm = self.conv, self.layer_norm
        hidden = conv(hidden_states)
        count_B1 = ((mask_BT.sum(1, keepdim=True) - conv.kernel_size[0]) // conv.stride[0] + 1).clamp(min=1)
        valid_B1F = (torch.arange(hidden.shape[2], device=hidden.device) < count_B1)[:, None]
        count_B11 = count_B1[:, None].to(hidden.dtype)
        mean_BC1 = (hidden * valid_B1F).sum(2, keepdim=True) / count_B11
        centred = hidden - mean_BC1
        variance_BC1 = (centred.square() * valid_B1F).sum(2, keepdim=True) / count_B11
        normalised = centred * (variance_BC1 + norm.eps).rsqrt()
        return self.activation(normalised * norm.weight[:, None] + norm.bias[:, None])


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    **{faster: theirs for theirs, faster in wavlm.FASTER.items() if faster is not wavlm.WavLM},
    wavlm.FeatureEncoder: _FeatureEncoder,
    wavlm.GroupNormConvLayer: _GroupNormConvLayer,
    LogMelConvModel: _LogMel,
}
