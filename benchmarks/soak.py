"""A training that is killed again and again, against the same training left alone: do they end alike, to the bit?

Each kill takes, by lot, a worker of Ray's or the whole run with its driver, at a random moment. A run whose driver
was killed is started again. Prints what was killed, what it cost, and whether model, optimiser and history are equal.

    python benchmarks/soak.py --kills 20 --steps 1500
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipelines.tracking import TrackingStore
from pipelines.train import Run, train_variant
from psclap.config import load_params
from psclap.loop_config import CheckpointConfig
from psclap.training.dual_encoder import DualEncoderRecipe
from psclap.training.journal import Journal
from psclap.training.spec import Training

_DRIVER = "--driver"


def small_run(folder: Path, shards: Path, steps: int) -> Run:
    """The demo's Intrinsic variant with a moving average and dropout, a checkpoint every 20 steps."""
    params = load_params("params.yaml")
    config = dataclasses.replace(
        params.train["intrinsic"], max_steps=steps, validate_every=steps // 5, ema_decay=0.99, log_every=10
    )
    model = dataclasses.replace(params.model, projection_dropout=0.1)
    recipe = DualEncoderRecipe(model, config)
    training = Training(shards, recipe, params.seed, checkpoints=CheckpointConfig(every_steps=20), hang_timeout_s=60.0)
    resources = dataclasses.replace(params.resources, max_failures=1000)
    store = TrackingStore.at(folder / "mlflow")
    return Run("soak", training, resources, folder / "runs", store, "soak", tags={})


def start(run: Run, folder: Path) -> subprocess.Popen[bytes]:
    """The run's driver, in a process group of its own."""
    (folder / "run.pickle").write_bytes(pickle.dumps(run))
    with (folder / "log").open("ab") as log:
        command = [sys.executable, __file__, _DRIVER, str(folder)]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def drive(folder: Path) -> None:
    """What a driver process does."""
    train_variant(pickle.loads((folder / "run.pickle").read_bytes()), folder / "model")


def workers_of(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Ray Train's worker processes of one driver."""
    try:
        family = psutil.Process(driver.pid).children(recursive=True)
        return [process for process in family if "RayTrainWorker" in " ".join(process.cmdline())]
    except psutil.NoSuchProcess:
        return []


def disturb(run: Run, folder: Path, kills: int, moments: random.Random) -> dict[str, int]:
    """Runs to the end under so many kills; counts them."""
    counts = {"worker": 0, "whole run": 0}
    driver = start(run, folder)
    while sum(counts.values()) < kills and driver.poll() is None:
        time.sleep(moments.uniform(1.0, 4.0))
        workers = workers_of(driver)
        if not workers:
            continue
        if moments.random() < 0.5:
            moments.choice(workers).send_signal(signal.SIGKILL)
            counts["worker"] += 1
            time.sleep(8.0)  # until Ray has noticed
        else:
            family = psutil.Process(driver.pid).children(recursive=True)
            os.kill(driver.pid, signal.SIGKILL)
            for process in family:
                if process.is_running():
                    process.kill()
            driver.wait()
            counts["whole run"] += 1
            driver = start(run, folder)
    if driver.wait():
        sys.exit((folder / "log").read_text()[-5000:])
    return counts


def outcome(run: Run, folder: Path) -> dict[str, str]:
    """Hashes of what a run leaves."""
    (journal,) = run.storage.glob("soak-*/journal")
    rows = [
        {name: value for name, value in row.items() if not name.startswith("speed/")}
        for row in Journal(journal).history()
    ]
    files = {name: (folder / "model" / name).read_bytes() for name in ("model.safetensors", "trainer.safetensors")}
    return {name: hashlib.sha256(data).hexdigest() for name, data in {**files, "history": repr(rows).encode()}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument(_DRIVER, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.driver:
        drive(arguments.driver)
        return
    with tempfile.TemporaryDirectory() as name:
        ends, seconds, counts = {}, {}, {}
        for kind, kills in (("left alone", 0), ("killed", arguments.kills)):
            folder = Path(name) / kind.replace(" ", "-")
            folder.mkdir()
            run = small_run(folder, arguments.shards.absolute(), arguments.steps)
            begin = time.perf_counter()
            counts[kind] = disturb(run, folder, kills, random.Random(arguments.seed))
            seconds[kind] = time.perf_counter() - begin
            ends[kind] = outcome(run, folder)
    print("| run | workers killed | whole runs killed | seconds | model, optimiser, history |")
    print("|---|---|---|---|---|")
    for kind, end in ends.items():
        alike = "identical" if end == ends["left alone"] else "DIFFERENT"
        print(f"| {kind} | {counts[kind]['worker']} | {counts[kind]['whole run']} | {seconds[kind]:.0f} | {alike} |")
    if ends["killed"] != ends["left alone"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
