"""What asks a training for a checkpoint between its own: a stop, or a machine that is about to be taken away."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Protocol


class Signals(Protocol):
    """Asked by every rank after every step; it is enough when one rank answers with yes."""

    def leave(self) -> bool:
        """Whether to write a checkpoint and end."""
        ...

    def save(self) -> bool:
        """Whether to write a checkpoint and go on."""
        ...


class NoSignals:
    """Asks for nothing."""

    def leave(self) -> bool:
        return False

    def save(self) -> bool:
        return False


class UnixSignals(NoSignals):
    """Within its `with` block SIGINT (Ctrl-C) and SIGTERM ask to leave; either one again raises KeyboardInterrupt.

    One of each is one asking: a scheduler sends SIGTERM to every process, and a parent passes it on as SIGINT. For the
    main thread of a process.
    """

    def __init__(self) -> None:
        self._asked: set[int] = set()

    def leave(self) -> bool:
        return bool(self._asked)

    def __enter__(self) -> UnixSignals:
        self._before: dict[int, Any] = {
            number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number in self._asked:
            raise KeyboardInterrupt
        self._asked.add(number)
