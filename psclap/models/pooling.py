"""From frames or tokens to one vector per clip or text; padding is left out.

Axes: B rows, F frames or tokens, H hidden dimensions.
"""

from __future__ import annotations

import torch


def pool(hidden_BFH: torch.Tensor, mask_BF: torch.Tensor, kind: str) -> torch.Tensor:
    """`cls`: the first token (B, H). `mean`: over valid places (B, H). `mean_std`: mean and standard
    deviation side by side (B, 2H).
    """
    if kind == "cls":
        return hidden_BFH[:, 0]
    mask_BF1 = mask_BF[..., None].to(hidden_BFH.dtype)
    count_B1 = mask_BF1.sum(1)
    mean_BH = (hidden_BFH * mask_BF1).sum(1) / count_B1
    if kind == "mean":
        return mean_BH
    variance_BH = ((hidden_BFH - mean_BH[:, None]).square() * mask_BF1).sum(1) / count_B1
    # The small constant keeps the gradient of the root finite for a clip of one frame.
    return torch.cat([mean_BH, (variance_BH + 1e-6).sqrt()], dim=1)


def pooled_size(hidden_size: int, kind: str) -> int:
    """The width of `pool`'s result."""
    return 2 * hidden_size if kind == "mean_std" else hidden_size
