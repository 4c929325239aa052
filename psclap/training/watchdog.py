"""Ends a process that makes no progress: what started it can then start it again from the last checkpoint."""

from __future__ import annotations

import faulthandler
from pathlib import Path
from types import TracebackType


class Watchdog:
    """Within its `with` block, more than `timeout_s` between two calls of `alive` end the process with status 1.

    Where every thread was is then added to `report` (None: standard error). It works whatever holds the process up, a
    collective that waits for a dead rank or C code that never gives the interpreter back. A timeout of None waits for
    ever.
    """

    def __init__(self, timeout_s: float | None, report: Path | None = None):
        self._timeout_s, self.report = timeout_s, report

    def __enter__(self) -> Watchdog:
        # 2 is standard error itself, whatever stands in for it in this process.
        self._stream = open(self.report or 2, "a", closefd=self.report is not None)
        self.alive()
        return self

    def alive(self) -> None:
        """Says that there is progress."""
        if self._timeout_s is not None:
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._stream)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._stream.close()
        if self.report and not self.report.stat().st_size:
            self.report.unlink()
