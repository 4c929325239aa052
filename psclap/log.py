"""What a run tells: lines for people, or, with PSCLAP_LOG=json, one JSON object a line for machines.

    {"time": "2026-11-22T03:52:57.123Z", "level": "info", "run": "20261122T035257-9f1c02aa", "stage": "train/combined",
     "message": "[combined] step 10/1200  loss 2.3100", "fields": {"step": 10, "loss/total": 2.31}}

Which run and stage a line belongs to is in the environment, PSCLAP_RUN_ID and PSCLAP_STAGE, so that child processes
and Ray's workers tell it too. What happens goes to standard output; errors, and how far something is, go to standard
error; both are on the logger "psclap" of the standard `logging`, and whoever gives that handlers of their own has it
all there. A line that cannot be written is dropped: the work goes on. No line holds a secret (`storage.redacted`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from numbers import Integral, Real
from typing import Any, TextIO

from psclap.errors import PsclapError
from psclap.storage import redacted

FORM_VARIABLE = "PSCLAP_LOG"
RUN_VARIABLE = "PSCLAP_RUN_ID"
STAGE_VARIABLE = "PSCLAP_STAGE"
RUN_TAG = "psclap.run_id"
"""The tag of an MLflow run that holds the id of the run of the pipeline it was made in."""

_FORMS = ("text", "json")
_RUN_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)


def begin(stage: str) -> None:
    """Sets the stage of what this process, and those that it starts, tell from now on; makes a run id if there is none.

    Raises PsclapError where PSCLAP_LOG or PSCLAP_RUN_ID hold what they may not.
    """
    form, run = os.environ.get(FORM_VARIABLE) or _FORMS[0], run_id() or _new_id()
    if form not in _FORMS:
        raise PsclapError(f"{FORM_VARIABLE} {form!r} must be one of {', '.join(_FORMS)}")
    if not _RUN_ID.fullmatch(run):
        raise PsclapError(
            f"{RUN_VARIABLE} {redacted(run)!r} must be 1 to 100 letters, digits and . _ : -, or not be set"
        )
    os.environ[RUN_VARIABLE], os.environ[STAGE_VARIABLE] = run, stage


def run_id() -> str | None:
    """The id of the run of the pipeline that this process is part of; None before `begin`."""
    return os.environ.get(RUN_VARIABLE) or None


def tags() -> dict[str, str]:
    """What an MLflow run is tagged with so that it is found by the id of the run of the pipeline."""
    found = run_id()
    return {RUN_TAG: found} if found else {}


def environment() -> dict[str, str]:
    """What a process on another machine needs in its environment to tell the same run and stage."""
    return {name: os.environ[name] for name in (FORM_VARIABLE, RUN_VARIABLE, STAGE_VARIABLE) if os.environ.get(name)}


def is_json() -> bool:
    """Whether machines read it: then no bar is drawn."""
    return os.environ.get(FORM_VARIABLE) == "json"


def info(message: str, /, **fields: Any) -> None:
    """Tells what happened; people see the message alone."""
    _log(logging.INFO, message, fields)


def warning(message: str, /, **fields: Any) -> None:
    """Tells what somebody may want to look at; the work goes on."""
    _log(logging.WARNING, message, fields)


def error(message: str, /, **fields: Any) -> None:
    """Tells what went wrong."""
    _log(logging.ERROR, message, fields)


def progress(message: str, /, **fields: Any) -> None:
    """Tells how far something is; on standard error, since nobody keeps it."""
    _log(logging.INFO, message, fields, is_progress=True)


def failed(error: BaseException, **fields: Any) -> None:
    """Tells what ends a command: the sentence of a PsclapError; of anything else, which is a bug, the traceback too."""
    if isinstance(error, PsclapError):
        _log(logging.ERROR, str(error), fields, text=f"error: {error}")
        return
    trace = "".join(traceback.format_exception(error)).rstrip()
    _log(logging.ERROR, f"{type(error).__name__}: {error}", {**fields, "traceback": trace}, text=trace)


@contextmanager
def answering() -> Iterator[None]:
    """For a command whose standard output is its answer: in the `with` block all lines go to standard error."""
    global _answers
    before, _answers = _answers, True
    try:
        yield
    finally:
        _answers = before


_answers = False


def _log(
    level: int, message: str, fields: Mapping[str, Any], is_progress: bool = False, text: str | None = None
) -> None:
    logger = logging.getLogger("psclap")
    if not logger.handlers:
        logger.addHandler(_Handler())
        logger.setLevel(logging.INFO)
        logger.propagate = False  # a handler of the root logger would tell it twice
    logger.log(level, message, extra={"fields": fields, "is_progress": is_progress, "text": text})


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        is_aside = record.levelno >= logging.ERROR or getattr(record, "is_progress", False) or _answers
        try:
            _write(sys.stderr if is_aside else sys.stdout, _as_json(record) if is_json() else _as_text(record))
        except Exception:  # of a record that others made wrongly
            self.handleError(record)


def _as_text(record: logging.LogRecord) -> str:
    return redacted(getattr(record, "text", None) or record.getMessage())


def _as_json(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    line = {
        "time": time.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "run": run_id(),
        "stage": os.environ.get(STAGE_VARIABLE),
        "message": redacted(record.getMessage()),
        "fields": _plain(getattr(record, "fields", {})),
    }
    return json.dumps(line)


def _plain(value: Any) -> Any:
    """A value as JSON has it: numbers as numbers, those that JSON has not, and all that is unknown, as text."""
    match value:
        case bool() | None:
            return value
        case Integral():
            return int(value)
        case Real():
            return float(value) if math.isfinite(value) else str(float(value))
        case Mapping():
            return {redacted(str(key)): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
    try:
        return redacted(str(value))
    except Exception:  # of somebody's __str__
        return f"<{type(value).__name__}>"


def _write(stream: TextIO | None, line: str) -> None:
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        with _above_bars(stream):
            stream.write(f"{line}\n".encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
    except (OSError, ValueError):  # nobody reads it any more, the disk is full, the file is closed
        _forget(stream)


@contextmanager
def _above_bars(stream: TextIO) -> Iterator[None]:
    if "tqdm" not in sys.modules:  # then there is no bar
        yield
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=stream):
        yield


def _forget(stream: TextIO) -> None:
    """Empties a stream of what it could not write: at its end Python would try once more, and fail with status 120."""
    with suppress(OSError, ValueError):
        number = stream.fileno()
        kept, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, number)
            stream.flush()
        finally:
            os.dup2(kept, number)
            os.close(kept)
            os.close(nowhere)


def _new_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
