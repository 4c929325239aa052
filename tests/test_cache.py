"""The cache of remote files: bounded, shared by processes, and careful with what is not its own."""

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from psclap.errors import PsclapError
from psclap.shards.cache import FileCache, RemoteFile


def remote_file(number: int, num_bytes: int = 900, url: str = "memory://cache-test") -> RemoteFile:
    data = random.Random(number).randbytes(num_bytes)
    return RemoteFile(f"{url}/{number}", num_bytes, hashlib.sha256(data).hexdigest())


@pytest.fixture(scope="module")
def files(s3_server) -> list[RemoteFile]:
    """Files of 900 bytes on the S3 server."""
    filesystem, made = fsspec.filesystem("s3"), []
    for number in range(12):
        file = remote_file(number, url=f"{s3_server}/cache")
        filesystem.pipe_file(file.url, random.Random(number).randbytes(900))
        made.append(file)
    return made


def read(cache: FileCache, file: RemoteFile) -> bytes:
    with os.fdopen(cache.open(file), "rb") as stream:
        return stream.read()


def held(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_the_least_recently_used_file_goes_first(files, tmp_path):
    cache = FileCache(tmp_path / "cache", 2000)
    for file in (files[0], files[1], files[0], files[2]):
        assert hashlib.sha256(read(cache, file)).hexdigest() == file.sha256
        time.sleep(0.01)  # the clock that uses are told apart by
    assert held(cache.folder) == {files[0].sha256, files[2].sha256}


def test_an_open_file_stays_readable_when_it_is_evicted(files, tmp_path):
    cache = FileCache(tmp_path / "cache", 1000)
    with os.fdopen(cache.open(files[0]), "rb") as stream:
        read(cache, files[1])
        assert held(cache.folder) == {files[1].sha256}
        assert hashlib.sha256(stream.read()).hexdigest() == files[0].sha256


def test_what_is_not_its_own_is_neither_counted_nor_touched(files, tmp_path):
    (tmp_path / "thesis.txt").write_bytes(bytes(5000))
    (tmp_path / "folder").mkdir()
    cache = FileCache(tmp_path, 1000)
    cache.check_disk()
    for file in files[:3]:
        read(cache, file)
    assert held(tmp_path) == {"thesis.txt", "folder", files[2].sha256}


def _use(folder: Path, files: list[RemoteFile], seed: int, max_bytes: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        file = rng.choice(files)
        assert hashlib.sha256(read(FileCache(folder, max_bytes), file)).hexdigest() == file.sha256


def test_processes_share_it_and_stay_in_the_bound(files, tmp_path):
    """Four processes in a cache that holds two files: they evict, wait for each other, and all get their bytes."""
    context = multiprocessing.get_context("spawn")
    users = [context.Process(target=_use, args=(tmp_path / "cache", files, seed, 2000)) for seed in range(4)]
    for user in users:
        user.start()
    most = 0
    while any(user.is_alive() for user in users):
        if (tmp_path / "cache").is_dir():
            sizes = []
            for entry in os.scandir(tmp_path / "cache"):
                try:
                    sizes.append(entry.stat().st_size)
                except FileNotFoundError:
                    continue
            most = max(most, sum(sizes))
        time.sleep(0.001)
    assert [user.exitcode for user in users] == [0] * 4
    assert 0 < most <= 2 * 2000  # a listing is no snapshot: a file may be seen before it goes, and its successor after
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 2000
    assert not list((tmp_path / "cache").glob("*.partial"))


def _hold(folder: Path, file: RemoteFile) -> None:
    import psclap.shards.cache as module

    module._download = lambda file, out: time.sleep(600)
    FileCache(folder, 1000).open(file)


def test_what_a_killed_process_left_is_evicted(files, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, files[0]))
    process.start()
    partial = tmp_path / f"{files[0].sha256}.partial"
    while not (partial.exists() and partial.stat().st_size == 900):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert partial.exists()
    read(FileCache(tmp_path, 1000), files[1])
    assert held(tmp_path) == {files[1].sha256}
    read(FileCache(tmp_path, 1000), files[0])


def test_a_file_is_not_evicted_from_under_who_just_opened_it(files, tmp_path, monkeypatch):
    """What a killed process left is fetched anew by one while another evicts it: both get their bytes."""
    cache, evicting, unlink = FileCache(tmp_path, 1000), threading.Event(), Path.unlink
    left = tmp_path / f"{files[0].sha256}.partial"
    left.write_bytes(bytes(900))

    def slow_unlink(path: Path, missing_ok: bool = False) -> None:
        if path == left and not evicting.is_set():
            evicting.set()
            time.sleep(0.5)  # the other opens it now
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", slow_unlink)
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(read, cache, files[1])
        assert evicting.wait(30)
        other = threads.submit(read, cache, files[0])
        for number, data in enumerate([other.result(30), one.result(30)]):
            assert hashlib.sha256(data).hexdigest() == files[number].sha256
    assert held(tmp_path) == {files[0].sha256}


def test_errors_are_sentences_and_leave_nothing(files, s3_server, tmp_path):
    cache = FileCache(tmp_path / "cache", 1000)
    absent = remote_file(99, url=f"{s3_server}/cache")
    with pytest.raises(PsclapError, match=r"cache/99 is missing; rebuild it"):
        cache.open(absent)
    other = RemoteFile(files[0].url, 900, files[1].sha256)
    with pytest.raises(PsclapError, match=r"is not what the summary of its data set says: SHA-256"):
        cache.open(other)
    with pytest.raises(PsclapError, match="more than the whole cache of 500"):
        FileCache(tmp_path / "cache", 500).open(files[0])
    assert held(cache.folder) == set()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PsclapError, match=r"the cache folder .*file/cache cannot be used \(Not a directory\)"):
        FileCache(tmp_path / "file" / "cache", 1000).open(files[0])
