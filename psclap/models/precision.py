"""The precision that a model computes in: bfloat16 where the processor multiplies it faster, and the model is large."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import torch

from psclap.models.dual_encoder import ParaSpeechCLAPModel

Precision = Literal["stored", "bf16", "auto"]

_MIN_PARAMETERS = 10_000_000  # smaller encoders spend their time elsewhere than in matrix products
_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is Arm's name


def to_bf16(model: ParaSpeechCLAPModel) -> None:
    """Changes the encoders' weights in place, all but what the model keeps in float32."""
    for name, parameter in model.named_parameters():
        if not any(kept in name for kept in model._keep_in_fp32_modules_strict):
            parameter.data = parameter.data.to(torch.bfloat16)


def bf16_pays(model: ParaSpeechCLAPModel, device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively and the model's speech encoder is large enough to gain by it."""
    if model.audio_model.num_parameters() < _MIN_PARAMETERS:
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_multiplies_bf16()


@cache
def _cpu_multiplies_bf16() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not _CPU_FLAGS.isdisjoint(flags.split())
