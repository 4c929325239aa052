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

    With `caption_id_B`, texts of equal id are the same caption: all of their clips are right answers for each of
    them, and each right answer stands against the wrong ones alone. Without, every other text is a negative, as in
    the paper, where the clips of one caption drive each other away. Source: ParaSpeechCLAP, contrastive loss.

    `rows` are the pairs whose share of the loss is wanted, in b x B time and memory: the mean over B pairs is
    the sum of the shares of disjoint rows that make up the batch.
    """
    ids_B = torch.arange(len(speech_BD), device=speech_BD.device) if caption_id_B is None else caption_id_B
    is_right_bB = ids_B[rows, None] == ids_B[None, :]  # of the texts for a speech, and the other way round
    to_text = _against_the_wrong(logit_scale * speech_BD[rows] @ text_BD.T, is_right_bB)
    to_speech = _against_the_wrong(logit_scale * text_BD[rows] @ speech_BD.T, is_right_bB)
    return (to_text + to_speech) / (2 * len(speech_BD))


def _against_the_wrong(logits_bB: torch.Tensor, is_right_bB: torch.Tensor) -> torch.Tensor:
    """The sum over rows of the mean over right answers r of -log(e^s_r / (e^s_r + sum of e^s over the wrong ones))."""
    lowest = torch.finfo(logits_bB.dtype).min  # finite: the gradient of a row without wrong answers is zero, not NaN
    wrong_b1 = logits_bB.masked_fill(is_right_bB, lowest).logsumexp(1, keepdim=True)
    loss_bB = -F.logsigmoid(logits_bB - wrong_b1).where(is_right_bB, 0.0)
    return (loss_bB.sum(1) / is_right_bB.sum(1)).sum()
