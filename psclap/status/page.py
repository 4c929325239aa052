"""The facts as one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from psclap.console import columns, shortened
from psclap.status.facts import Decision, DriftReport, Local, Run, Tracked, Version

_HASH = 8
WIDTH = 120
_DECISIONS = 3
_NAME, _ALIASES, _TITLE, _HOLDER, _STATE = 24, 32, 60, 60, 60
_RUN_METRICS = {"val/R_at_10": "val R@10", "val/MRR": "val MRR", "loss/total": "loss"}


def lines(local: Local, tracked: Tracked | None, failure: str | None, now: str) -> Iterator[str]:
    """The whole screen; `failure` says why `tracked` is None."""
    place = (tracked.store or "none yet; `dvc repro` makes one in mlflow/") if tracked else "does not answer"
    yield f"psclap status at {_time(now)}; tracking store: {place}"
    if failure:
        yield f"! {failure}"
        yield "! what follows is what this folder says; runs and models are in the store"
    if tracked:
        yield from ("", *_runs(tracked.runs), "", *_models(tracked))
    yield from ("", *_data(local))
    if tracked:
        yield from ("", _retraining(tracked))
    yield from _decisions(merged(tracked.decisions if tracked else (), local.decisions))
    yield _drift(local.drift)
    yield from (f"! {note}" for note in local.notes)


def merged(of_store: Sequence[Decision], of_disk: Sequence[Decision]) -> list[Decision]:
    """The decisions of both, the newest first, with the reasons that only the disk has."""
    found = {decision.id: decision for decision in of_store} | {decision.id: decision for decision in of_disk}
    return sorted(found.values(), key=lambda one: one.decided, reverse=True)


def _runs(runs: Sequence[Run]) -> Iterator[str]:
    if not runs:
        yield "RUNS      none"
        return
    metrics = {name: title for name, title in _RUN_METRICS.items() if any(name in run.metrics for run in runs)}
    yield "RUNS      the newest first; data: the beginning of its index's hash"
    rows = [
        [
            f"  {_time(run.started)}",
            _took(run),
            run.status.lower(),
            shortened(run.name, _NAME),
            _steps(run),
            *(f"{run.metrics[name]:.3f}" if name in run.metrics else "-" for name in metrics),
            _hash(run.data),
        ]
        for run in runs
    ]
    yield from columns(["  started", "took", "status", "name", "step", *metrics.values(), "data"], rows)


def _models(tracked: Tracked) -> Iterator[str]:
    if not tracked.versions:
        yield "MODELS    none registered"
        return
    counts = Counter(name for version in tracked.versions for name in version.metrics)
    names = [name for name, _ in counts.most_common()]
    yield "MODELS    in %, chance in brackets: R@10 of speech to caption by caption set, mean UAR of attributes"
    if tracked.has_more_models:
        yield "          only the models that changed last are shown"
    shown = [*_model_table(tracked.versions, names)]
    while names and max(map(len, shown)) > WIDTH:  # --json has them all
        shown = [*_model_table(tracked.versions, names := names[:-1])]
    yield from shown


def _model_table(versions: Sequence[Version], names: Sequence[str]) -> Iterator[str]:
    rows = [
        [
            f"  {shortened(version.model, _NAME)}",
            version.version,
            shortened(", ".join(version.aliases) or "-", _ALIASES),
            *(_beside_chance(version, name) for name in names),
            _hash(version.data),
            _time(version.promoted or version.registered),
        ]
        for version in versions
    ]
    titles = [name.removeprefix("R@10 ") for name in names]
    return columns(["  model", "", "alias", *titles, "data", "promoted or made"], rows)


def _beside_chance(version: Version, name: str) -> str:
    value, chance = version.metrics.get(name), version.chance.get(name)
    return "-" if value is None else f"{100 * value:.1f}" + ("" if chance is None else f" ({100 * chance:.1f})")


def _data(local: Local) -> Iterator[str]:
    data, lock = local.data, local.lock
    if data:
        splits = ", ".join(f"{name} {clips:,}" for name, clips in data.splits.items())
        yield (
            f"DATA      {data.path} {_hash(data.index_sha256)}: {data.clips:,} clips, {data.hours:.2f} h ({splits}), "
            f"{data.rejected:,} rejected"
        )
        yield f"          made {_time(data.made)}; {_soundness(data.soundness)}"
    else:
        yield "DATA      no shards in this folder (data/shards); run from where `dvc repro` runs"
    if lock is None:
        yield "          no dvc.lock in this folder"
        return
    state = "--dvc asks whether they are up to date"
    if local.changed is not None:
        state = f"`dvc repro` would run {', '.join(local.changed)}" if local.changed else "all up to date"
    yield f"          dvc.lock: {lock.stages} stages, written {_time(lock.written)}; {shortened(state, _STATE)}"


def _soundness(verdict: str | None) -> str:
    return f"its check then: {verdict.rstrip('.').lower()}" if verdict else "without a card, see `psclap data check`"


def _retraining(tracked: Tracked) -> str:
    found = tracked.retraining
    if found is None:
        return "RETRAIN   none is going on"
    beats = f", sign of life no. {found.heartbeat}" if found.heartbeat else ""
    return f"RETRAIN   going on since {_time(found.since)}: {shortened(found.holder, _HOLDER)}{beats}"


def _decisions(decisions: Sequence[Decision]) -> Iterator[str]:
    if not decisions:
        yield "DECIDED   nothing yet"
    for number, decision in enumerate(decisions[:_DECISIONS]):
        line = f"{'' if number else 'DECIDED':8}  {_time(decision.decided)}  {shortened(decision.title, _TITLE)}"
        more = f" (and {len(decision.reasons) - 1} more)" if len(decision.reasons) > 1 else ""
        room = WIDTH - len(line) - len(more) - 2
        yield line + (f": {shortened(decision.reasons[0], room)}{more}" if decision.reasons else "")


def _drift(report: DriftReport | None) -> str:
    if report is None:
        return "DRIFT     not measured; `psclap drift REFERENCE NEW --output runs/drift.json` does"
    verdict = f"{'DRIFTED' if report.drifted else 'no drift'}, headline {report.headline:.3f}"
    worst = f" ({report.worst})" if report.worst else ""
    return f"DRIFT     {_time(report.written)}  {verdict}{worst}: {shortened(report.new, _TITLE)}, see {report.path}"


def _steps(run: Run) -> str:
    if run.step is None:
        return "-"
    return f"{run.step:,}" + (f"/{run.max_steps:,}" if run.max_steps else "")


def _took(run: Run) -> str:
    if run.ended is None:
        return "-"
    seconds = (datetime.fromisoformat(run.ended) - datetime.fromisoformat(run.started)).total_seconds()
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _hash(sha256: str | None) -> str:
    return sha256[:_HASH] if sha256 else "-"


def _time(text: str) -> str:
    """To the minute.

    >>> _time("2026-11-22T03:52:57Z")
    '2026-11-22 03:52'
    """
    return text[:16].replace("T", " ")
