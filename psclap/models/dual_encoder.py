"""ParaSpeechCLAP: a speech tower and a text tower that end in one space (paper, figure 1).

Axes: B clips, N texts, T samples, L tokens, D embedding dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from psclap.losses.contrastive import info_nce
from psclap.losses.sigmoid import sigmoid
from psclap.models.pooling import pool, pooled_size
from psclap.models.projection import Projection
from psclap.models.wavlm import accelerate

MAX_LOGIT_SCALE = 100.0


class ParaSpeechCLAPConfig(PreTrainedConfig):
    """The two encoders' own configurations, how each is pooled, and the projection they share."""

    model_type = "paraspeechclap"
    sub_configs: ClassVar = {"audio_config": AutoConfig, "text_config": AutoConfig}

    audio_config: Any = None  # a PreTrainedConfig, or the dictionary of one
    text_config: Any = None
    audio_pooling: str = "mean"
    text_pooling: str = "cls"
    projection_dim: int = 768
    projection_dropout: float = 0.5
    logit_scale_init_value: float = 1 / 0.07
    logit_bias_init_value: float | None = None  # of the sigmoid loss; InfoNCE has none

    def __post_init__(self, **kwargs: Any) -> None:
        for name in self.sub_configs:
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, AutoConfig.for_model(**value))
        super().__post_init__(**kwargs)


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
        self.audio_model = audio_model or AutoModel.from_config(config.audio_config)
        self.text_model = text_model or AutoModel.from_config(config.text_config)
        self.audio_projection = Projection(audio_width, config.projection_dim, config.projection_dropout)
        self.text_projection = Projection(text_width, config.projection_dim, config.projection_dropout)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale_init_value)))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
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

    def embed_audio(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T) waves and their mask to (B, D) speech embeddings, L2-normalised."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.long)
        frames = self.audio_model(input_values=input_values, attention_mask=attention_mask).last_hidden_state
        mask_BF = self.audio_model._get_feature_vector_attention_mask(frames.shape[1], attention_mask)
        return _embed(frames, mask_BF, self.config.audio_pooling, self.audio_projection)

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(N, L) token ids and their mask to (N, D) text embeddings, L2-normalised."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask
        if _takes_a_whole_mask(self.text_model.config):
            # transformers looks whether a 2-D mask is all ones, and waits for the GPU; a 4-D one it takes as it is.
            mask = attention_mask[:, None, None].bool()
        tokens = self.text_model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return _embed(tokens, attention_mask, self.config.text_pooling, self.text_projection)

    def get_audio_features(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """As transformers' CLAP: `pooler_output` is what `embed_audio` returns."""
        return BaseModelOutputWithPooling(pooler_output=self.embed_audio(input_values, attention_mask))

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """As transformers' CLAP: `pooler_output` is what `embed_text` returns."""
        return BaseModelOutputWithPooling(pooler_output=self.embed_text(input_ids, attention_mask))

    def forward(
        self,
        input_values: torch.Tensor,
        input_ids: torch.Tensor,
        audio_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_loss: bool = False,
    ) -> ParaSpeechCLAPOutput:
        """Scores every clip against every text; `return_loss` needs as many texts as clips, in pairs.

        `attention_mask` is the texts', `audio_attention_mask` the clips'. The loss is the sigmoid loss for a model with
        a logit bias, else InfoNCE.
        """
        audio_BD = self.embed_audio(input_values, audio_attention_mask)
        text_ND = self.embed_text(input_ids, attention_mask)
        logits_BN = self.logit_scale * audio_BD @ text_ND.T
        if self.logit_bias is not None:
            logits_BN = logits_BN + self.logit_bias
        return ParaSpeechCLAPOutput(
            loss=self._loss(audio_BD, text_ND) if return_loss else None,
            logits_per_audio=logits_BN,
            logits_per_text=logits_BN.T,
            text_embeds=text_ND,
            audio_embeds=audio_BD,
        )

    def _loss(self, audio_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        if self.logit_bias is None:
            return info_nce(audio_BD, text_BD, self.logit_scale)
        return sigmoid(audio_BD, text_BD, self.logit_scale, self.logit_bias)


def _takes_a_whole_mask(config: PreTrainedConfig) -> bool:
    """Whether every layer attends to all tokens: where some attend to near ones only, the mask is transformers' own."""
    is_local = any(getattr(config, name, None) for name in ("sliding_window", "local_attention", "layer_types"))
    return config._attn_implementation == "sdpa" and not is_local and not getattr(config, "is_decoder", False)


def _embed(hidden_BFH: torch.Tensor, mask_BF: torch.Tensor, pooling: str, projection: Projection) -> torch.Tensor:
    """A tower's last states to (B, D) unit vectors, in the weights' type whatever autocast gave the encoder."""
    with torch.autocast(hidden_BFH.device.type, enabled=False):
        hidden_BFH = hidden_BFH.to(projection.linear1.weight.dtype)
        return F.normalize(projection(pool(hidden_BFH, mask_BF, pooling)), dim=-1)
