"""The scheduled retraining: new data in, `dvc repro`, a gate, and a new champion, or the old one.

    python -m pipelines.retrain --config retrain.yaml [--dry-run | --rollback [--to VERSION]]

It runs in the project's folder. Every step can be done again: killed at any moment and started again, it goes on, and
makes the same decision on the same grounds. The last step, the champion's alias, is the one that counts; a model that
failed, or is worse, does not get there.

    0    a challenger became the champion, or there was nothing new
    10   a challenger did not pass the gate; the champion stays
    11   the data is not sound; nothing was trained
    1    something has to be mended by a person
    75   try again later: another retraining is at work, or the tracking store does not answer
    130  interrupted; the same command goes on
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipelines.dvc import DvcError, dvc, stages_to_run
from pipelines.gate import ALIASES_WAIT_S, Challenge, Outcome, aliases_lease, is_registered, open_test_sets, pass_gate
from pipelines.lease import LeaseError, leased
from pipelines.notes import DRIFT_TAG, Note
from pipelines.promotion import CHALLENGER, CHAMPION, PREVIOUS, roll_back, standing
from pipelines.tracking import TrackingStore, impatient
from psclap import log, storage
from psclap.config import load_params
from psclap.drift import compare_scores
from psclap.drift.result import THRESHOLD
from psclap.errors import ConfigError, PsclapError
from psclap.files import atomic_file, sha256_file, write_json
from psclap.retraining.config import FetchConfig, RetrainConfig, load_retrain_config
from psclap.retraining.data import UnsoundError, check_data
from psclap.storage import redacted

DONE, KEPT, UNSOUND, FAILED, LATER, INTERRUPTED = 0, 10, 11, 1, 75, 130

_PARAMS, _TRACKING_FOLDER = Path("params.yaml"), Path("mlflow")
_PREPARE, _SHARD = "prepare", "shard"
_PREPARED_NAME = "prepared.json"
_PASSING = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
_OUTSIDE = (MlflowException, SQLAlchemyError, OSError)
"""Errors of others, whose sentence is enough."""


def retrain(config: RetrainConfig, store: TrackingStore) -> dict[str, Outcome]:
    """Runs the whole workflow; returns the outcome of each variant.

    Raises UnsoundError, LeaseError, DvcError, or another PsclapError; the champions are then what they were.
    """
    check_project(config)
    with leased(store, f"{config.experiment}-lock"):
        fetch(config.fetch)
        if has_drifted(config, store):
            train(config)
        # What an earlier run has trained, and was stopped before it judged, is judged now.
        return {name: pass_gate(config, store, name) for name in config.variants if is_registered(name)}


def train(config: RetrainConfig) -> None:
    """`dvc repro`, with the data checked before anything is trained on it. Raises UnsoundError, DvcError."""
    prepare(config)
    dvc("repro", _SHARD)
    check_data(config.data, config.test_sets)
    log.info(f"retrain: the data in {config.data.shards} is sound")
    dvc("repro", *config.targets)


def check_project(config: RetrainConfig) -> None:
    """Raises PsclapError for what would fail after hours: no project, other names, a test set that is not there.

    Also where the project's `dvc repro` would move the champion itself, past the gate.
    """
    if not Path("dvc.yaml").is_file():
        raise PsclapError(f"there is no dvc.yaml in {Path.cwd()}; run it in the folder of the project")
    params = load_params(_PARAMS)
    if params.register.alias in (CHAMPION, PREVIOUS):
        raise ConfigError(
            f"{_PARAMS}: register.alias {params.register.alias!r} would put every new model into use, whatever the "
            f"gate says; write `alias: {CHALLENGER}`"
        )
    for name, variant in config.variants.items():
        if name not in params.train:
            raise ConfigError(f"variants.{name}: {_PARAMS} has the variants {', '.join(params.train)}")
        if variant.model != f"{params.register.name_prefix}-{name}":
            raise ConfigError(
                f"variants.{name}.model: {_PARAMS} registers it as {params.register.name_prefix}-{name!s}, not "
                f"{variant.model!r}; correct the one or the other"
            )
        if all(config.test_sets[test_set].shards != config.data.shards for test_set in variant.policy):
            open_test_sets(config, name)  # those that `dvc repro` makes are not there yet


def fetch(config: FetchConfig) -> None:
    """Brings new data in."""
    if config.pull:
        dvc("pull", *config.pull)
    if config.update:
        dvc("update", *config.update)
    for copy in config.copies:
        path = Path(copy.path)
        try:
            with storage.reaching(copy.url):
                content = storage.read(copy.url)
        except FileNotFoundError as error:
            raise PsclapError(f"fetch.copies: there is no {redacted(copy.url)}; correct its url") from error
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as partial:
                partial.write_bytes(content)
            log.info(f"retrain: {path} is new, from {redacted(copy.url)}")


def prepare(config: RetrainConfig) -> None:
    """Reads the corpus anew where something that was fetched has changed: `prepare` does not depend on it.

    What it was read of last is written down after it was read, so that a kill in between does not lose new data.
    """
    note = Path(config.work) / _PREPARED_NAME
    names = [copy.path for copy in config.fetch.copies]
    for target in (*config.fetch.pull, *config.fetch.update):
        names.append(target if target.endswith(".dvc") else f"{target}.dvc")
    hashes = {name: sha256_file(name) for name in names if Path(name).is_file()}
    if hashes and (not note.is_file() or json.loads(note.read_text()) != hashes):
        dvc("repro", "--force", "--single-item", _PREPARE)
        write_json(note, hashes)


def has_drifted(config: RetrainConfig, store: TrackingStore) -> bool:
    """Whether new data drifted from the training set's, noted in the store; where nobody asks, it counts as drifted."""
    if config.drift is None:
        return True
    threshold = THRESHOLD if config.drift.start_above is None else config.drift.start_above
    drift = compare_scores(config.drift.reference, config.drift.new, threshold=threshold)
    path = Path(config.work).absolute() / "drift.json"
    write_json(path, drift.to_dict())
    identity = sha256_file(path)[:12]
    verdict = f"{'drift' if drift.drifted else 'no drift'}, {drift.headline:.3f}"
    tags = {"psclap.drifted": str(drift.drifted).lower(), **log.tags()}
    Note(DRIFT_TAG, identity, verdict, int(time.time() * 1000), tags, drift.metrics(), path).write(
        store, config.experiment
    )
    log.info(f"retrain: {redacted(config.drift.new)} against {redacted(config.drift.reference)}: {verdict}")
    return drift.drifted


def preview(config: RetrainConfig, store: TrackingStore) -> None:
    """Says what a retraining would do now; changes nothing, fetches nothing, trains nothing."""
    check_project(config)
    stages = stages_to_run(config.targets)
    log.info(f"retrain: dvc repro would run {', '.join(stages) if stages else 'nothing'}, before new data is fetched")
    client = store.client()
    for variant, policy in config.variants.items():
        now = standing(client, policy.model)
        log.info(f"retrain: {variant}: champion {now.champion}, challenger {now.challenger}, previous {now.previous}")
        # DVC does not list what follows from a stage whose outputs it does not know yet.
        if {_PREPARE, _SHARD, *(f"{stage}@{variant}" for stage in ("train", "evaluate", "register"))} & {*stages}:
            log.info(f"retrain: {variant}: a new model would be trained, and judged then")
            continue
        challenge = Challenge.of(config, client, variant) if is_registered(variant) else None
        if challenge is None:
            log.info(f"retrain: {variant}: the champion is of the newest training; nothing new")
            continue
        with tempfile.TemporaryDirectory() as folder:
            record = challenge.judge(Path(folder), {})
        log.info(f"retrain: {variant}: the decision would be: {record.title}:")
        for reason in record.decision.reasons:
            log.info(f"retrain:     {reason}")


def main(
    config: Annotated[Path, typer.Option(help="What to fetch, what to train, and the policy; see docs/retraining.md.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Put the previous champion back into use, and this one out for good.")
    ] = False,
    variant: Annotated[
        str | None, typer.Option(help="With --rollback: of which; needed where there are several.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="With --rollback: the version to go back to.")] = None,
) -> None:
    """Fetch, train, judge, and put into use what is better, in the project's folder."""
    try:
        log.begin("retrain")
        raise typer.Exit(_run(load_retrain_config(config), dry_run, rollback, variant, to))
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        log.error("interrupted; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        status = _exit_status(error)
        log.failed(PsclapError(str(error)) if isinstance(error, _OUTSIDE) else error, status=status)
        raise typer.Exit(status) from None


def _run(config: RetrainConfig, dry_run: bool, rollback: bool, variant: str | None, to: str | None) -> int:
    if ((to or variant) and not rollback) or (dry_run and rollback):
        raise ConfigError("--to and --variant go with --rollback, and --dry-run goes alone")
    store = TrackingStore.at(_TRACKING_FOLDER)
    if rollback:
        _roll_back(config, store, variant, to)
        return DONE
    if dry_run:
        preview(config, store)
        return DONE
    outcomes = retrain(config, store)
    log.info("retrain: " + ("; ".join(f"{name}: {outcome}" for name, outcome in outcomes.items()) or "nothing new"))
    return KEPT if "kept" in outcomes.values() else DONE


def _roll_back(config: RetrainConfig, store: TrackingStore, variant: str | None, to: str | None) -> None:
    if variant is None and len(config.variants) == 1:
        (variant,) = config.variants
    if variant is None or variant not in config.variants:
        raise ConfigError(f"--variant {variant!r} must be one of {', '.join(config.variants)}")
    model = config.variants[variant].model
    with leased(store, aliases_lease(config), ALIASES_WAIT_S) as lease:
        left, target = roll_back(lease, model, to)
    log.info(f"retrain: {model}@{CHAMPION} is version {target} again; version {left} will not be promoted any more")


def _exit_status(error: Exception) -> int:
    """What a scheduler is to do about an error."""
    if isinstance(error, UnsoundError):
        return UNSOUND
    if isinstance(error, ConfigError):
        return FAILED
    if isinstance(error, LeaseError) or (isinstance(error, DvcError) and error.passing):
        return LATER
    if isinstance(error, MlflowException) and error.error_code in _PASSING:
        return LATER
    return FAILED if _store_answers() else LATER


def _store_answers() -> bool:
    """Whether the tracking store does; a stage that failed for its sake ends like one that failed for another."""
    try:
        with impatient():
            TrackingStore.at(_TRACKING_FOLDER).client().search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError):
        return False
    return True


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(main)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()
