"""Signals that sound like a voice, of known pitch and level."""

import numpy as np

RATE_HZ = 16000


def pulses(f0_hz: np.ndarray | float, seconds: float = 1.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A train of pulses, as a glottis makes it, through one resonance: a voice of this pitch."""
    phase = np.cumsum(np.broadcast_to(f0_hz, round(seconds * rate_hz)) / rate_hz)
    train = np.diff(np.floor(phase), prepend=0.0)
    times_s = np.arange(rate_hz // 50) / rate_hz
    return (0.3 * np.convolve(train, np.exp(-150 * times_s) * np.sin(2 * np.pi * 700 * times_s))[: len(train)]).astype(
        np.float32
    )


def whisper(seconds: float = 1.0, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, round(seconds * RATE_HZ)).astype(np.float32)
