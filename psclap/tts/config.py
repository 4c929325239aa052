"""The configurations of Speech-Clip and Clip-TTS, as their model folders hold them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class SpeechClipConfig(PreTrainedConfig):
    """The text encoder, the mel encoder and the aligner; the sizes are the paper's (section 5, model structure).

    `symbols` are the phonemes, stress and punctuation that have an embedding, in its order; `mel` is the definition
    of the spectrogram, as `psclap.tts.mel.MelConfig` has it.
    """

    model_type = "speech_clip"

    symbols: Any = ()
    languages: Any = ("en",)
    mel: Any = None
    num_mel_bins: int = 80
    hidden_size: int = 256
    num_blocks: int = 4
    num_heads: int = 2
    conv_size: int = 1024
    conv_kernels: Any = (9, 1)
    dropout: float = 0.1
    duration_kernel: int = 3
    duration_dropout: float = 0.5
    aligner_size: int = 80
    aligner_temperature: float = 0.05
    logit_scale_init_value: float = 1 / 0.07


class ClipTTSConfig(SpeechClipConfig):
    """Speech-Clip's text encoder and aligner, and the mel decoder.

    `speakers` and `styles` are the names that the model can be conditioned on, `style_sets` the styles that training
    clips had together. `decoder_attention` causal is the paper's masked attention; full lets a frame look ahead.
    """

    model_type = "clip_tts"

    speakers: Any = ()
    styles: Any = ()
    style_sets: Any = ((),)
    decoder_attention: str = "causal"
