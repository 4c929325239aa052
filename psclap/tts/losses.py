"""The losses of Speech-Clip and Clip-TTS: tensors in, sums over sentences out.

Each returns the sum over this rank's sentences of a mean over the sentence's symbols or frames; whoever calls divides
by the number of sentences of the global batch (`psclap.distributed`).

Axes: B sentences, L symbols, F frames, M mel bins, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from psclap.tts.modules import frames_of, symbol_at


def binarisation(log_alignment_BFL: torch.Tensor, symbol_BF: torch.Tensor, mask_BF: torch.Tensor) -> torch.Tensor:
    """How far the soft alignment is from the hard one: minus the log-probability of each frame's symbol.

    Source: Badlani et al. 2022, equation 5.
    """
    of_hard_BF = log_alignment_BFL.log_softmax(-1).gather(2, symbol_BF[..., None]).squeeze(-1)
    return _mean_within(-of_hard_BF, mask_BF).sum()


def frame_contrast(
    frames_BFD: torch.Tensor,
    states_BLD: torch.Tensor,
    logit_scale: torch.Tensor,
    symbol_BF: torch.Tensor,
    mask_BF: torch.Tensor,
    mask_BL: torch.Tensor,
) -> torch.Tensor:
    """Each frame against all symbols of its own sentence: cosine 1 for the symbol it belongs to, 0 for the others.

    Length-regulated, the text has at each frame the state of one of its symbols; so the sum over negatives is over
    symbols, not over copies of them. The paper asks for cosines of 1 and 0 and leaves open between what; this is the
    part of the matching pair, `pooled` embeddings under InfoNCE are the part across the batch.
    """
    cosines_BFL = F.normalize(frames_BFD, dim=-1) @ F.normalize(states_BLD, dim=-1).transpose(1, 2)
    logits_BFL = (logit_scale * cosines_BFL).masked_fill(~mask_BL[:, None], torch.finfo(cosines_BFL.dtype).min)
    loss_BF = F.cross_entropy(logits_BFL.transpose(1, 2), symbol_BF, reduction="none")
    return _mean_within(loss_BF, mask_BF).sum()


def duration_error(predicted_BL: torch.Tensor, durations_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Squared error of log(1 + frames) by symbol (FastSpeech 2, section 2.3), and of the sentence's log(frames).

    The error by symbol alone makes sentences too short, as the mean of logarithms is below the logarithm of the mean;
    the sentence's is our addition.
    """
    of_symbols = _mean_within((predicted_BL - torch.log1p(durations_BL.float())).square(), mask_BL)
    predicted_B, frames_B = (frames_of(predicted_BL) * mask_BL).sum(1), durations_BL.sum(1)
    of_sentence = (torch.log(predicted_B + 1) - torch.log(frames_B.float() + 1)).square()
    return (of_symbols + of_sentence).sum()


def mel_error(predicted_BFM: torch.Tensor, mel_BFM: torch.Tensor, mask_BF: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of log-mels (Clip-TTS, section 5)."""
    return _mean_within((predicted_BFM - mel_BFM).abs().mean(-1), mask_BF).sum()


def symbol_of_frames(durations_BL: torch.Tensor, num_frames: int) -> torch.Tensor:
    """(B, F) the number of the symbol that each frame belongs to; the last one's after the end.

    >>> symbol_of_frames(torch.tensor([[2, 1]]), 4).tolist()
    [[0, 0, 1, 1]]
    """
    return torch.minimum(symbol_at(durations_BL, num_frames), (durations_BL > 0).sum(1, keepdim=True) - 1)


def _mean_within(values_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    return (values_BT * mask_BT).sum(1) / mask_BT.sum(1)
