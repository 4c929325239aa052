"""What the workspace says of itself: shards, dvc.lock, decision records, the newest drift. No server is asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import yaml

from psclap.errors import first_line
from psclap.shards import SUMMARY_NAME
from psclap.status.facts import Data, Decision, DriftReport, Local, Lock, moment

T = TypeVar("T")

SHARDS, LOCK, RUNS = Path("data/shards"), Path("dvc.lock"), Path("runs")
_RECORDS, _DRIFTS = ("*/decisions/*/decision.json",), ("drift.json", "*/drift.json")
_CARD_NAME = "data_card.md"
_SOUNDNESS = re.compile(r"^## Soundness\n+(.+)$", re.MULTILINE)


class DvcError(Exception):
    """DVC cannot say."""


def local_facts(ask_dvc: bool, decisions: int) -> Local:
    """The facts of the current folder. What is not there is None; what cannot be read is told in `notes`."""
    notes: list[str] = []
    records = [_read(path, partial(_decision, path), notes) for path in _newest(_RECORDS, decisions)]
    drifts = [_read(path, partial(_drift, path), notes) for path in _newest(_DRIFTS, 1)]
    return Local(
        data=_read(SHARDS / SUMMARY_NAME, _data, notes),
        lock=_read(LOCK, _lock, notes),
        changed=_read(LOCK, _changed, notes) if ask_dvc else None,
        decisions=[record for record in records if record],
        drift=next(iter(drifts), None),
        notes=notes,
    )


def _read(path: Path, what: Callable[[], T], notes: list[str]) -> T | None:
    try:
        return what()
    except FileNotFoundError:
        pass
    except DvcError as error:
        notes.append(str(error))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        notes.append(f"{path} cannot be read: {type(error).__name__}: {first_line(error)}")
    return None


def _data() -> Data:
    path = SHARDS / SUMMARY_NAME
    summary = json.loads(path.read_text())
    splits = summary["splits"]
    card = SHARDS / _CARD_NAME
    found = _SOUNDNESS.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    return Data(
        str(SHARDS),
        summary["index_sha256"],
        summary["clips"],
        sum(split["hours"] for split in splits.values()),
        {name: split["clips"] for name, split in splits.items()},
        summary["rejected"],
        found[1].strip() if found else None,
        moment(path.stat().st_mtime),
    )


def _lock() -> Lock:
    stages = yaml.load(LOCK.read_text(), Loader=yaml.CSafeLoader)["stages"]
    return Lock(len(stages), moment(LOCK.stat().st_mtime))


def _changed() -> list[str]:
    """The stages that `dvc repro` would run."""
    done = subprocess.run([sys.executable, "-m", "dvc", "status", "--json"], capture_output=True, text=True)
    if done.returncode:
        raise DvcError(f"`dvc status` failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return sorted(json.loads(done.stdout))


def _decision(path: Path) -> Decision:
    record = json.loads(path.read_text())
    decision, challenger = record["decision"], record["grounds"]["challenger"]["uri"]
    decided = moment(datetime.fromisoformat(record["decided_at"]).timestamp())
    verdict = "promote" if decision["promote"] else "keep the champion"
    return Decision(record["id"], decided, f"{challenger}: {verdict}", decision["promote"], decision["reasons"])


def _drift(path: Path) -> DriftReport:
    found = json.loads(path.read_text())
    return DriftReport(
        str(path),
        moment(path.stat().st_mtime),
        *(found[name] for name in ("drifted", "headline", "worst")),
        *(found[side]["location"] for side in ("reference", "new")),
    )


def _newest(patterns: Sequence[str], count: int) -> list[Path]:
    """The files in RUNS that were written last."""
    written = [(path.stat().st_mtime, path) for pattern in patterns for path in RUNS.glob(pattern)]
    return [path for _, path in sorted(written, reverse=True)[:count]]
