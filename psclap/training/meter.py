"""How fast a training goes: clips and audio a second, the share of the time spent waiting for data, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


class Meter:
    """Sums over the steps since it was last read; `counts` are those of the global batches."""

    def __init__(self, step: int, total_steps: int, batch_size: int, sample_rate_hz: int, tags: tuple[str, ...]):
        self._total_steps, self._batch_size, self._sample_rate_hz = total_steps, batch_size, sample_rate_hz
        self._tags = tags
        self.restart(step)

    def restart(self, step: int) -> None:
        """Forgets; what is not training, such as a validation, is not to count."""
        self._since, self._waited_s, self._step = time.perf_counter(), 0.0, step
        self._counts = np.zeros(1 + len(self._tags), np.int64)

    def waiting(self, load: Callable[[], Any]) -> Any:
        """What `load` returns; its time is waiting for data."""
        start = time.perf_counter()
        loaded = load()
        self._waited_s += time.perf_counter() - start
        return loaded

    def add(self, counts: np.ndarray) -> None:
        """Takes in a global batch: its audio samples, then its clips with each tag."""
        self._counts += counts

    def read(self, step: int) -> dict[str, float]:
        """The figures since the last restart, and a restart."""
        elapsed_s = time.perf_counter() - self._since
        steps = step - self._step
        clips = steps * self._batch_size
        figures = {
            "speed/clips_per_s": clips / elapsed_s,
            "speed/audio_s_per_s": float(self._counts[0]) / self._sample_rate_hz / elapsed_s,
            "speed/data_wait_share": self._waited_s / elapsed_s,
            "speed/eta_s": (self._total_steps - step) * elapsed_s / steps,
        }
        shares = {f"batch_share/{tag}": float(n) / clips for tag, n in zip(self._tags, self._counts[1:], strict=True)}
        self.restart(step)
        return figures | shares
