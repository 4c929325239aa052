"""The tag classification loss of the Intrinsic variant.

Axes: B clips of the global batch, V tags, D embedding dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def tag_bce(speech_BD: torch.Tensor, prompt_VD: torch.Tensor, has_tag_BV: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of cos(speech, tag prompt) against the clip's tags; a scalar.

    Embeddings are L2-normalised and the logits are plain cosines, without the logit scale. The mean is over
    all tags of the clips that have one; 0 where no clip has. Source: ParaSpeechCLAP, classification loss.
    """
    logits_BV = speech_BD @ prompt_VD.T
    loss_B = F.binary_cross_entropy_with_logits(logits_BV, has_tag_BV, reduction="none").mean(1)
    is_tagged_B = has_tag_BV.any(1).to(loss_B.dtype)
    return (loss_B * is_tagged_B).sum() / is_tagged_B.sum().clamp(min=1)
