"""transformers without its progress bars, which would stand between what a command says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Within it transformers shows none; afterwards all is as it was."""
    had_progress_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_progress_bars:
            logging.enable_progress_bar()
