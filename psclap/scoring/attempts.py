"""Which clip it is that kills its workers: a decoder that crashes, or memory that runs out, leaves no exception.

Ray gives a block whose worker died to another one, again and again. Each attempt at a block is therefore written down
before it begins. From the third on, its clips are scored one by one, each noted beforehand, and a clip over which two
workers died is left out as a reject.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from psclap import storage
from psclap.errors import AudioError
from psclap.scoring.tables import Scored, Statistics

ATTEMPTS = "_attempts"
_AT_ONCE = 2  # attempts at the whole block
_DEATHS = 2

CRASHES = AudioError("crashes", f"{_DEATHS} worker processes died over it; decode it elsewhere, or leave it out")


@dataclass
class Attempt:
    """One attempt at a block, after those that came before."""

    location: str
    before: int = 0
    deaths: dict[str, int] = field(default_factory=dict)  # by row; JSON's keys are text

    @classmethod
    def begin(cls, output: str, number: int) -> Attempt:
        """Reads what earlier attempts left, and notes this one."""
        location = storage.join(output, f"{ATTEMPTS}/{number:06d}.json")
        try:
            attempt = cls(location, **json.loads(storage.read(location)))
        except FileNotFoundError:
            attempt = cls(location)
        attempt._note(attempt.before + 1)
        return attempt

    @property
    def is_careful(self) -> bool:
        """Whether clips are to be scored one by one."""
        return self.before >= _AT_ONCE

    def one_by_one(self, items: pa.Table, score: Callable[[pa.Table], Scored], reject: Callable) -> Scored:
        """`score` of every clip alone; `reject(item, error)` for those over which workers died."""
        parts = []
        for row in range(len(items)):
            item = items.slice(row, 1)
            if self.deaths.get(str(row), 0) >= _DEATHS:
                parts.append(reject(item, CRASHES))
                continue
            self.deaths[str(row)] = self.deaths.get(str(row), 0) + 1
            self._note(self.before + 1)
            parts.append(score(item))
            del self.deaths[str(row)]
        return joined(parts)

    def end(self) -> None:
        """The block is committed."""
        storage.remove(self.location)

    def _note(self, attempts: int) -> None:
        with storage.writing(self.location) as partial:
            partial.write_text(json.dumps({"before": attempts, "deaths": self.deaths}))


def joined(parts: list[Scored]) -> Scored:
    """Several clips' tables as one block's."""

    def together(name: str) -> pa.Table:
        return pa.concat_tables([getattr(part, name) for part in parts]).unify_dictionaries()

    total = sum((part.statistics for part in parts), Statistics())
    return Scored(together("clips"), together("windows"), together("rejects"), total)
