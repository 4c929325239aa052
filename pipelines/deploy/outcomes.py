"""The exit statuses of `python -m pipelines.retrain`, as a scheduler acts on them."""

from __future__ import annotations

DONE = 0
"""A challenger became the champion, or there was nothing new."""
FAILED = 1
"""A person has to mend something: not tried again."""
MISUSED = 2
"""A wrong command line, as typer has it: not tried again."""
KEPT = 10
"""A challenger did not pass the gate, the champion stays: no failure."""
UNSOUND = 11
"""The data is not sound: not tried again."""
LATER = 75
"""Busy, or something is out of reach: tried again."""
INTERRUPTED = 130
"""Asked to stop: tried again, it goes on where it was."""


def told(code: int) -> str:
    """An exit status in words, for a log.

    >>> told(10)
    'exit 10: the champion was kept'
    """
    words = {
        DONE: "done",
        FAILED: "failed; a person has to look at it",
        MISUSED: "a wrong command line; a person has to look at it",
        KEPT: "the champion was kept",
        UNSOUND: "the data is not sound",
        LATER: "busy or out of reach; to be tried again",
        INTERRUPTED: "interrupted; to be tried again",
    }
    return f"exit {code}: {words.get(code, 'ended by a signal or for a reason of its own; to be tried again')}"
