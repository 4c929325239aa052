"""The journal of a run: all there is to know of it, on disk, whatever becomes of the tracking server.

    run.json        what names the run: a uuid of our own, its experiment and name, when it was made
    records.jsonl   one JSON object a line, in the order of writing:
                    {"kind": "params" | "tags", "values": {...}}
                    {"kind": "metrics" | "system", "step": 10, "time_ms": ..., "values": {...}}
                    {"kind": "note", "text": "going on from step 200 of 1200", "time_ms": ...}
                    {"kind": "status", "status": "RUNNING" | "FINISHED" | "FAILED" | "KILLED", "time_ms": ...}

Lines are only added, each is on the disk before the call returns, and one that a kill tore is cut off by the next.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from psclap.errors import PsclapError
from psclap.files import write_json
from psclap.storage import redacted
from psclap.strict import flatten

RUN_NAME = "run.json"
RECORDS_NAME = "records.jsonl"

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
Record = dict[str, Any]


@dataclass(frozen=True)
class RunName:
    """What names a run wherever it is sent to; the uuid is unique, the others are for people."""

    uuid: str
    experiment: str
    name: str
    created_ms: int


@dataclass(frozen=True)
class Journal:
    """The journal in `folder`. Several processes may read and write it at once."""

    folder: Path

    @classmethod
    def start(cls, folder: Path, experiment: str, name: str) -> Journal:
        """A journal to write to: the one that is in `folder`, else a new one."""
        journal = cls(folder)
        if not (folder / RUN_NAME).is_file():
            write_json(folder / RUN_NAME, asdict(RunName(str(uuid.uuid4()), experiment, name, _now_ms())))
        return journal

    @property
    def run(self) -> RunName:
        """What names the run. Raises PsclapError where there is no journal."""
        path = self.folder / RUN_NAME
        try:
            return RunName(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise PsclapError(f"{self.folder} holds no journal of a run: {RUN_NAME}: {error}; train again") from error

    @property
    def path(self) -> Path:
        """The file of the records."""
        return self.folder / RECORDS_NAME

    def append(self, record: Record) -> None:
        """Adds a record; it is on the disk when this returns. Raises PsclapError where that cannot be."""
        if "values" in record:
            record = {**record, "values": {name: _to_json(value) for name, value in record["values"].items()}}
        line = json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        try:
            with open(self.path, "a+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                _cut_torn_line(stream)
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise PsclapError(
                f"the journal {self.path} cannot be written ({error.strerror or error}); make room and run it again: "
                "it goes on from the last checkpoint"
            ) from error

    def read(self, offset: int = 0, end: int | None = None) -> Iterator[tuple[Record, int]]:
        """Yields the whole records between two bytes, where records begin, each with the offset behind it."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as stream:
            stream.seek(offset)
            for line in stream:
                if not line.endswith(b"\n") or offset == end:  # the first: being written, or torn
                    return
                offset += len(line)
                record = json.loads(line)
                if record["kind"] in ("metrics", "system"):  # where float() undoes what JSON has no number for
                    record["values"] = {name: float(value) for name, value in record["values"].items()}
                yield record, offset

    def history(self) -> list[dict[str, float]]:
        """Every step with metrics as one row of `step` and its metrics, ascending."""
        rows: dict[int, dict[str, float]] = {}
        for record, _ in self.read():
            if record["kind"] == "metrics":
                rows.setdefault(record["step"], {"step": record["step"]}).update(record["values"])
        return [rows[step] for step in sorted(rows)]


class Tail:
    """Reads on in a journal, each time from where it stopped."""

    def __init__(self, journal: Journal):
        self._journal, self._offset = journal, 0

    def new(self) -> Iterator[Record]:
        """The records since the last call."""
        for record, end in self._journal.read(self._offset):
            self._offset = end
            yield record


class JournalTracker:
    """A Tracker that writes to a journal, and what is there already it does not write again.

    A training that was killed goes on from its last checkpoint and does the steps after it once more, with the
    same results: of each step's metrics, as of parameters, the journal keeps the first value. `copy` brings a copy
    that is kept elsewhere up to date.
    """

    def __init__(self, journal: Journal, copy: Callable[[], Any] | None = None):
        self._journal, self._copy = journal, copy
        self._params: set[str] = set()
        self._tags: dict[str, str] = {}
        self._steps: dict[int, frozenset[str]] = {}
        self._name_sets: dict[frozenset[str], frozenset[str]] = {}  # steps are many, their sets of names are few
        self._samples = 0
        for record, _ in journal.read():
            self._remember(record)

    def params(self, params: Mapping[str, Any]) -> None:
        new = {name: value for name, value in flatten(params, ".").items() if name not in self._params}
        self._write({"kind": "params", "values": new})

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        known = self._steps.get(step, frozenset())
        new = {name: float(value) for name, value in metrics.items() if name not in known}
        self._write({"kind": "metrics", "step": step, "time_ms": _now_ms(), "values": new})

    def tags(self, tags: Mapping[str, str]) -> None:
        new = {name: redacted(str(value)) for name, value in tags.items()}
        self._write({"kind": "tags", "values": {k: v for k, v in new.items() if self._tags.get(k) != v}})

    def system(self, metrics: Mapping[str, float]) -> None:
        """A sample of how the machine does. It belongs to no step of the training: samples are counted."""
        self._write({"kind": "system", "step": self._samples, "time_ms": _now_ms(), "values": dict(metrics)})

    def note(self, text: str) -> None:
        self._write({"kind": "note", "text": redacted(text), "time_ms": _now_ms()})

    def secure(self) -> None:
        """Each line is on the disk; here it is in the copy too, where there is one."""
        if self._copy:
            self._copy()

    def status(self, status: Status) -> None:
        """How the run stands from now on."""
        self._write({"kind": "status", "status": status, "time_ms": _now_ms()})

    def _write(self, record: Record) -> None:
        if record.get("values") != {}:
            self._journal.append(record)
            self._remember(record)

    def _remember(self, record: Record) -> None:
        match record["kind"]:
            case "params":
                self._params |= set(record["values"])
            case "tags":
                self._tags |= record["values"]
            case "metrics":
                names = self._steps.get(record["step"], frozenset()) | set(record["values"])
                self._steps[record["step"]] = self._name_sets.setdefault(names, names)
            case "system":
                self._samples = record["step"] + 1


def _cut_torn_line(stream: BinaryIO) -> None:
    """Takes away what follows the last newline: its writer is dead, since it no longer holds the lock."""
    end = stream.seek(0, os.SEEK_END)
    if end == 0:
        return
    stream.seek(end - 1)
    if stream.read(1) != b"\n":
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)


def _to_json(value: Any) -> Any:
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return redacted(str(value))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
