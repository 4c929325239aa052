"""Where a training's numbers go: a small protocol, and a version of it that keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Tracker(Protocol):
    """Receives what there is to know of a run. Only rank 0 has one that does anything.

    A resumed training says again what it said before: the same steps, with the same names. That is harmless.
    """

    def params(self, params: Mapping[str, Any]) -> None:
        """What the run is of; sections within sections are welcome."""

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers that belong to a step."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """What may change while the run goes on, such as where its newest checkpoint is; the last value counts."""

    def note(self, text: str) -> None:
        """A sentence for whoever watches."""

    def secure(self) -> None:
        """Returns when all of this is wherever the checkpoint that is written now will be found."""


class NullTracker:
    """Takes everything, keeps nothing."""

    def params(self, params: Mapping[str, Any]) -> None:
        pass

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def tags(self, tags: Mapping[str, str]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def secure(self) -> None:
        pass
