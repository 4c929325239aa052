"""A script: a gate that is killed as soon as it has changed anything that no try before it has, until it is through.

It is given the folder of a project with registered models, a file of a RetrainConfig, a variant, and a folder of ready
reports; it leaves in aliases.jsonl what champion and previous were after every try, and prints how the last one ended.
Each try is a fork, which has the imports already.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

import pipelines.gate
from pipelines.gate import pass_gate
from pipelines.lease import leased
from pipelines.notes import DECISION_TAG
from pipelines.promotion import CHALLENGER, CHAMPION, PREVIOUS, PROMOTED_TAG, REPLACED_TAG, standing
from pipelines.tracking import TrackingStore
from psclap.retraining.config import load_retrain_config
from psclap.retraining.record import Record

CHANGES = [
    *((MlflowClient, name) for name in ("create_experiment", "delete_experiment", "set_registered_model_alias")),
    *((MlflowClient, name) for name in ("set_model_version_tag", "create_run", "log_batch", "log_artifacts")),
    (MlflowClient, "set_terminated"),
    (pipelines.gate, "evaluate_to_folder"),
    (Record, "write"),
]


TOLD = {CHALLENGER, CHAMPION, PREVIOUS, DECISION_TAG, PROMOTED_TAG, REPLACED_TAG}


def made_before(reports: Path) -> Callable[..., None]:
    """An evaluation in whose place a report of the same model on the same test set is copied, by the version."""

    def evaluate_to_folder(folder: Path, title: str, *_: Any) -> None:
        shutil.copytree(reports / title.rsplit("/", 1)[1], folder)

    return evaluate_to_folder


def die_of_what_is_new(known: Path) -> None:
    """Kills this process as soon as it has made a change that is not in the list of `known` ones, which it joins."""
    for owner, name in CHANGES:
        setattr(owner, name, _deadly(getattr(owner, name), name, known))


def _deadly(original: Callable[..., Any], name: str, known: Path) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        change = f"{name} {_told(args)}"
        if change not in known.read_text().splitlines():
            with known.open("a") as stream:
                stream.write(f"{change}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def _told(args: tuple[Any, ...]) -> str:
    """What tells a call from others of its name: the alias, the tag, the report; not what differs from try to try."""
    names = [argument.name if isinstance(argument, Path) else argument for argument in args]
    return next((name for name in names if isinstance(name, str) and name in TOLD), "")


def forked(act: Callable[[], int]) -> int:
    """What a child ended with that did something; less than 0: the signal that killed it."""
    child = os.fork()
    if child == 0:
        os._exit(act())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, config_path: Path, variant: str, reports: Path) -> None:
    os.chdir(folder)
    pipelines.gate.evaluate_to_folder = made_before(reports)  # type: ignore[assignment]
    config = load_retrain_config(config_path)
    store = TrackingStore.at(Path("mlflow"))

    def attempt() -> int:
        with leased(store, "psclap-retrain-lock"):
            outcome = pass_gate(config, store, variant)
        return ["promoted", "kept", "nothing new"].index(outcome)

    def note() -> int:
        now = standing(store.client(), config.variants[variant].model)
        with open("aliases.jsonl", "a") as stream:
            stream.write(json.dumps([now.champion, now.previous]) + "\n")
        return 0

    known = Path("changes.txt")
    known.touch()
    while True:
        status = forked(lambda: die_of_what_is_new(known) or attempt())  # type: ignore[func-returns-value]
        forked(note)
        if status != -signal.SIGKILL:
            print(json.dumps({"status": status, "killed_after": known.read_text().splitlines()}))
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
