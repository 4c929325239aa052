"""How many steps a training has, and whether the plans of all of them can be made."""

from __future__ import annotations

from psclap.loader import Stream
from psclap.loop_config import LoopConfig


def total_steps(config: LoopConfig, stream: Stream) -> int:
    """The optimiser steps of a training. Raises PsclapError where the plan of one of its epochs cannot be made."""
    if config.max_steps is not None:
        return config.max_steps
    assert config.max_epochs is not None  # LoopConfig has checked it
    return sum(len(stream.plan(epoch)) for epoch in range(config.max_epochs))


def check_plans(config: LoopConfig, stream: Stream) -> None:
    """Raises PsclapError now for the plan of a later epoch that cannot be made.

    What an epoch leaves to the next differs from epoch to epoch, and with it how often a caption comes in one.
    """
    stream.plan(0)
    steps, epoch, end = 0, 0, total_steps(config, stream)
    while config.sampling.distinct_captions and steps < end:
        steps += len(stream.plan(epoch))
        epoch += 1
