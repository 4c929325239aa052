"""How fast a training goes: clips and audio a second, the share of the time spent waiting for data, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


class Meter:
    """Sums over the steps since it was last read; `counts` are those of the global batches."""

    def __init__(self, step: int, total_steps: int, sample_rate_hz: int, names: tuple[str, ...]):
        self._total_steps, self._sample_rate_hz, self._names = total_steps, sample_rate_hz, names
        self.restart(step)

    def restart(self, step: int) -> None:
        """Forgets; what is not training, such as a validation, is not to count."""
        self._since, self._waited_s, self._step = time.perf_counter(), 0.0, step
        self._counts = np.zeros(2 + len(self._names), np.int64)

    def waiting(self, load: Callable[[], Any]) -> Any:
        """What `load` returns; its time is waiting for data."""
        start = time.perf_counter()
        loaded = load()
        self._waited_s += time.perf_counter() - start
        return loaded

    def add(self, counts: np.ndarray) -> None:
        """Takes in a global batch: its clips, their samples, then its clips of each name."""
        self._counts += counts

    def read(self, step: int) -> dict[str, float]:
        """The figures since the last restart, and a restart."""
        elapsed_s = time.perf_counter() - self._since
        steps = step - self._step
        clips, num_samples = map(float, self._counts[:2])
        figures = {
            "speed/clips_per_s": clips / elapsed_s,
            "speed/audio_s_per_s": num_samples / self._sample_rate_hz / elapsed_s,
            "speed/data_wait_share": self._waited_s / elapsed_s,
            "speed/eta_s": (self._total_steps - step) * elapsed_s / steps,
        }
        shares = {
            f"batch_share/{name}": float(n) / clips for name, n in zip(self._names, self._counts[2:], strict=True)
        }
        self.restart(step)
        return figures | shares
