"""Ray's trainer, but for a wait at its end. It is imported where Ray is."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

_ANSWER_S = 1.0


class Trainer(TorchTrainer):
    """A TorchTrainer that does not wait long for its cleaner's last word.

    The cleaner is an actor that frees what a controller leaves when it dies. Asked to end, it often does so before it
    has answered (Ray 2.60), and the controller waits 12 s for that answer. A cleaner that should not have ended sees
    by itself that the controller has.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        for callback in callbacks:
            if isinstance(callback, PlacementGroupCleanerCallback):
                callback._stop_timeout = _ANSWER_S
        return callbacks
