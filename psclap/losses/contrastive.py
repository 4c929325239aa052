"""The symmetric InfoNCE loss over a global batch.

Axes: B clips of the global batch, D embedding dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def info_nce(
    speech_BD: torch.Tensor,
    text_BD: torch.Tensor,
    logit_scale: torch.Tensor,
    caption_id_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric InfoNCE of L2-normalised embeddings, pair i being (speech i, text i); a scalar.

    With `caption_id_B`, texts of equal id are the same caption and count as equally right answers: a row's
    target is spread evenly over them. Without, every other text is a negative, as in the paper. Source:
    ParaSpeechCLAP, contrastive loss.
    """
    logits_BB = logit_scale * speech_BD @ text_BD.T
    if caption_id_B is None:
        target = torch.arange(len(logits_BB), device=logits_BB.device)
    else:
        same_BB = (caption_id_B[:, None] == caption_id_B[None, :]).to(logits_BB.dtype)
        target = same_BB / same_BB.sum(1, keepdim=True)  # symmetric, so it serves both directions
    return (F.cross_entropy(logits_BB, target) + F.cross_entropy(logits_BB.T, target)) / 2
