"""Steps whose loss or gradient is not finite: not taken, counted, and told with the clips they come from.

Whether a step is finite is known on the device at once, and here only when `settle` reads it: no step waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from psclap.errors import PsclapError
from psclap.loader import Position, Stream

_MAX_NAMED = 8


@dataclass(frozen=True)
class _Step:
    step: int
    position: Position  # of its batch
    is_finite: torch.Tensor  # ()
    clips_are_finite: torch.Tensor  # (B,) what the model makes of each clip of the global batch


class FiniteGuard:
    """Counts the steps that were not taken. Every rank has the same."""

    def __init__(self, stream: Stream, max_skipped_steps: int, skipped_steps: int):
        self._stream, self._max_skipped_steps, self.skipped_steps = stream, max_skipped_steps, skipped_steps
        self._pending: list[_Step] = []

    def add(self, step: int, position: Position, is_finite: torch.Tensor, is_finite_B: torch.Tensor) -> None:
        """Notes a step, number `step` counted from 1, on the batch at `position`."""
        self._pending.append(_Step(step, position, is_finite, is_finite_B))

    def settle(self) -> list[str]:
        """What to tell of the steps since the last call that were not taken.

        Raises PsclapError where they are more than allowed.
        """
        steps, self._pending = self._pending, []
        if not steps:
            return []
        finite = torch.stack([step.is_finite for step in steps]).tolist()
        said = [self._describe(step) for step, is_finite in zip(steps, finite, strict=True) if not is_finite]
        self.skipped_steps += len(said)
        if said and self.skipped_steps > self._max_skipped_steps:
            raise PsclapError(
                f"{said[-1]}; it was not taken. Lower the learning rate, set max_grad_norm, take such clips out, or "
                f"allow more than train.*.max_skipped_steps {self._max_skipped_steps}"
            )
        return [f"{line}; it was skipped" for line in said]

    def _describe(self, step: _Step) -> str:
        keys = self._keys(step.position)
        bad = [key for key, is_finite in zip(keys, step.clips_are_finite.tolist(), strict=True) if not is_finite]
        where = f"batch {step.position.step} of epoch {step.position.epoch}"
        if not bad:
            return f"the loss or gradient is not finite at step {step.step} ({where}, clips {_some(keys)})"
        if len(bad) == len(keys):
            return f"no embedding is finite at step {step.step} ({where}, clips {_some(keys)}): the weights diverged"
        return f"the embeddings are not finite at step {step.step} ({where}) of the clips {_some(bad)}"

    def _keys(self, position: Position) -> list[str]:
        stream = self._stream
        numbers = stream.plan(position.epoch).examples(position.step)
        return stream.index.take(stream.rows[numbers], ["key"])["key"].to_pylist()


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _MAX_NAMED} more" if len(keys) > _MAX_NAMED else ""
    return ", ".join(keys[:_MAX_NAMED]) + more
