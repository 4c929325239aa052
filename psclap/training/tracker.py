"""Where a run's numbers go: a small protocol, with a null, a printing and a combining version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Receives a run's parameters, metrics and artefacts. Only rank 0 has one that does anything."""

    def params(self, params: Mapping[str, Any]) -> None: ...

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...

    def checkpoint(self, step: int, uri: str) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def close(self) -> None: ...


class NullTracker:
    """Takes everything, keeps nothing."""

    def params(self, params: Mapping[str, Any]) -> None:
        pass

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def checkpoint(self, step: int, uri: str) -> None:
        pass

    def artifact(self, path: Path) -> None:
        pass

    def close(self) -> None:
        pass


class Trackers:
    """Hands everything on to each of several trackers."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = trackers

    def params(self, params: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.params(params)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.metrics(step, metrics)

    def note(self, text: str) -> None:
        for tracker in self._trackers:
            tracker.note(text)

    def checkpoint(self, step: int, uri: str) -> None:
        for tracker in self._trackers:
            tracker.checkpoint(step, uri)

    def artifact(self, path: Path) -> None:
        for tracker in self._trackers:
            tracker.artifact(path)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class PrintTracker(NullTracker):
    """Writes one line for each call of `metrics`; `write` takes the line."""

    def __init__(self, name: str, write: Callable[[str], Any] = print):
        self._name, self._write = name, write

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        values = "  ".join(f"{name.removeprefix('speed/')} {value:.4g}" for name, value in metrics.items())
        self._write(f"[{self._name}] step {step:5d}  {values}")

    def note(self, text: str) -> None:
        self._write(f"[{self._name}] {text}")
