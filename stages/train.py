"""Shards -> one trained variant: models/VARIANT (a checkpoint folder) and training/VARIANT (journal and curve)."""

import csv
import shutil
import subprocess
from pathlib import Path

from pipelines.tracking import TrackingStore
from pipelines.train import Run, train_variant
from psclap.config import Params
from psclap.files import atomic_folder, sha256_file
from psclap.shards.index import ShardIndex
from psclap.training.progress import headline
from psclap.training.spec import Training
from stages import LOCK, MODELS, RUN_STORAGE, SHARDS, TRACKING_STORE, TRAINING
from stages._main import run_stage


def main(params: Params, variant: str) -> None:
    store = TrackingStore.at(TRACKING_STORE)
    index = ShardIndex(SHARDS)
    run = Run(
        name=variant,
        training=Training(
            index.location,
            params.model,
            params.train[variant],
            params.seed,
            params.resources.loading,
            params.resources.checkpoints,
            params.resources.hang_timeout_s,
        ),
        resources=params.resources,
        storage=RUN_STORAGE,
        store=store,
        experiment=params.register.experiment,
        tags={"variant": variant, "data_index_sha256": index.sha256, **_versions()},
    )
    trained = train_variant(run, MODELS / variant)
    with atomic_folder(TRAINING / variant) as folder:
        shutil.copytree(trained.journal.folder, folder, dirs_exist_ok=True)
        _write_history(folder / "history.csv", trained.journal.history())
    best = f"best checkpoint, of step {trained.step}, in {MODELS / variant}"
    print(f"train: {variant}: {best}; {headline(trained.metrics)}")


_SOURCES = ("psclap", "pipelines", "stages", "params.yaml", "dvc.yaml", "requirements.lock")


def _versions() -> dict[str, str]:
    """What code and what data, by DVC's account, this is a run of."""
    versions = {
        "git_revision": _git("rev-parse", "HEAD"),
        "git_dirty": str(bool(_git("status", "--porcelain", "--", *_SOURCES))).lower(),
    }
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
