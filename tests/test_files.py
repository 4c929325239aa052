import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psclap.errors import PsclapError
from psclap.files import alone, atomic_file, atomic_folder, sha256_file, write_json


class Interrupted(BaseException):
    """As KeyboardInterrupt: not an Exception."""


def write_and_fail(path: Path, error: type[BaseException]) -> None:
    path.write_text("half")
    raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.parent == path.parent  # the same file system, or the rename would copy
    assert path.read_text() == "half"
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError, Interrupted])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failed_file_leaves_nothing_and_keeps_what_was_there(tmp_path, error, old):
    path = tmp_path / "file.txt"
    if old:
        path.write_text(old)
    with pytest.raises(error), atomic_file(path) as partial:
        write_and_fail(partial, error)
    assert names(tmp_path) == (["file.txt"] if old else [])
    assert not old or path.read_text() == old


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "out"
    for name in ("one", "two"):
        with atomic_folder(path) as partial:
            (partial / "deep").mkdir()
            (partial / "deep" / name).write_text(name)
            assert not (path / "deep" / name).exists()
    assert names(tmp_path) == ["out"]
    assert names(path / "deep") == ["two"]


@pytest.mark.parametrize("error", [RuntimeError, Interrupted])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failed_folder_leaves_nothing_and_keeps_what_was_there(tmp_path, error, old):
    path = tmp_path / "out"
    if old:
        path.mkdir()
        (path / "file").write_text(old)
    with pytest.raises(error), atomic_folder(path) as partial:
        write_and_fail(partial / "file", error)
    assert names(tmp_path) == (["out"] if old else [])
    assert not old or (path / "file").read_text() == old


def test_what_a_killed_run_left_does_not_end_up_in_the_next_folder(tmp_path):
    with atomic_folder(tmp_path / "out") as partial:
        name = partial.name
    (tmp_path / name).mkdir()
    (tmp_path / name / "stale").write_text("of a process that was killed")
    with atomic_folder(tmp_path / "out") as partial:
        (partial / "fresh").write_text("")
    assert names(tmp_path / "out") == ["fresh"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_a_place_that_cannot_be_written_is_named(tmp_path, atomic):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        with pytest.raises(PsclapError, match=rf"cannot write {path}: .*choose a folder that you may write to"):
            atomic(path).__enter__()
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_a_folder_without_permission_is_named(tmp_path, atomic):
    tmp_path.chmod(0o500)
    with pytest.raises(PsclapError, match=r"cannot write .*/out: no permission to write there"):
        atomic(tmp_path / "out").__enter__()
    tmp_path.chmod(0o700)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(value=VALUES)
def test_json_reads_back_as_it_was_written(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert json.loads(path.read_text()) == value
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("value", [float("nan"), {"loss": [1.0, float("inf")]}, {"tags": {1}}])
def test_what_json_cannot_say_is_refused_and_the_old_file_stays(tmp_path, value):
    write_json(tmp_path / "value.json", "old")
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "value.json", value)
    assert names(tmp_path) == ["value.json"]
    assert json.loads((tmp_path / "value.json").read_text()) == "old"


def test_sha256_file_is_the_hash_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "data").write_bytes(data)
    assert sha256_file(tmp_path / "data") == hashlib.sha256(data).hexdigest()


_HOLDS = """
import sys
from psclap.files import alone
with alone(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_and_a_killed_one_is_in_nobodys_way(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLDS, str(tmp_path / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(PsclapError, match=rf"process {holder.pid} is at work on the same"), alone(tmp_path / "lock"):
        pass
    holder.kill()
    holder.communicate()
    with alone(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
