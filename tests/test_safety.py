"""What comes from others cannot lead out of its folder, fill the memory, or run code."""

import ast
import json
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHARDING, shard
from small_model import noise, wav

from psclap import storage
from psclap.corpora import build_corpus
from psclap.errors import PsclapError
from psclap.files import sha256_file
from psclap.shards import INDEX_NAME, SUMMARY_NAME
from psclap.shards.cache import FileCache, RemoteFile
from psclap.shards.index import ShardIndex
from psclap.shards.store import Place
from psclap.soundness.integrity import check_location

ROOT = Path(__file__).parent.parent
OUTSIDE = ["../../outside.tar", "/etc/passwd", "folder/shard.tar", "./../outside.tar"]


@pytest.fixture
def shards(mini_shards: Path, tmp_path: Path) -> Path:
    """A set of shards that a test may forge, and a shard beside it that is none of its own."""
    folder = tmp_path / "a" / "b" / "shards"
    shutil.copytree(mini_shards, folder)
    shutil.copy(next(folder.glob("*.tar")), tmp_path / "a" / "outside.tar")
    return folder


def forge_index(folder: Path, name: str) -> None:
    """Puts another name in place of the first shard's, with a summary that fits."""
    table = pq.read_table(folder / INDEX_NAME)
    first = table["shard"][0].as_py()
    names = [name if shard == first else shard for shard in table["shard"].to_pylist()]
    number = table.column_names.index("shard")
    pq.write_table(table.set_column(number, table.schema.field("shard"), pa.array(names)), folder / INDEX_NAME)
    change_summary(folder, index_sha256=sha256_file(folder / INDEX_NAME))


def change_summary(folder: Path, **changes: Any) -> None:
    summary = json.loads((folder / SUMMARY_NAME).read_text())
    (folder / SUMMARY_NAME).write_text(json.dumps({**summary, **changes}))


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_cannot_name_files_elsewhere(shards: Path, name: str) -> None:
    forge_index(shards, name)
    index = ShardIndex(shards)
    place = index.place(0)
    assert place.shard == name
    for read in (
        lambda: index.read_clip(0),
        lambda: index.read_flac(0),
        lambda: index.store.clip(place),
        lambda: index.store.read(name, 0, 10),
        lambda: check_location(shards),
        lambda: check_location(shards, deep=True),
    ):
        with pytest.raises(PsclapError, match="names no file right in it") as raised:
            read()
        assert repr(name) in str(raised.value)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_summary_cannot_name_files_elsewhere(shards: Path, name: str) -> None:
    summary = json.loads((shards / SUMMARY_NAME).read_text())
    change_summary(shards, shards={**summary["shards"], name: {"bytes": 1, "sha256": "0" * 64, "clips": 1}})
    with pytest.raises(PsclapError, match="names no file right in it"):
        ShardIndex(shards)


@pytest.mark.parametrize("url", ["/etc", "../..", 5])
def test_a_summary_names_a_url_or_nothing(shards: Path, url: Any) -> None:
    change_summary(shards, url=url)
    with pytest.raises(PsclapError, match="which is no URL"):
        ShardIndex(shards)


def test_a_remote_index_cannot_name_files_elsewhere(shards: Path, s3_server: str, tmp_path: Path) -> None:
    forge_index(shards, "unknown.tar")
    change_summary(shards, index_bytes=(shards / INDEX_NAME).stat().st_size)
    fsspec.filesystem("s3").put(str(shards), f"{s3_server}/forged", recursive=True)
    index = ShardIndex(f"{s3_server}/forged", FileCache(tmp_path / "cache", 10**9))
    with pytest.raises(PsclapError, match=r"unknown\.tar is damaged: the summary of its data set does not name it"):
        index.read_clip(0)
    with pytest.raises(PsclapError, match="names no file right in it"):
        index.store.flac(Place("../other/shard.tar", 0, 10, 0, 1))


@pytest.mark.parametrize("sha256", ["../../../etc/passwd", "/etc/passwd", "0" * 63, "0" * 64 + "/..", 7, None])
def test_a_hash_cannot_name_a_file_elsewhere(s3_server: str, tmp_path: Path, sha256: Any) -> None:
    with pytest.raises(PsclapError, match="expected 64 hexadecimal digits"):
        FileCache(tmp_path, 1000).open(RemoteFile(f"{s3_server}/x", 1, sha256))
    assert not list(tmp_path.iterdir())


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[[str], Any]:
    """Makes a corpus of one tar, whose one sample has a given name."""

    def make(name: str) -> Any:
        source = tmp_path / "corpus.tar"
        said = {"caption": "A voice.", "who": "speaker", "key": name, "shard": name}
        with tarfile.open(source, "w") as tar:
            for extension, data in (("json", json.dumps(said).encode()), ("wav", wav(noise(1.0)))):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
        fields = {"captions": "json.caption", "speaker": "json.who"}
        defaults = {"source": "web", "split": "train"}
        return build_corpus("webdataset", {"urls": str(source), "fields": fields, "defaults": defaults})

    return make


@pytest.mark.parametrize("name", ["../../evil", "/tmp/psclap-evil", "../shards/summary", "folder/../../../evil"])
def test_a_tar_cannot_write_outside(name: str, corpus: Callable[[str], Any], tmp_path: Path) -> None:
    """From a corpus with such a member's name to shards of our own: only these appear."""
    target = tmp_path / "out" / "deep" / "shards"
    utterances = list(corpus(name).utterances(tmp_path / "unused", 1))
    before = everything(tmp_path)
    shard(utterances, target, SHARDING, processes=1)
    new = {path for path in everything(tmp_path) if path not in before}
    assert all(path == "out" or path.startswith("out/deep") for path in new), new
    assert not Path("/tmp/psclap-evil.json").exists()
    with tarfile.open(next(target.glob("*.tar"))) as tar:
        assert not [member for member in tar.getnames() if "/" in member or member.startswith(".")]
    assert len(ShardIndex(target).read_clip(0)) == 16000


@pytest.mark.parametrize("name", ["..", "a/..", "clip\n../evil"])
def test_a_member_that_is_no_name_is_refused(name: str, corpus: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(PsclapError, match="belongs to no sample"):
        list(corpus(name).utterances(tmp_path / "unused", 1))
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.tar"}


class Flood(BaseHTTPRequestHandler):
    """A server that never stops sending, whatever it was asked for; /partial pretends to answer a range."""

    protocol_version = "HTTP/1.1"
    sent = 0

    def do_GET(self) -> None:
        self.send_response(206 if "partial" in self.path else 200)
        if "declared" in self.path:
            self.send_header("Content-Length", str(10**12))
        if "partial" in self.path:
            self.send_header("Content-Range", "bytes 0-9/10")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            while self.command == "GET" and type(self).sent < 500_000_000:
                self.wfile.write(bytes(1 << 16))
                type(self).sent += 1 << 16
        except OSError:  # the reader has had enough
            pass

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def flood() -> Iterator[tuple[str, type[Flood]]]:
    handler = type("OfTest", (Flood,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["endless", "declared", "partial"])
def test_of_an_endless_answer_only_a_little_is_fetched(flood: tuple[str, type[Flood]], path: str) -> None:
    url, handler = flood
    with pytest.raises(PsclapError, match="has more than 100000 bytes"):
        storage.read_bounded(f"{url}/{path}.wav", 100_000)
    assert 100_000 < handler.sent < 50_000_000  # the system's own buffers take some


def test_a_bounded_read_is_exact_everywhere(s3_server: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3_000_000)
    fsspec.filesystem("s3").pipe_file(f"{s3_server}/bounded", data)
    fsspec.filesystem("memory").pipe_file("/bounded", data)
    (tmp_path / "bounded").write_bytes(data)
    for location in (tmp_path / "bounded", f"{s3_server}/bounded", "memory://bounded"):
        assert storage.read_bounded(location, 3_000_000) == data
        with pytest.raises(PsclapError, match="has more than 2999999 bytes"):
            storage.read_bounded(location, 2_999_999)
    for missing in (tmp_path / "nowhere", f"{s3_server}/nowhere", tmp_path):
        with pytest.raises(FileNotFoundError):
            storage.read_bounded(missing, 10)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(FileNotFoundError):
        storage.read_bounded(tmp_path / "pipe.wav", 10)


def calls(path: Path) -> Iterator[str]:
    """The names of all functions that a file calls, but for loads that are told to run nothing."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keyword, value = HARMLESS.get(name, (None, None))
            if not any(word.arg == keyword and ast.unparse(word.value) == value for word in node.keywords):
                yield name


HARMLESS = {
    "torch.load": ("weights_only", "True"),
    "np.load": ("allow_pickle", "False"),
    "yaml.load": ("Loader", "yaml.CSafeLoader"),
}
UNSAFE = re.compile(
    r"(pickle|cloudpickle|dill|joblib|shelve|marshal)\..*|.*\bUnpickler|(torch|np|numpy)\.load|eval|exec|"
    r"yaml\.(load|unsafe_load|full_load)|.*\.(extractall|extract|unpack_archive)"
)


def test_no_module_calls_what_can_run_code_or_unpack_files() -> None:
    for package in ("psclap", "pipelines", "stages"):
        for path in (ROOT / package).rglob("*.py"):
            assert not [name for name in calls(path) if UNSAFE.fullmatch(name)], path


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(b'')",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "np.load('x')",
        "np.load('x', allow_pickle=True)",
        "yaml.load('x', Loader=yaml.CLoader)",
        "tar.extractall('/')",
    ],
)
def test_such_a_call_would_be_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(f"def load():\n    return {line}\n")
    assert [name for name in calls(tmp_path / "module.py") if UNSAFE.fullmatch(name)]
