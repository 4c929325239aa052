"""A copy of a run's journal beside its checkpoints at a URL: with it a run outlives the machine that drives it.

    URL/run.json                        as in the journal
    URL/records-000000012345.jsonl      its first 12,345 bytes; the longest counts

Whoever copies writes a name of its own, so that a slow copy never takes the place of a later one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from psclap import storage
from psclap.files import atomic_file
from psclap.training.journal import RUN_NAME, Journal

_RECORDS = re.compile(r"records-(\d{12})\.jsonl")


@dataclass(frozen=True)
class JournalCopy:
    """The copy at `url` of the journal that lies in `folder`. Storage that does not answer raises PsclapError."""

    folder: Path
    url: str

    def restore(self) -> None:
        """Puts the copy in the place of a journal that is missing here, or that another machine has gone on with.

        What the journal has beyond its copy stays: whoever wrote it was ended before it was copied.
        """
        copied = self._copied()
        if not copied:
            return
        records = storage.read(storage.join(self.url, copied[max(copied)]))
        journal = Journal(self.folder)
        if journal.path.is_file() and journal.path.read_bytes().startswith(records):
            return
        for path, data in ((journal.path, records), (self.folder / RUN_NAME, self._run())):
            with atomic_file(path) as partial:
                partial.write_bytes(data)

    def update(self) -> int:
        """Copies the whole lines of the journal; returns their bytes."""
        journal = Journal(self.folder)
        records = journal.path.read_bytes() if journal.path.is_file() else b""
        size = records.rfind(b"\n") + 1
        copied = self._copied()
        if size and size not in copied:
            for name, data in ((RUN_NAME, (self.folder / RUN_NAME).read_bytes()), (_name(size), records[:size])):
                with storage.writing(storage.join(self.url, name)) as partial:
                    partial.write_bytes(data)
        for other in sorted(copied)[:-1]:  # the longest but this one may be what another reads just now
            storage.remove(storage.join(self.url, copied[other]))
        return size

    def _run(self) -> bytes:
        return storage.read(storage.join(self.url, RUN_NAME))

    def _copied(self) -> dict[int, str]:
        """The names of the copies, by their bytes."""
        found = {name: _RECORDS.fullmatch(name) for name in storage.sizes(self.url)}
        return {int(match[1]): name for name, match in found.items() if match}


def _name(size: int) -> str:
    return f"records-{size:012d}.jsonl"
