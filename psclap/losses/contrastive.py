"""The symmetric InfoNCE loss over a global batch.

Axes: B clips of the global batch, b those of some rows of it, D embedding dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_ALL = slice(None)


def info_nce(
    speech_BD: torch.Tensor,
    text_BD: torch.Tensor,
    logit_scale: torch.Tensor,
    caption_id_B: torch.Tensor | None = None,
    rows: slice = _ALL,
) -> torch.Tensor:
    """Symmetric InfoNCE of L2-normalised embeddings, pair i being (speech i, text i); a scalar.

    With `caption_id_B`, texts of equal id are the same caption and count as equally right answers: a row's
    target is spread evenly over them. Without, every other text is a negative, as in the paper. The two differ as
    far as dropout makes the embeddings of equal texts differ. Source: ParaSpeechCLAP, contrastive loss.

    `rows` are the pairs whose share of the loss is wanted, in b x B time and memory: the mean over B pairs is
    the sum of the shares of disjoint rows that make up the batch.
    """
    ids_B = torch.arange(len(speech_BD), device=speech_BD.device) if caption_id_B is None else caption_id_B
    is_right_bB = (ids_B[rows, None] == ids_B[None, :]).to(speech_BD.dtype)
    target_bB = is_right_bB / is_right_bB.sum(1, keepdim=True)  # of the texts for a speech, and the other way round
    to_text = F.cross_entropy(logit_scale * speech_BD[rows] @ text_BD.T, target_bB, reduction="sum")
    to_speech = F.cross_entropy(logit_scale * text_BD[rows] @ speech_BD.T, target_bB, reduction="sum")
    return (to_text + to_speech) / (2 * len(speech_BD))
