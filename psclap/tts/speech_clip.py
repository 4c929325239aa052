"""Speech-Clip: a sentence's phonemes and its mel spectrogram in one space (Clip-TTS, section 4, figures 1 and 2).

Axes: B sentences, L symbols, F frames, M mel bins, D hidden size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from psclap.tts.aligner import Aligner, monotonic_durations
from psclap.tts.config import SpeechClipConfig
from psclap.tts.modules import FFTStack, TextEncoder, frames_of, length_mask

_MAX_LOGIT_SCALE = 100.0


class MelEncoder(nn.Module):
    """A linear layer from mel bins to the hidden size, then FFT blocks (figure 2d)."""

    def __init__(self, config: SpeechClipConfig):
        super().__init__()
        self.linear = nn.Linear(config.num_mel_bins, config.hidden_size)
        self.stack = make_stack(config)

    def forward(self, mel_BFM: torch.Tensor, mask_BF: torch.Tensor) -> torch.Tensor:
        """(B, F, M) normalised log-mels to (B, F, D) states; 0 outside the mask."""
        return self.stack(self.linear(mel_BFM), mask_BF)


class SpeechPreTrainedModel(PreTrainedModel):
    """What both systems share: the text encoder, the aligner, and mels of mean 0 and deviation 1 by bin."""

    config_class = SpeechClipConfig
    base_model_prefix = ""
    main_input_name = "symbols"

    text_encoder: TextEncoder
    aligner: Aligner
    mel_mean: torch.Tensor
    mel_deviation: torch.Tensor

    def _init_weights(self, module: nn.Module) -> None:
        return  # each part keeps torch's own initialisation

    def add_text_side(self, config: SpeechClipConfig) -> None:
        """Makes the parts that Clip-TTS takes over from Speech-Clip."""
        self.text_encoder = TextEncoder(
            1 + len(config.symbols),
            make_stack(config),
            config.hidden_size,
            config.duration_kernel,
            config.duration_dropout,
        )
        self.aligner = Aligner(config.hidden_size, config.num_mel_bins, config.aligner_size, config.aligner_temperature)
        self.register_buffer("mel_mean", torch.zeros(config.num_mel_bins))
        self.register_buffer("mel_deviation", torch.ones(config.num_mel_bins))

    def set_mel_statistics(self, mean_M: torch.Tensor, deviation_M: torch.Tensor) -> None:
        """The mean and deviation of the training's log-mels, by bin."""
        self.mel_mean.copy_(mean_M)
        self.mel_deviation.copy_(deviation_M)

    def normalise(self, mel_BFM: torch.Tensor) -> torch.Tensor:
        """Log-mels as the model sees them."""
        return (mel_BFM - self.mel_mean) / self.mel_deviation

    def log_alignment(
        self, symbols_BL: torch.Tensor, mask_BL: torch.Tensor, mel_BFM: torch.Tensor, frames_B: torch.Tensor
    ) -> torch.Tensor:
        """(B, F, L) how likely each normalised frame is each symbol's; see `Aligner`."""
        embedded = self.text_encoder.embedding(symbols_BL)
        return self.aligner(embedded, mask_BL, mel_BFM, frames_B)

    @torch.no_grad()
    def align(
        self, symbols_BL: torch.Tensor, symbols_B: torch.Tensor, mel_BFM: torch.Tensor, frames_B: torch.Tensor
    ) -> torch.Tensor:
        """(B, L) int64 frames of each symbol in sentences of `symbols_B` symbols and `frames_B` frames of log-mels."""
        mask_BL = length_mask(symbols_B, symbols_BL.shape[1])
        mel_BFM = self.normalise(mel_BFM) * length_mask(frames_B, mel_BFM.shape[1])[..., None]
        return monotonic_durations(self.log_alignment(symbols_BL, mask_BL, mel_BFM, frames_B), frames_B, symbols_B)


class SpeechClipModel(SpeechPreTrainedModel):
    """The text encoder and the mel encoder."""

    def __init__(self, config: SpeechClipConfig):
        super().__init__(config)
        self.add_text_side(config)
        self.mel_encoder = MelEncoder(config)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale_init_value)))
        self.post_init()

    @property
    def logit_scale(self) -> torch.Tensor:
        """The factor of the cosines, a scalar."""
        return self.log_logit_scale.exp()

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keeps the logit scale in [1, 100]."""
        self.log_logit_scale.clamp_(0.0, math.log(_MAX_LOGIT_SCALE))

    def embed(
        self, symbols_BL: torch.Tensor, symbols_B: torch.Tensor, mel_BFM: torch.Tensor, frames_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, D) L2-normalised embeddings of texts and of log-mels, each without a look at the other.

        The text is as long as its own duration predictor says.
        """
        mask_BL = length_mask(symbols_B, symbols_BL.shape[1])
        states_BLD = self.text_encoder(symbols_BL, mask_BL)
        durations_BL = frames_of(self.text_encoder.duration_predictor(states_BLD, mask_BL)) * mask_BL
        mask_BF = length_mask(frames_B, mel_BFM.shape[1])
        frames_BFD = self.mel_encoder(self.normalise(mel_BFM), mask_BF)
        # The mean over regulated frames is the mean over symbols, each weighed by its frames.
        return pooled(states_BLD, durations_BL), pooled(frames_BFD, mask_BF)


def pooled(states_BTD: torch.Tensor, weights_BT: torch.Tensor) -> torch.Tensor:
    """(B, D) means by weight, L2-normalised."""
    weights_BT1 = weights_BT[..., None].to(states_BTD.dtype)
    return F.normalize((states_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1e-6), dim=-1)


def make_stack(config: SpeechClipConfig, causal: bool = False) -> FFTStack:
    """The FFT blocks of a configuration."""
    return FFTStack(
        config.num_blocks,
        config.hidden_size,
        config.num_heads,
        config.conv_size,
        config.conv_kernels,
        config.dropout,
        causal,
    )
