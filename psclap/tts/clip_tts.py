"""Clip-TTS: Speech-Clip's text encoder with a mel decoder (Clip-TTS, section 4, figure 3).

The paper names multi-speaker and multi-emotion training and no way to condition on them. Here a speaker's embedding
and the sum of the embeddings of its styles are added to the states of the text, before durations are predicted and
frames decoded: what is said stays apart from who says it and how, and Speech-Clip's text encoder is taken as it is.

Axes: B sentences, L symbols, F frames, M mel bins, S styles, D hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from psclap.tts.config import ClipTTSConfig
from psclap.tts.modules import frames_of, length_mask, regulate
from psclap.tts.speech_clip import SpeechPreTrainedModel, make_stack

_MAX_FRAMES_OF_SYMBOL = 400


class Voice(NamedTuple):
    """Who says it and how: (B,) numbers of speakers, (B, S) which styles, as 0 and 1."""

    speakers: torch.Tensor
    styles: torch.Tensor


class Spoken(NamedTuple):
    """What the model makes of sentences."""

    mel: torch.Tensor
    """(B, F, M) log-mels; 0 after a sentence's end."""
    durations: torch.Tensor
    """(B, L) int64 frames of each symbol; their sum is the sentence's length."""


class MelDecoder(nn.Module):
    """FFT blocks whose attention is masked, then a linear layer from the hidden size to mel bins."""

    def __init__(self, config: ClipTTSConfig):
        super().__init__()
        self.stack = make_stack(config, causal=config.decoder_attention == "causal")
        self.linear = nn.Linear(config.hidden_size, config.num_mel_bins)

    def forward(self, states_BFD: torch.Tensor, mask_BF: torch.Tensor) -> torch.Tensor:
        """(B, F, D) states to (B, F, M) normalised log-mels; 0 outside the mask."""
        return self.linear(self.stack(states_BFD, mask_BF)) * mask_BF[..., None]


class ClipTTSModel(SpeechPreTrainedModel):
    """The text encoder, the voices, and the mel decoder."""

    config_class = ClipTTSConfig

    def __init__(self, config: ClipTTSConfig):
        super().__init__(config)
        self.add_text_side(config)
        self.speakers = nn.Embedding(max(1, len(config.speakers)), config.hidden_size)
        self.styles = nn.Linear(max(1, len(config.styles)), config.hidden_size, bias=False)
        for weight in (self.speakers.weight, self.styles.weight):
            nn.init.normal_(weight, std=config.hidden_size**-0.5)
        self.decoder = MelDecoder(config)
        self.post_init()

    def encode(self, symbols_BL: torch.Tensor, mask_BL: torch.Tensor, voice: Voice) -> torch.Tensor:
        """(B, L, D) states of the text in these voices; 0 outside the mask."""
        condition_BD = self.speakers(voice.speakers) + self.styles(voice.styles)
        return (self.text_encoder(symbols_BL, mask_BL) + condition_BD[:, None]) * mask_BL[..., None]

    def decode(self, states_BLD: torch.Tensor, durations_BL: torch.Tensor, num_frames: int) -> torch.Tensor:
        """(B, F, M) normalised log-mels of `num_frames` frames; 0 after each sentence's end."""
        mask_BF = length_mask(durations_BL.sum(1), num_frames)
        return self.decoder(regulate(states_BLD, durations_BL, num_frames), mask_BF)

    @torch.inference_mode()
    def speak(
        self,
        symbols_BL: torch.Tensor,
        symbols_B: torch.Tensor,
        voice: Voice,
        *,
        pace_B: torch.Tensor | float = 1.0,
        noise_BL: torch.Tensor | None = None,
        durations_BL: torch.Tensor | None = None,
    ) -> Spoken:
        """Log-mels of sentences of `symbols_B` symbols.

        `pace_B`: how many times as fast as predicted. `noise_BL` is added to the logarithms of the durations, for
        variation. `durations_BL` takes the place of predicted ones.
        """
        mask_BL = length_mask(symbols_B, symbols_BL.shape[1])
        states_BLD = self.encode(symbols_BL, mask_BL, voice)
        if durations_BL is None:
            durations_BL = self._durations(states_BLD, mask_BL, pace_B, noise_BL)
        num_frames = int(durations_BL.sum(1).max())
        mel_BFM = self.decode(states_BLD, durations_BL, num_frames) * self.mel_deviation + self.mel_mean
        return Spoken(mel_BFM * length_mask(durations_BL.sum(1), num_frames)[..., None], durations_BL)

    @torch.inference_mode()
    def durations(self, symbols_BL: torch.Tensor, symbols_B: torch.Tensor, voice: Voice) -> torch.Tensor:
        """(B, L) int64 frames of each symbol, as `speak` predicts them; nothing is decoded."""
        mask_BL = length_mask(symbols_B, symbols_BL.shape[1])
        return self._durations(self.encode(symbols_BL, mask_BL, voice), mask_BL, 1.0, None)

    def _durations(
        self,
        states_BLD: torch.Tensor,
        mask_BL: torch.Tensor,
        pace_B: torch.Tensor | float,
        noise_BL: torch.Tensor | None,
    ) -> torch.Tensor:
        """Whole frames whose running sum stays within half a frame of the predicted one, so that pace is kept."""
        predicted_BL = self.text_encoder.duration_predictor(states_BLD, mask_BL)
        if noise_BL is not None:
            predicted_BL = predicted_BL + noise_BL
        pace_B1 = torch.as_tensor(pace_B, device=states_BLD.device).expand(len(states_BLD))[:, None]
        frames_BL = frames_of(predicted_BL).clamp(max=_MAX_FRAMES_OF_SYMBOL) / pace_B1 * mask_BL
        ends_BL = frames_BL.cumsum(1).round()
        ends_BL = ends_BL.clamp(min=1)  # a sentence has a frame
        return torch.diff(ends_BL, dim=1, prepend=torch.zeros_like(ends_BL[:, :1])).long()
