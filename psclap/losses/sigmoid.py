"""The pairwise sigmoid loss (SigLIP, arXiv 2303.15343, equation 1 and section 3.3).

Every pair of a clip and a text is a question of its own, right or wrong, so the loss is a plain sum over pairs: it
is computed block by block, and no matrix of all pairs is ever alive. With several ranks the texts go round, see
`psclap.distributed.ring`, and each rank sums over its own clips.

Axes: B clips, N texts, b and n those of a block, D embedding dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

BLOCK_SIZE = 1024
"""Clips and texts to a block: 4 MB of logits in float32."""


def sigmoid(
    speech_BD: torch.Tensor,
    text_BD: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    caption_id_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sigmoid loss of L2-normalised embeddings, pair i being (speech i, text i); a scalar.

    With `caption_id_B`, a text of equal id is the same caption, and right as well. Without, every other text is
    wrong, as in the paper.
    """
    ids_B = torch.arange(len(speech_BD), device=speech_BD.device) if caption_id_B is None else caption_id_B
    return sigmoid_pairs(speech_BD, text_BD, logit_scale, logit_bias, ids_B, ids_B) / len(speech_BD)


def sigmoid_pairs(
    speech_BD: torch.Tensor,
    text_ND: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    speech_id_B: torch.Tensor,
    text_id_N: torch.Tensor,
    block_size: int = BLOCK_SIZE,
) -> torch.Tensor:
    """The sum over all B x N pairs of -log sigmoid(z (scale cos + bias)), z = 1 where the ids are equal, else -1.

    The loss is this sum over all pairs of the global batch, divided by its number of clips. Between the forward and
    the backward pass only the embeddings are kept; the backward pass computes each block anew.
    """
    total = speech_BD.new_zeros(())
    for speech_bD, speech_id_b in zip(speech_BD.split(block_size), speech_id_B.split(block_size), strict=True):
        for text_nD, text_id_n in zip(text_ND.split(block_size), text_id_N.split(block_size), strict=True):
            block = (speech_bD, text_nD, logit_scale, logit_bias, speech_id_b, text_id_n)
            total = total + checkpoint(_block, *block, use_reentrant=False, preserve_rng_state=False)
    return total


def _block(
    speech_bD: torch.Tensor,
    text_nD: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    speech_id_b: torch.Tensor,
    text_id_n: torch.Tensor,
) -> torch.Tensor:
    logits_bn = logit_scale * speech_bD @ text_nD.T + logit_bias
    is_right_bn = speech_id_b[:, None] == text_id_n[None, :]
    return -F.logsigmoid(torch.where(is_right_bn, logits_bn, -logits_bn)).sum()
