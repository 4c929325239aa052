"""ParaSpeechCLAP: a speech tower and a text tower that end in one space (paper, figure 1).

Axes: B clips, N texts, T samples, L tokens, D embedding dimensions.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from psclap.errors import PsclapError
from psclap.losses.contrastive import info_nce
from psclap.losses.sigmoid import sigmoid
from psclap.model_config import ParaSpeechCLAPConfig
from psclap.models.encoders import encode_speech, new_encoder
from psclap.models.pooling import pool, pooled_size
from psclap.models.projection import Projection

MAX_LOGIT_SCALE = 100.0


@dataclass
class ParaSpeechCLAPOutput(ModelOutput):
    """Names as in transformers' CLAP; embeddings are L2-normalised, logits scaled by the logit scale."""

    loss: torch.Tensor | None = None
    logits_per_audio: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None


class ParaSpeechCLAPModel(PreTrainedModel):
    """Speech encoder + projection, text encoder + projection, a learnt logit scale, and its bias where there is one."""

    config_class = ParaSpeechCLAPConfig
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # the encoders say for themselves
    # In a folder of bfloat16 weights: little memory, and what the embeddings depend on most.
    _keep_in_fp32_modules_strict = ("norm", "Norm", "_projection.l", "logit_", "mel_filters", "window")

    def __init__(
        self,
        config: ParaSpeechCLAPConfig,
        audio_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        """Encoders that are not given are made from their configurations, with fresh weights."""
        super().__init__(config)
        audio_width = pooled_size(config.audio_config.hidden_size, config.audio_pooling)
        text_width = pooled_size(config.text_config.hidden_size, config.text_pooling)
        self.audio_model = audio_model or new_encoder(config.audio_config)
        self.text_model = text_model or new_encoder(config.text_config)
        self.audio_projection = Projection(audio_width, config.projection_dim, config.projection_dropout)
        self.text_projection = Projection(text_width, config.projection_dim, config.projection_dropout)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale_init_value)))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        if config.audio_config.model_type == "wavlm":
            # Imported for WavLM alone: others need not wait for it, and AutoModel may ask for us while WavLM is loaded.
            from psclap.models.wavlm import accelerate

            accelerate(self.audio_model)
        # What the objective never reaches would stop DistributedDataParallel: the text model's own pooler,
        # and WavLM's mask embedding, which only SpecAugment uses.
        if getattr(self.text_model, "pooler", None) is not None:
            self.text_model.pooler = None
        if hasattr(self.audio_model, "masked_spec_embed"):
            self.audio_model.masked_spec_embed.requires_grad_(False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # The encoders initialise themselves; the projections keep torch's initialisation, as the release does.
        return

    @property
    def logit_scale(self) -> torch.Tensor:
        """The factor of the cosines, a scalar."""
        return self.log_logit_scale.exp()

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keeps the logit scale in [1, MAX_LOGIT_SCALE]; to be called after every optimiser step."""
        self.log_logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))

    def embed_audio(
        self,
        input_values: torch.Tensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, T) waves, or features where the encoder takes those, and their mask to (B, D), L2-normalised.

        Waves without a mask are whole; features need theirs. Raises PsclapError where either is missing.
        """
        inputs, mask = input_features if input_values is None else input_values, audio_attention_mask
        if inputs is None or (mask is None and inputs.ndim > 2):
            raise PsclapError("embed_audio needs the processor's input_values, or input_features with their mask")
        if mask is None:
            mask = torch.ones_like(inputs, dtype=torch.bool)
        with _precision_of(self.audio_model):
            frames_BFH, mask_BF = encode_speech(self.audio_model, inputs, mask)
        return _embed(frames_BFH, mask_BF, self.config.audio_pooling, self.audio_projection)

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(N, L) token ids and their mask to (N, D) text embeddings, L2-normalised."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask
        if _takes_a_whole_mask(self.text_model.config):
            # transformers looks whether a 2-D mask is all ones, and waits for the GPU; a 4-D one it takes as it is.
            mask = attention_mask[:, None, None].bool()
        with _precision_of(self.text_model):
            tokens = self.text_model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return _embed(tokens, attention_mask, self.config.text_pooling, self.text_projection)

    def get_audio_features(
        self,
        input_values: torch.Tensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """As transformers' CLAP: `pooler_output` is what `embed_audio` returns."""
        return BaseModelOutputWithPooling(
            pooler_output=self.embed_audio(input_values, audio_attention_mask, input_features)
        )

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """As transformers' CLAP: `pooler_output` is what `embed_text` returns."""
        return BaseModelOutputWithPooling(pooler_output=self.embed_text(input_ids, attention_mask))

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        return_loss: bool = False,
    ) -> ParaSpeechCLAPOutput:
        """Scores every clip against every text; `return_loss` needs as many texts as clips, in pairs.

        `attention_mask` is the texts', `audio_attention_mask` the clips'. The loss is the sigmoid loss for a model with
        a logit bias, else InfoNCE. With speech or texts alone, their embeddings are the output.
        """
        audio_BD = text_ND = logits_BN = None
        if input_values is not None or input_features is not None:
            audio_BD = self.embed_audio(input_values, audio_attention_mask, input_features)
        if input_ids is not None:
            text_ND = self.embed_text(input_ids, attention_mask)
        if audio_BD is not None and text_ND is not None:
            logits_BN = self.logit_scale * audio_BD @ text_ND.T
            if self.logit_bias is not None:
                logits_BN = logits_BN + self.logit_bias
        return ParaSpeechCLAPOutput(
            loss=self._loss(audio_BD, text_ND) if return_loss else None,
            logits_per_audio=logits_BN,
            logits_per_text=None if logits_BN is None else logits_BN.T,
            text_embeds=text_ND,
            audio_embeds=audio_BD,
        )

    def _loss(self, audio_BD: torch.Tensor | None, text_BD: torch.Tensor | None) -> torch.Tensor:
        if audio_BD is None or text_BD is None or len(audio_BD) != len(text_BD):
            raise PsclapError("return_loss needs speech and texts, one text for each clip")
        if self.logit_bias is None:
            return info_nce(audio_BD, text_BD, self.logit_scale)
        return sigmoid(audio_BD, text_BD, self.logit_scale, self.logit_bias)


def _takes_a_whole_mask(config: PreTrainedConfig) -> bool:
    """Whether every token attends to all: elsewhere (to earlier or near ones only) the mask is transformers' own."""
    is_whole = config.model_type in _ATTEND_TO_ALL and not getattr(config, "is_decoder", False)
    return is_whole and config._attn_implementation == "sdpa"


_ATTEND_TO_ALL = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")


def _precision_of(encoder: PreTrainedModel) -> AbstractContextManager[Any]:
    """Autocast for weights in 16 bits; else whatever the caller has chosen."""
    dtype = weights_dtype(encoder)
    return torch.autocast(encoder.device.type, dtype) if dtype in (torch.bfloat16, torch.float16) else nullcontext()


def weights_dtype(encoder: PreTrainedModel) -> torch.dtype:
    """The type of an encoder's matrices; norms and biases may have another."""
    return next(parameter.dtype for parameter in encoder.parameters() if parameter.ndim > 1)


def _embed(hidden_BFH: torch.Tensor, mask_BF: torch.Tensor, pooling: str, projection: Projection) -> torch.Tensor:
    """A tower's last states to (B, D) unit vectors, in the weights' type whatever autocast gave the encoder."""
    with torch.autocast(hidden_BFH.device.type, enabled=False):
        hidden_BFH = hidden_BFH.to(projection.linear1.weight.dtype)
        return F.normalize(projection(pool(hidden_BFH, mask_BF, pooling)), dim=-1)
