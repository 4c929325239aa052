"""Which frames belong to which symbol, learnt without a tool from outside.

The paper has a duration predictor and does not say what it learns from. Here the similarity of shallow encodings of
symbols and frames is trained with the forward-sum loss over all monotonic alignments, under a beta-binomial prior
(Shih et al. 2021, RAD-TTS; Badlani et al. 2022, One TTS Alignment to Rule Them All); the best alignment is the
monotonic path with the highest sum (Kim et al. 2020, Glow-TTS, appendix A).

Axes: B sentences, L symbols, F frames, M mel bins, A the encodings' size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from psclap.tts.modules import length_mask

_BLANK_LOG_PROBABILITY = -1.0
_LOWEST = -1e4


class Aligner(nn.Module):
    """The log-probability of each symbol for each frame."""

    def __init__(self, symbol_size: int, num_mel_bins: int, size: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.of_symbols = nn.Sequential(
            nn.Conv1d(symbol_size, 2 * symbol_size, 3, padding=1), nn.ReLU(), nn.Conv1d(2 * symbol_size, size, 1)
        )
        self.of_frames = nn.Sequential(
            *(nn.Conv1d(num_mel_bins, 2 * num_mel_bins, 3, padding=1), nn.ReLU()),
            *(nn.Conv1d(2 * num_mel_bins, num_mel_bins, 1), nn.ReLU(), nn.Conv1d(num_mel_bins, size, 1)),
        )

    def forward(
        self, symbols_BLD: torch.Tensor, mask_BL: torch.Tensor, mel_BFM: torch.Tensor, frames_B: torch.Tensor
    ) -> torch.Tensor:
        """(B, F, L) log-probabilities, the prior in them; what is outside the mask has a very low one."""
        keys_BLA = self.of_symbols((symbols_BLD * mask_BL[..., None]).transpose(1, 2)).transpose(1, 2)
        queries_BFA = self.of_frames(mel_BFM.transpose(1, 2)).transpose(1, 2)
        distances = torch.cdist(queries_BFA, keys_BLA, compute_mode="use_mm_for_euclid_dist").square()
        scores_BFL = (-self.temperature * distances).masked_fill(~mask_BL[:, None], _LOWEST)
        prior_BFL = beta_binomial(mask_BL.sum(1), frames_B, mask_BL.shape[1], mel_BFM.shape[1])
        return scores_BFL.log_softmax(-1) + prior_BFL.masked_fill(~mask_BL[:, None], _LOWEST)


def beta_binomial(symbols_B: torch.Tensor, frames_B: torch.Tensor, max_symbols: int, max_frames: int) -> torch.Tensor:
    """(B, F, L) the logarithm of the prior: frame t of F has its symbol from BetaBinomial(L - 1, t, F - t + 1).

    >>> beta_binomial(torch.tensor([1]), torch.tensor([1]), 1, 1).tolist()
    [[[0.0]]]
    """
    device = frames_B.device
    n = (symbols_B - 1)[:, None, None]
    k = torch.arange(max_symbols, device=device).clamp(max=n)
    a = torch.arange(1, max_frames + 1, device=device)[None, :, None]
    b = (frames_B[:, None, None] - a + 1).clamp(min=1)
    # All of them are whole numbers: one table of log-gammas serves every sentence, frame and symbol.
    log_gamma = torch.arange(2 * (max_symbols + max_frames) + 1, dtype=torch.float64, device=device).lgamma()

    def log_beta(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return log_gamma[x] + log_gamma[y] - log_gamma[x + y]

    choose = log_gamma[n + 1] - log_gamma[k + 1] - log_gamma[n - k + 1]
    return (choose + log_beta(k + a, n - k + b) - log_beta(a, b)).float()


def forward_sum(log_probabilities_BFL: torch.Tensor, frames_B: torch.Tensor, symbols_B: torch.Tensor) -> torch.Tensor:
    """(B,) minus the logarithm of the sum over all monotonic alignments, divided by the frames.

    It is CTC with the symbols of a sentence as its own alphabet; the blank of CTC has a constant score.
    """
    scores = F.pad(log_probabilities_BFL, (1, 0), value=_BLANK_LOG_PROBABILITY)
    targets = torch.arange(1, scores.shape[2], device=scores.device).expand(len(scores), -1)
    losses = F.ctc_loss(
        scores.log_softmax(-1).transpose(0, 1), targets, frames_B, symbols_B, reduction="none", zero_infinity=True
    )
    return losses / frames_B


@torch.no_grad()
def monotonic_durations(
    log_probabilities_BFL: torch.Tensor, frames_B: torch.Tensor, symbols_B: torch.Tensor
) -> torch.Tensor:
    """(B, L) int64 frames of each symbol, 1 at least, on the best path from the first symbol to the last.

    Each frame is at the symbol of the frame before or at the next. Nothing waits for the device.
    """
    of_frames = log_probabilities_BFL.unbind(1)
    best_BL = torch.full_like(of_frames[0], float("-inf"))
    best_BL[:, 0] = of_frames[0][:, 0]
    moved = [torch.zeros_like(best_BL, dtype=torch.bool)]
    for of_frame_BL in of_frames[1:]:
        from_before = F.pad(best_BL[:, :-1], (1, 0), value=float("-inf"))
        moved.append(from_before > best_BL)
        best_BL = torch.maximum(best_BL, from_before) + of_frame_BL
    return _walk_back(torch.stack(moved, 1), frames_B, symbols_B)


def _walk_back(moved_BFL: torch.Tensor, frames_B: torch.Tensor, symbols_B: torch.Tensor) -> torch.Tensor:
    batch, num_frames, num_symbols = moved_BFL.shape
    is_frame_BF = length_mask(frames_B, num_frames)
    back_FBL = (moved_BFL & is_frame_BF[..., None]).long().transpose(0, 1).contiguous()
    symbol_B1 = (symbols_B - 1)[:, None]
    path = []  # the symbol at each frame, the last frame's first; the loop has few operations, as all of them are tiny
    for back_BL in reversed(back_FBL.unbind()):
        path.append(symbol_B1)
        symbol_B1 = symbol_B1 - back_BL.gather(1, symbol_B1)
    durations_BL = torch.zeros(batch, num_symbols, dtype=torch.long, device=moved_BFL.device)
    return durations_BL.scatter_add_(1, torch.cat(path[::-1], 1), is_frame_BF.long())
