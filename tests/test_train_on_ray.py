"""Ray Train around the loop, disturbed: the run ends as the one that nobody disturbed, to the bit."""

import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from small_training import at, mini

from pipelines.cluster import ray_session
from pipelines.tracking import TrackingStore
from pipelines.train import Run, clear_finished, train_variant
from psclap.config import PRESETS_FOLDER, CheckpointConfig, parse_params
from psclap.errors import PsclapError
from psclap.training.journal import Journal

pytestmark = pytest.mark.slow

STEPS = 120


def small_run(shards: Path, folder: Path, **resources: Any) -> Run:
    """Two workers, a checkpoint every 4 steps."""
    mapping = yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())
    changes = {"max_steps": STEPS, "validate_every": 20, "checkpoints": CheckpointConfig(every_steps=4)}
    return Run(
        name="small",
        training=replace(mini(mapping, shards, **changes), hang_timeout_s=120.0),
        resources=replace(parse_params(mapping).resources, cpu_workers=2, max_failures=3, **resources),
        storage=folder / "runs",
        store=TrackingStore(f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri()),
        experiment="disturbed",
        tags={},
    )


@pytest.fixture
def run(mini_shards: Path, tmp_path: Path) -> Run:
    return small_run(mini_shards, tmp_path)


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session():
        yield


def products(folder: Path) -> dict[str, bytes]:
    return {
        name: (folder / name).read_bytes() for name in ("model.safetensors", "trainer.safetensors", "progress.json")
    }


def journal_of(run: Run) -> Journal:
    (folder,) = run.storage.glob("small-*/journal")
    return Journal(folder)


def workers() -> list[psutil.Process]:
    """The processes of Ray Train's workers, on this machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::") and "RayTrainWorker" in title:
            found.append(process)
    return found


def after_step(run: Run, step: int, act: Callable[[], None]) -> threading.Thread:
    """Acts, in the background, as soon as the journal holds a step."""

    def wait() -> None:
        for _ in range(12000):
            paths = list(run.storage.glob("small-*/journal"))
            if paths and any(row["step"] >= step for row in Journal(paths[0]).history()):
                act()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def losses(run: Run) -> dict[float, float]:
    return {row["step"]: row["loss/total"] for row in journal_of(run).history()}


@pytest.fixture(scope="module")
def expected(mini_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = small_run(mini_shards, folder)
    with ray_session():
        train_variant(run, folder / "model")
    assert len(losses(run)) == STEPS
    return {"products": products(folder / "model"), "losses": losses(run)}


def test_a_sentence_for_the_user_comes_without_a_try_after_the_other(session: None, run: Run, tmp_path: Path) -> None:
    frozen = replace(run, training=replace(run.training, train=replace(run.training.train, freeze=("audio_modle",))))
    with pytest.raises(PsclapError, match=r"small: train\..*freeze: the model has no 'audio_modle'"):
        train_variant(frozen, tmp_path / "model")


def test_a_finished_run_whose_products_were_lost_need_not_train_again(
    session: None, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(run, training=replace(run.training, train=replace(run.training.train, max_steps=4)))
    train_variant(short, tmp_path / "model")
    first = products(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    train_variant(short, tmp_path / "model")
    assert "going on from step 4 of 4" in capsys.readouterr().out
    assert products(tmp_path / "model") == first


def test_a_training_clears_away_what_finished_ones_before_it_left(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """But not what it left itself with the same settings; one that did not finish stays too, and is told."""
    same, other, unfinished, namesake = (
        run.storage / name for name in ("small-000000000000", "small-111111111111", "small-222222222222", "small-b-3")
    )
    for folder in (same, other, unfinished, namesake):
        folder.mkdir(parents=True)
    for folder in (same, other, namesake):
        (folder / "finished").write_text(run.training.configuration())
    clear_finished(run, same)
    assert {path.name for path in run.storage.iterdir()} == {same.name, unfinished.name, namesake.name}
    assert f"{unfinished} is of an unfinished training" in capsys.readouterr().out
    (same / "finished").write_text("other settings that the name does not tell")
    clear_finished(run, same)
    assert not same.exists()


@pytest.mark.parametrize("disturbance", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_worker_that_dies_or_hangs_is_replaced_and_nothing_is_lost(
    session: None, run: Run, tmp_path: Path, expected: dict[str, Any], disturbance: int
) -> None:
    """SIGSTOP: its peer waits for it in a collective and, seeing no progress, ends; Ray starts both anew."""
    disturbed = replace(run, training=replace(run.training, hang_timeout_s=20.0))
    chosen: list[psutil.Process] = []

    def disturb() -> None:
        chosen.append(workers()[-1])
        chosen[0].send_signal(disturbance)

    thread = after_step(run, 10, disturb)
    train_variant(disturbed, tmp_path / "model")
    thread.join()
    assert chosen
    assert not chosen[0].is_running()
    assert products(tmp_path / "model") == expected["products"]
    assert losses(run) == expected["losses"]


_DRIVER = """
import pickle, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pipelines.train import train_variant
try:
    train_variant(pickle.loads(Path(sys.argv[2]).read_bytes()), Path(sys.argv[3]))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "asked to end"])
def test_a_run_whose_driver_is_ended_goes_on_when_it_is_started_again(
    run: Run, tmp_path: Path, expected: dict[str, Any], signal_number: int
) -> None:
    (tmp_path / "run.pickle").write_bytes(pickle.dumps(run))
    command = [sys.executable, "-c", _DRIVER, *map(str, (Path(__file__).parent, tmp_path / "run.pickle"))]
    command.append(str(tmp_path / "model"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    thread = after_step(run, 10, lambda: process.send_signal(signal_number))
    said, _ = process.communicate(timeout=240)
    thread.join()
    reached = max(losses(run))
    if signal_number == signal.SIGTERM:
        assert process.returncode == 130, said
        assert "a checkpoint is being written" in said
        (store,) = run.storage.glob("small-*/checkpoints")
        assert at(store, int(reached)).is_dir()
    else:
        assert process.returncode == -signal.SIGKILL
    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stdout
    assert products(tmp_path / "model") == expected["products"]
    assert losses(run) == expected["losses"]
