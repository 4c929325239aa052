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
import torch
import yaml
from small_speech import SmallSpeech
from small_training import mini
from tuned_vocoder import clip_tts, tracking, vocoder_params

from pipelines.cluster import ray_session
from pipelines.tracking import TrackingStore
from pipelines.train import Run, clear_finished, train_variant
from pipelines.vocoder import train_vocoder
from pipelines.worker import Worker, check_sees
from psclap.config import PRESETS_FOLDER, parse_params
from psclap.errors import PsclapError
from psclap.loop_config import CheckpointConfig
from psclap.training.checkpoint import read_progress
from psclap.training.journal import Journal
from psclap.training.store import CheckpointStore
from psclap.tts.mel import SPEECHT5
from psclap.tts.vocoder import load_vocoder

pytestmark = pytest.mark.slow

STEPS = 120


def small_run(shards: Path, folder: Path, **resources: Any) -> Run:
    """Two workers, a checkpoint every 4 steps."""
    mapping = yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())
    changes = {"max_steps": STEPS, "validate_every": 20, "checkpoints": CheckpointConfig(every_steps=4)}
    return Run(
        name="small",
        training=replace(mini(mapping, shards, **changes), hang_timeout_s=120.0),
        resources=replace(parse_params(mapping).resources, **{"cpu_workers": 2, "max_failures": 3, **resources}),
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
def undisturbed(mini_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run that nobody disturbs, and its model's folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = small_run(mini_shards, folder)
    with ray_session():
        train_variant(run, folder / "model")
    assert len(losses(run)) == STEPS
    return run, folder / "model"


@pytest.fixture(scope="module")
def expected(undisturbed: tuple[Run, Path]) -> dict[str, Any]:
    """What it leaves."""
    run, model = undisturbed
    return {"products": products(model), "losses": losses(run)}


def test_a_sentence_for_the_user_comes_without_a_try_after_the_other(session: None, run: Run, tmp_path: Path) -> None:
    recipe = run.training.recipe
    recipe = replace(recipe, train=replace(recipe.train, freeze=("audio_modle",)))
    frozen = replace(run, training=replace(run.training, recipe=recipe))
    frozen = replace(frozen, resources=replace(run.resources, cpu_workers=1))
    with pytest.raises(PsclapError, match=r"small: train\..*freeze: the model has no 'audio_modle'"):
        train_variant(frozen, tmp_path / "model")


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


def test_a_finished_run_whose_products_were_lost_need_not_train_again(
    session: None, undisturbed: tuple[Run, Path], expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run, model = undisturbed
    shutil.rmtree(model)
    train_variant(run, model)
    assert f"going on from step {STEPS} of {STEPS}" in capsys.readouterr().out
    assert products(model) == expected["products"]


def test_a_worker_that_hangs_is_replaced_and_nothing_is_lost(
    session: None, run: Run, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """SIGSTOP: its peer waits for it in a collective and, seeing no progress, ends; Ray starts both anew."""
    disturbed = replace(run, training=replace(run.training, hang_timeout_s=20.0))
    chosen: list[psutil.Process] = []

    def disturb() -> None:
        chosen.append(workers()[-1])
        chosen[0].send_signal(signal.SIGSTOP)

    thread = after_step(run, 10, disturb)
    train_variant(disturbed, tmp_path / "model")
    thread.join()
    assert chosen
    assert not chosen[0].is_running()
    told = [report.read_text() for report in run.storage.glob("small-*/hangs/*.txt")]
    assert any("most recent call first" in report for report in told)
    assert products(tmp_path / "model") == expected["products"]
    assert losses(run) == expected["losses"]


_DRIVER = """
import pickle, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pipelines.train import train_variant
train_variant(pickle.loads(Path(sys.argv[2]).read_bytes()), Path(sys.argv[3]))
print("with Ray" if "ray" in sys.modules else "without Ray")
"""


def driver(run: Run, folder: Path) -> list[str]:
    """The command that trains it, as a process of its own, and leaves the model in `folder`/model."""
    (folder / "run.pickle").write_bytes(pickle.dumps(run))
    tests = Path(__file__).parent
    return [sys.executable, "-c", _DRIVER, *map(str, (tests, folder / "run.pickle", folder / "model"))]


def test_a_run_whose_driver_is_killed_goes_on_when_it_is_started_again(
    run: Run, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """One that is asked to end is in test_pipeline."""
    command = driver(run, tmp_path)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    thread = after_step(run, 10, process.kill)
    process.communicate(timeout=240)
    thread.join()
    assert process.returncode == -signal.SIGKILL
    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stdout
    assert products(tmp_path / "model") == expected["products"]
    assert losses(run) == expected["losses"]


@pytest.mark.parametrize("what", ["checkpoints", "shards", "start"])
def test_a_node_that_does_not_see_a_folder_names_it(run: Run, tmp_path: Path, what: str) -> None:
    journal = Journal.start(tmp_path / "small-0" / "journal", "disturbed", "small")
    other = Journal.start(tmp_path / "other" / "journal", "disturbed", "small")
    training = replace(run.training, shards=tmp_path / "absent") if what == "shards" else run.training
    reads = [tmp_path, tmp_path / "start"]
    worker = Worker(training, CheckpointStore(tmp_path), journal, journal.run, None, None, reads)  # type: ignore[arg-type]
    if what == "checkpoints":
        worker = replace(worker, run=other.run)  # of that name there is a folder here, but another one
    with pytest.raises(PsclapError, match=rf"the node .* does not see .*{what}.* all nodes"):
        check_sees(worker)


@pytest.mark.soak  # its recipe is trained in test_vocoder_pipeline.py, and others on Ray here
def test_a_vocoder_is_trained_as_all_else_is(session: None, small_speech: SmallSpeech, tmp_path: Path) -> None:
    """Tuned to what a Clip-TTS says of the clips."""
    clip_tts(small_speech).save_pretrained(tmp_path / "clip_tts")
    output, shards, storage = tmp_path / "vocoder", small_speech.index.location, tmp_path / "runs"
    error = train_vocoder(vocoder_params(), shards, output, storage, tracking(tmp_path), str(tmp_path / "clip_tts"))
    assert 0 < error < 20
    assert load_vocoder(str(output), SPEECHT5)(torch.full((5, 80), -4.0)).shape == (5 * 256,)
    assert read_progress(storage / "vocoder-best").metrics == {"val/mel_l1": error}
