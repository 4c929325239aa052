"""The tag classification loss of the Intrinsic variant.

Axes: B clips, K the most tags of one clip, V tags, D embedding dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def tag_bce(
    speech_BD: torch.Tensor, prompt_VD: torch.Tensor, tag_BK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary cross-entropy of cos(speech, tag prompt) against the clip's tags, as (its sum, over how many clips).

    The loss is sum / count: the mean over the clips that have a tag of the mean over all V tags. Both add up over
    the parts of a batch; the count may be 0. Embeddings are L2-normalised and the logits are plain cosines, without
    the logit scale. `tag_BK` as for `multi_hot`. Source: ParaSpeechCLAP, classification loss.
    """
    has_tag_BV = multi_hot(tag_BK, len(prompt_VD)).to(speech_BD.dtype)
    logits_BV = speech_BD @ prompt_VD.T
    loss_B = F.binary_cross_entropy_with_logits(logits_BV, has_tag_BV, reduction="none").mean(1)
    is_tagged_B = has_tag_BV.any(1).to(loss_B.dtype)
    return (loss_B * is_tagged_B).sum(), is_tagged_B.sum()


def multi_hot(tag_BK: torch.Tensor, num_tags: int) -> torch.Tensor:
    """(B, K) numbers of each clip's tags, filled up with `num_tags`, to (B, V) bool.

    >>> multi_hot(torch.tensor([[2, 0], [1, 3]]), 3).int().tolist()
    [[1, 0, 1], [0, 1, 0]]
    """
    hot = torch.zeros(len(tag_BK), num_tags + 1, dtype=torch.bool, device=tag_BK.device)
    return hot.scatter_(1, tag_BK, True)[:, :num_tags]
