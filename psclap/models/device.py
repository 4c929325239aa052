"""Where models compute."""

from __future__ import annotations

import torch


def device_of(name: str | None = None) -> torch.device:
    """The device of that name; a GPU where none is given and there is one, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
