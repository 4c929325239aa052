"""Shards -> one trained variant: models/VARIANT (a checkpoint folder) and training/VARIANT (journal and curve)."""

import csv
import os
import shutil
import subprocess
from pathlib import Path

from pipelines.tracking import TrackingStore
from pipelines.train import Run, train_variant
from psclap import log
from psclap.config import Params
from psclap.files import atomic_folder, sha256_file
from psclap.shards.index import ShardIndex
from psclap.training.dual_encoder import DualEncoderRecipe
from psclap.training.progress import headline
from psclap.training.recipe import Recipe
from psclap.training.spec import Training
from stages import LOCK, MODELS, RUN_STORAGE, SHARDS, TRACKING_STORE, TRAINING
from stages._main import run_stage


def main(params: Params, variant: str) -> None:
    recipe = DualEncoderRecipe(params.model, params.train[variant])
    train(params, variant, recipe, SHARDS, MODELS / variant, TRAINING / variant)


def train(params: Params, name: str, recipe: Recipe, shards: Path, model: Path, training: Path) -> None:
    """Trains by a recipe on the clips of `shards`; leaves the best in `model`, journal and curve in `training`."""
    index = ShardIndex(shards)
    run = Run(
        name=name,
        training=Training(
            index.location,
            recipe,
            params.seed,
            params.resources.loading,
            params.resources.checkpoints,
            params.resources.hang_timeout_s,
        ),
        resources=params.resources,
        storage=RUN_STORAGE,
        store=TrackingStore.at(TRACKING_STORE),
        experiment=params.register.experiment,
        tags={"variant": name, "data_index_sha256": index.sha256, **_versions()},
    )
    trained = train_variant(run, model)
    with atomic_folder(training) as folder:
        shutil.copytree(trained.journal.folder, folder, dirs_exist_ok=True)
        _write_history(folder / "history.csv", trained.journal.history())
    best = f"best checkpoint, of step {trained.step}, in {model}"
    log.info(f"train: {name}: {best}; {headline(trained.metrics)}", step=trained.step, metrics=trained.metrics)


_SOURCES = ("psclap", "pipelines", "stages", "params.yaml", "dvc.yaml", "requirements.lock")


def _versions() -> dict[str, str]:
    """What code and what data, by DVC's account, this is a run of."""
    if revision := os.environ.get("PSCLAP_REVISION"):  # an image has the code of a commit, and no repository
        versions = {"git_revision": revision}
    else:
        dirty = bool(_git("status", "--porcelain", "--", *_SOURCES))
        versions = {"git_revision": _git("rev-parse", "HEAD"), "git_dirty": str(dirty).lower()}
    if LOCK.is_file():
        versions["dvc_lock_sha256"] = sha256_file(LOCK)
    return versions


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def _write_history(path: Path, rows: list[dict[str, float]]) -> None:
    # Left to the journal is what differs between equal runs: speeds, and shares since the last interrupt.
    columns = sorted(
        {name for row in rows for name in row if not name.startswith(("speed/", "batch_share/"))} - {"step"}
    )
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, ["step", *columns], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    run_stage(main)
