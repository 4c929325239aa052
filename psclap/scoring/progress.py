"""How a scoring job goes: a bar on a terminal, else a line now and then; both with the time that is left."""

from __future__ import annotations

import sys
import time
from typing import Self

from tqdm import tqdm

from psclap import log
from psclap.scoring.tables import Statistics

_LINE_EVERY_S = 10.0


class Progress:
    """Shows what is done of `clips`; speed and time left are of what this run does, not of what lay there."""

    def __init__(self, clips: int, done: Statistics):
        self._clips, self._done, self._here = clips, done, Statistics()
        self._begun = self._said = time.monotonic()
        self._ahead = Statistics()  # of the first block, whose time is mostly that of Ray's start
        at_start = done.clips + done.rejected
        has_bar = sys.stderr.isatty() and not log.is_json()
        self._bar = tqdm(total=clips, initial=at_start, unit="clip", desc="score", disable=not has_bar, smoothing=0.05)
        if at_start and self._bar.disable:
            self._say(f"goes on: {at_start:,} of {clips:,} clips are done")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, block: Statistics) -> None:
        """Counts a block that is committed."""
        if not self._here.clips:
            self._begun, self._ahead = time.monotonic(), block
        self._here += block
        self._bar.update(block.clips + block.rejected)
        self._bar.set_postfix_str(f"{self._speed():.0f}x real time, {self._rejected():,} rejects")
        if self._bar.disable and time.monotonic() - self._said >= _LINE_EVERY_S:
            self._say(self._line())

    def _line(self) -> str:
        gone = sum(of.clips + of.rejected for of in (self._done, self._here))
        timed = self._here.clips + self._here.rejected - self._ahead.clips - self._ahead.rejected
        line = f"{gone:,} of {self._clips:,} clips ({100 * gone / self._clips:.1f} %), {self._rejected():,} rejects"
        if not timed:
            return line
        left_s = (self._clips - gone) * (time.monotonic() - self._begun) / timed
        return f"{line}, {self._speed():.0f}x real time, {_duration(left_s)} left"

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        done = self._done.clips + self._here.clips
        log.progress(f"score: {line}", done=done, rejected=self._rejected(), clips=self._clips)

    def _speed(self) -> float:
        return (self._here.audio_s - self._ahead.audio_s) / max(time.monotonic() - self._begun, 1e-9)

    def _rejected(self) -> int:
        return self._done.rejected + self._here.rejected


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _duration(3725.2), _duration(42.0)
    ('1:02:05', '0:00:42')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
