"""The facts of a status, as plain values. Times are UTC, in ISO 8601 to the second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Run:
    """A run of the tracking store; `metrics` are its last values by name, `data` the hash of the index it is of."""

    id: str
    name: str
    experiment: str
    status: str
    started: str
    ended: str | None
    step: int | None
    max_steps: int | None
    metrics: Mapping[str, float]
    data: str | None


@dataclass(frozen=True)
class Version:
    """A version of a registered model, with the aliases that name it; `chance` is what guessing gives."""

    model: str
    version: str
    aliases: Sequence[str]
    registered: str
    promoted: str | None
    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    data: str | None


@dataclass(frozen=True)
class Decision:
    """What was decided about a challenger; a record on disk and a run of the store with one id are one decision."""

    id: str
    decided: str
    title: str
    promote: bool
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class Retraining:
    """A retraining that is going on: which process, since when, and the count of its signs of life."""

    holder: str
    since: str
    heartbeat: str | None


@dataclass(frozen=True)
class Tracked:
    """What the tracking store knows; None of `store` is that there is none yet."""

    store: str | None
    runs: Sequence[Run] = ()
    versions: Sequence[Version] = ()
    has_more_models: bool = False
    decisions: Sequence[Decision] = ()
    retraining: Retraining | None = None


@dataclass(frozen=True)
class Data:
    """The shards in the workspace. `soundness` is what their check said when they were made."""

    path: str
    index_sha256: str
    clips: int
    hours: float
    splits: Mapping[str, int]
    rejected: int
    soundness: str | None
    made: str


@dataclass(frozen=True)
class Lock:
    """dvc.lock: its stages, and when it was written."""

    stages: int
    written: str


@dataclass(frozen=True)
class DriftReport:
    """The newest output of `psclap drift --output`."""

    path: str
    written: str
    drifted: bool
    headline: float
    worst: str | None
    reference: str
    new: str


@dataclass(frozen=True)
class Local:
    """What lies in the workspace; `notes` are sentences about what cannot be read.

    `changed` are the stages that `dvc repro` would run, None where DVC was not asked or cannot say.
    """

    data: Data | None = None
    lock: Lock | None = None
    changed: Sequence[str] | None = None
    decisions: Sequence[Decision] = ()
    drift: DriftReport | None = None
    notes: Sequence[str] = ()


def moment(seconds: float) -> str:
    """A time since 1970 as text.

    >>> moment(1700000000.9)
    '2023-11-14T22:13:20Z'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
