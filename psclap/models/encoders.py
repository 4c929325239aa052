"""Encoders of any kind: made new, and run so that padding never reaches a valid frame.

Axes: B clips, T steps of the input (samples, or frames of features), F frames, H hidden dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from psclap.models.logmel_conv import LogMelConvModel


def new_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder with fresh weights; of an encoder-decoder (Whisper, T5) the encoder."""
    if config.model_type == LogMelConvModel.config_class.model_type:  # in a folder's own code, no Auto class knows it
        return LogMelConvModel(config)
    return encoder_of(AutoModel.from_config(config))


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of an encoder-decoder, any other model itself."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def encode_speech(
    encoder: PreTrainedModel, inputs: torch.Tensor, mask_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Waves (B, T), or features, and their mask to (B, F, H) frames and the (B, F) mask of the valid ones."""
    if not leaves_padding_out(encoder):
        return _by_length(encoder, inputs, mask_BT)
    frames_BFH = _run(encoder, inputs, mask_BT)
    return frames_BFH, _frame_mask(encoder, frames_BFH.shape[1], mask_BT)


def _run(encoder: PreTrainedModel, inputs: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    arguments: dict[str, Any] = {encoder.main_input_name: inputs, "attention_mask": mask_BT}
    return encoder(**arguments).last_hidden_state


def _frame_mask(encoder: PreTrainedModel, num_frames: int, mask_BT: torch.Tensor) -> torch.Tensor:
    if hasattr(encoder, "_get_feature_vector_attention_mask"):  # transformers' encoders of waves have it
        return encoder._get_feature_vector_attention_mask(num_frames, mask_BT)
    return mask_BT[:, :: mask_BT.shape[1] // num_frames]


def leaves_padding_out(encoder: PreTrainedModel) -> bool:
    """Whether a frame is the same whatever padding follows the clip.

    Of encoders of waves that holds where the first convolution normalises over channels: wav2vec 2.0 base and HuBERT
    base normalise over time. Others, such as the conformer's, convolve over the padding; whoever is not known here is
    not trusted with it.
    """
    kind = encoder.config.model_type
    if kind in _MASKED_BY_CHANNEL_NORM:
        return encoder.config.feat_extract_norm == "layer"
    return kind in _MASKED


_MASKED = ("logmel_conv", "wav2vec2-bert", "wavlm", "whisper")  # WavLM by psclap.models.wavlm
_MASKED_BY_CHANNEL_NORM = ("hubert", "unispeech", "unispeech-sat", "wav2vec2")


def _by_length(
    encoder: PreTrainedModel, waves_BT: torch.Tensor, mask_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of equal length together, without padding."""
    lengths_B = mask_BT.sum(1)
    parts = []
    for length in lengths_B.unique().tolist():
        rows = (lengths_B == length).nonzero()[:, 0]
        parts.append((rows, _run(encoder, waves_BT[rows, :length], mask_BT[rows, :length])))
    longest = parts[-1][1]
    frames_BFH = longest.new_zeros(len(waves_BT), *longest.shape[1:])
    mask_BF = mask_BT.new_zeros(frames_BFH.shape[:2])
    for rows, of_length in parts:
        frames_BFH[rows, : of_length.shape[1]] = of_length
        mask_BF[rows, : of_length.shape[1]] = True
    return frames_BFH, mask_BF
