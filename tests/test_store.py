"""The checkpoint store: whole or absent, the last and the best kept, whatever fails in between."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from psclap import storage
from psclap.errors import CheckpointError, PsclapError
from psclap.loop_config import CheckpointConfig
from psclap.training.store import CheckpointStore


def put(store: CheckpointStore, step: int, score: float | None = None, size: int = 1000) -> None:
    with store.saving(step, score) as folder:
        (folder / "weights").write_bytes(bytes([step % 256]) * size)
        (folder / "progress.json").write_text(json.dumps({"step": step}))


def steps(store: CheckpointStore) -> list[int]:
    return [saved.step for saved in store.saved()]


@pytest.fixture(params=["local", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and a prefix of a bucket."""
    if request.param == "local":
        return str(tmp_path / "checkpoints")
    return storage.join(request.getfixturevalue("s3_server"), f"store-{tmp_path.name}")


def test_the_last_and_the_best_are_kept(location: str) -> None:
    store = CheckpointStore(location, CheckpointConfig(keep_last=2, keep_best=2))
    scores = {1: 0.9, 2: None, 3: 0.5, 4: 0.9, 5: 0.1, 6: None, 7: 0.2}
    for step, score in scores.items():
        put(store, step, score)
    assert steps(store) == [1, 4, 6, 7]
    assert store.best().step == 4  # of equal scores the later one
    newest, problems = store.newest()
    assert newest is not None
    assert (newest.step, problems) == (7, [])
    with store.reading(newest) as folder:
        assert json.loads((folder / "progress.json").read_text()) == {"step": 7}
        assert (folder / "weights").read_bytes() == b"\7" * 1000


def test_an_empty_store_has_none(location: str) -> None:
    store = CheckpointStore(location)
    assert store.newest() == (None, [])
    with pytest.raises(CheckpointError, match="holds no checkpoint of a validation"):
        store.best()


def test_a_failure_while_a_checkpoint_is_made_leaves_the_others(location: str) -> None:
    store = CheckpointStore(location, CheckpointConfig(keep_last=1))
    put(store, 1, 0.5)

    def fail() -> None:
        with store.saving(2, 0.6) as folder:
            (folder / "weights").write_bytes(b"half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert steps(store) == [1]
    put(store, 2, 0.6)
    assert steps(store) == [2]


def test_a_cut_off_upload_is_no_checkpoint_and_is_cleared_away(location: str) -> None:
    store = CheckpointStore(location, CheckpointConfig(keep_last=1))
    put(store, 1, 0.5)
    with storage.writing(storage.join(store.uri_of(2), "weights")) as path:
        path.write_bytes(b"half")
    newest, problems = store.newest()
    assert newest is not None
    assert (newest.step, problems) == (1, [])
    put(store, 3, 0.6)
    assert storage.folders(location) == ["step-00000003"]


def test_what_is_damaged_is_passed_over_and_named(location: str) -> None:
    store = CheckpointStore(location, CheckpointConfig(keep_last=3))
    for step in (1, 2, 3):
        put(store, step, step / 10)
    storage.remove(storage.join(store.uri_of(3), "progress.json"))
    with storage.writing(storage.join(store.uri_of(2), "weights")) as path:
        path.write_bytes(b"short")
    newest, problems = store.newest()
    assert newest is not None
    assert newest.step == 1
    assert problems == [
        f"{store.uri_of(3)} is damaged: progress.json is missing or of the wrong size",
        f"{store.uri_of(2)} is damaged: weights is missing or of the wrong size",
    ]
    with pytest.raises(CheckpointError, match="remove that folder to take the next best"):
        store.best()


def test_a_download_with_other_bytes_is_refused(s3_server: str) -> None:
    store = CheckpointStore(storage.join(s3_server, "other-bytes"))
    put(store, 1, 0.5)
    with storage.writing(storage.join(store.uri_of(1), "weights")) as path:
        path.write_bytes(bytes(1000))
    newest, _ = store.newest()
    assert newest is not None
    with pytest.raises(CheckpointError, match="weights has other bytes"), store.reading(newest):
        pass


def test_an_upload_that_fails_leaves_the_last_good_one(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes away: connections to it are refused."""
    import fsspec

    store = CheckpointStore(storage.join(s3_server, "goes-away"), CheckpointConfig(keep_last=1))
    put(store, 1, 0.5)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(PsclapError, match="cannot reach"):
            put(store, 2, 0.6)
    fsspec.filesystem("s3").clear_instance_cache()
    assert steps(store) == [1]
    put(store, 2, 0.6)
    assert steps(store) == [2]


_FILLS_THE_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import put
from psclap.loop_config import CheckpointConfig
from psclap.errors import PsclapError
from psclap.training.store import CheckpointStore

store = CheckpointStore(sys.argv[1], CheckpointConfig(keep_last=1))
put(store, 1, 0.5)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # a file cannot grow beyond it, as on a full disk
try:
    put(store, 2, 0.6, size=1_000_000)
except PsclapError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FILLS_THE_DISK, str(tmp_path / "store"), str(Path(__file__).parent)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "the checkpoint of step 2 cannot be written" in said
    assert "File too large" in said
    assert "those before it are unharmed" in said
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["step-00000001"]
    assert steps(CheckpointStore(tmp_path / "store")) == [1]


_WRITES_FOR_EVER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_store import put
from psclap.loop_config import CheckpointConfig
from psclap.training.store import CheckpointStore

store = CheckpointStore(sys.argv[1], CheckpointConfig(keep_last=1, keep_best=1))
step = max([0, *(saved.step for saved in store.saved())])
while True:
    step += 1
    put(store, step, -step, size=300_000)
    print(step, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_store(tmp_path: Path) -> None:
    """What was said to be written is there, undamaged; nothing is left of earlier writers in the end."""
    folder = tmp_path / "store"
    command = [sys.executable, "-c", _WRITES_FOR_EVER, str(folder), str(Path(__file__).parent)]
    for number in range(6):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.013 * number)
            process.send_signal(signal.SIGKILL)
            said = [int(line) for line in process.stdout.read().split()]
        store = CheckpointStore(folder)
        newest, problems = store.newest()
        assert newest is not None
        assert problems == []
        assert newest.step >= max(said, default=0)
        with store.reading(newest) as checkpoint:
            assert json.loads((checkpoint / "progress.json").read_text()) == {"step": newest.step}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(PsclapError, match="store"):
        put(CheckpointStore(tmp_path / "store"), 1)


def test_several_may_remove_the_same_at_once(location: str) -> None:
    for attempt in range(10):
        folder = storage.join(location, str(attempt))
        for name in "abc":
            with storage.writing(storage.join(folder, name)) as partial:
                partial.write_text(name)
        with ThreadPoolExecutor(4) as removers:
            list(removers.map(storage.remove, [folder] * 4))
        assert storage.sizes(folder) == {}
