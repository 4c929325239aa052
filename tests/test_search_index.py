"""Indexes of scored clips: built from Parquet, searched from disk, refused when they are damaged or old."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored import unit_vectors, write_scored
from typer.testing import CliRunner

from psclap.cli import app
from psclap.errors import PsclapError
from psclap.search import EmbeddedCorpus, build_index
from psclap.search import corpus as corpus_module

ROWS, DIM = 3000, 32
_NEAR = unit_vectors(ROWS, DIM)[::500] + 0.3 * unit_vectors(6, DIM, seed=9)
QUERIES = _NEAR / np.linalg.norm(_NEAR, axis=1, keepdims=True)
"""Near some of the rows."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 clips in 4 files. Not to be changed."""
    vectors = unit_vectors(ROWS, DIM, "float16")
    return write_scored(tmp_path_factory.mktemp("scored") / "output", vectors, files=4, group_rows=300)


@pytest.fixture(scope="module")
def index(output: Path) -> Path:
    """The index of `output`, with an approximate one. Not to be changed."""
    build_index(output, output.with_name("index"), with_approximate=True)
    return output.with_name("index")


FILTERS = [
    None,
    "speaker = 'Zoë' and duration_s > 20",
    "'fast' in situational_tags and `tag_pitch-level` = 'low-pitched'",
    "scores['a deep voice'] < 4 or '№ 29' in transcript",
    "key = 'nobody'",
]


@pytest.mark.parametrize("where", FILTERS)
def test_an_index_answers_as_its_output_does(output: Path, index: Path, where: str | None) -> None:
    expected = EmbeddedCorpus.load(output).search_many(QUERIES, 25, where=where)
    assert EmbeddedCorpus.load(index).search_many(QUERIES, 25, where=where, exact=True) == expected


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_embeddings_are_kept_as_scored(tmp_path: Path, dtype: str) -> None:
    vectors = unit_vectors(100, 7, dtype)
    facts = build_index(write_scored(tmp_path / "output", vectors), tmp_path / "index")
    stored = np.load(tmp_path / "index" / "vectors.npy")
    assert (facts["rows"], facts["dim"], facts["dtype"]) == (100, 7, dtype)
    assert stored.dtype == dtype
    assert (stored == vectors).all()


def test_windows_have_an_index_of_their_own(output: Path, tmp_path: Path) -> None:
    build_index(output, tmp_path / "index", windows=True)
    found = EmbeddedCorpus.load(tmp_path / "index", windows=True).search(QUERIES[0], 4)
    assert found == EmbeddedCorpus.load(output, windows=True).search(QUERIES[0], 4)
    build_index(output, tmp_path / "index")  # takes the other one's place
    with pytest.raises(PsclapError, match="is an index of clips"):
        EmbeddedCorpus.load(tmp_path / "index", windows=True)


def recall(index: Path, **options: Any) -> float:
    corpus = EmbeddedCorpus.load(index)
    exact = corpus.search_many(QUERIES, 10, columns=["key"], where=options.get("where"), exact=True)
    near = corpus.search_many(QUERIES, 10, columns=["key"], **options)
    shared = [len({clip["key"] for clip in a} & {clip["key"] for clip in b}) for a, b in zip(exact, near, strict=True)]
    for found in near:  # what is found has exact scores, in their order
        assert [clip["score"] for clip in found] == sorted((clip["score"] for clip in found), reverse=True)
    return sum(shared) / sum(map(len, exact))


def test_more_probes_find_more_and_all_find_everything(index: Path) -> None:
    lists = json.loads((index / "index.json").read_text())["approximate"]["lists"]
    assert recall(index, probes=1) < recall(index, probes=4) < 1.0
    assert recall(index, probes=lists) == 1.0
    assert recall(index, probes=10 * lists) == 1.0
    assert recall(index) >= 0.9


def test_recall_is_measured_when_an_index_is_built(index: Path) -> None:
    facts = json.loads((index / "index.json").read_text())["approximate"]
    recalls = [*facts["recall_at_10"].values()]
    assert recalls == sorted(recalls)
    assert recalls[-1] >= 0.95 > recalls[-2]
    assert [*facts["recall_at_10"]][-1] == str(facts["probes"])


def test_a_filter_that_leaves_few_rows_searches_them_exactly(index: Path) -> None:
    assert recall(index, where="speaker = 'amy'", probes=1) == 1.0


def test_a_filter_that_leaves_many_rows_widens_the_search(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "FEW_ROWS", 10)
    assert recall(index, where="speaker = 'amy'", probes=16) == 1.0  # a quarter of the rows: all 64 lists
    assert recall(index, where="duration_s > 1", probes=1) < 1.0
    found = EmbeddedCorpus.load(index).search(QUERIES[0], 50, where="speaker = 'amy'", probes=2)
    assert {clip["speaker"] for clip in found} == {"amy"}


def test_more_rows_than_the_lists_hold_are_found_exactly(index: Path) -> None:
    corpus = EmbeddedCorpus.load(index)
    assert corpus.search(QUERIES[0], 2500, probes=1) == corpus.search(QUERIES[0], 2500, exact=True)
    assert len(corpus.search(QUERIES[0], 10 * ROWS)) == ROWS


def test_the_same_output_makes_the_same_index(output: Path, index: Path, tmp_path: Path) -> None:
    build_index(output, tmp_path / "index", with_approximate=True)
    for path in index.iterdir():
        assert path.read_bytes() == (tmp_path / "index" / path.name).read_bytes(), path.name


def test_columns_and_many_queries(index: Path) -> None:
    corpus = EmbeddedCorpus.load(index)
    assert [set(clip) for clip in corpus.search(QUERIES[0], 2, columns=[])] == [{"score"}] * 2
    many = np.tile(QUERIES, (30, 1))
    for options in ({"exact": True}, {}, {"where": "duration_s > 1"}):
        found = corpus.search_many(many, 3, **options)
        assert found == [*corpus.search_many(QUERIES, 3, **options)] * 30
    assert corpus.search_many(np.empty((0, DIM))) == []


def test_any_width_has_an_approximate_index(tmp_path: Path) -> None:
    vectors = unit_vectors(1000, 33, "float16")
    build_index(write_scored(tmp_path / "output", vectors), tmp_path / "index", with_approximate=True)
    corpus = EmbeddedCorpus.load(tmp_path / "index")
    assert corpus.search(vectors[7], 3, probes=16) == corpus.search(vectors[7], 3, exact=True)


def test_threads_share_an_index(index: Path) -> None:
    corpus = EmbeddedCorpus.load(index)
    asked = [(row % len(QUERIES), row % 3) for row in range(60)]
    options: list[dict[str, Any]] = [{"exact": True}, {}, {"where": "speaker = 'bob'"}]

    def ask(question: tuple[int, int]) -> list[dict[str, Any]]:
        return corpus.search(QUERIES[question[0]], 10, **options[question[1]])

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(ask, asked)] == [ask(question) for question in asked]


@pytest.mark.parametrize("order", [("torch", "faiss"), ("faiss", "torch")])
def test_faiss_and_torch_share_a_process_in_either_order(index: Path, order: tuple[str, str]) -> None:
    """Each brings an OpenMP of its own: both are made to use their threads, side by side."""
    code = f"""
import {order[0]}, {order[1]}
import numpy as np, torch
from concurrent.futures import ThreadPoolExecutor
from psclap.search import EmbeddedCorpus
corpus = EmbeddedCorpus.load({str(index)!r})
query = np.eye({DIM}, dtype=np.float32)[0]
def work(number):
    torch.randn(300, 300) @ torch.randn(300, 300)
    return [clip["key"] for clip in corpus.search(query, 5, probes=64)]
with ThreadPoolExecutor(4) as pool:
    found = [*pool.map(work, range(40))]
assert all(keys == found[0] for keys in found)
print(len(found[0]))
"""
    environment = {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parent.parent), "PATH": ""}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert (result.returncode, result.stdout) == (0, "5\n"), result.stderr


def test_opening_an_index_reads_little_of_it(tmp_path: Path) -> None:
    """The memory of a fresh process grows by far less than the 20 MB of the index."""
    vectors = unit_vectors(40_000, 128)
    index = tmp_path / "index"
    build_index(write_scored(tmp_path / "output", vectors, group_rows=5000), index)
    code = f"""
import re
from pathlib import Path
from psclap.search import EmbeddedCorpus
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
import pyarrow.parquet, fsspec.implementations.local, numpy.lib.format
EmbeddedCorpus.load({str(tmp_path / "other")!r})
before = resident()
EmbeddedCorpus.load({str(index)!r})
print(resident() - before)
"""
    build_index(write_scored(tmp_path / "small", unit_vectors(10, 128)), tmp_path / "other")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert index.joinpath("vectors.npy").stat().st_size > 20_000_000
    assert int(result.stdout) < 6000  # KiB


@pytest.fixture
def own(output: Path, index: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An output and its index that a test may damage."""
    shutil.copytree(output, tmp_path / "output")
    build_index(tmp_path / "output", tmp_path / "index", with_approximate=True)
    return tmp_path / "output", tmp_path / "index"


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def edit_facts(index: Path, **values: Any) -> None:
    path = index / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "vectors truncated": (lambda index: rewritten(index / "vectors.npy", lambda data: data[:-8]), "damaged"),
    "vectors gone": (lambda index: (index / "vectors.npy").unlink(), "damaged"),
    "vectors of another header": (
        lambda index: rewritten(index / "vectors.npy", lambda data: data.replace(b"(3000, 32)", b"(1500, 64)")),
        r"vectors.npy is \(1500, 64\)",
    ),
    "vectors no array": (lambda index: rewritten(index / "vectors.npy", lambda data: bytes(len(data))), "damaged"),
    "metadata truncated": (lambda index: rewritten(index / "metadata.arrow", lambda data: data[:-8]), "damaged"),
    "metadata zeroed": (lambda index: rewritten(index / "metadata.arrow", lambda data: bytes(len(data))), "damaged"),
    "faiss truncated": (lambda index: rewritten(index / "approximate.faiss", lambda data: data[:-8]), "damaged"),
    "faiss zeroed": (
        lambda index: rewritten(index / "approximate.faiss", lambda data: bytes(len(data))),
        "no whole faiss index",
    ),
    "facts truncated": (lambda index: rewritten(index / "index.json", lambda data: data[:40]), "damaged"),
    "facts of a list": (lambda index: rewritten(index / "index.json", lambda data: b"[]"), "damaged"),
    "another version": (lambda index: edit_facts(index, version=99), "version 99, not 1"),
    "other rows": (lambda index: edit_facts(index, rows=2999), "damaged"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_index_is_refused(own: tuple[Path, Path], damage: Callable[[Path], None], message: str) -> None:
    damage(own[1])
    with pytest.raises(PsclapError, match=message) as caught:
        EmbeddedCorpus.load(own[1])
    assert "psclap index" in str(caught.value)


def test_a_faiss_index_of_other_vectors_is_refused(own: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_scored(tmp_path / "other", unit_vectors(1000, DIM))
    build_index(other, tmp_path / "other-index", with_approximate=True)
    path = own[1] / "approximate.faiss"
    shutil.copy(tmp_path / "other-index" / "approximate.faiss", path)
    sizes = json.loads((own[1] / "index.json").read_text())["bytes"]
    edit_facts(own[1], bytes=sizes | {"approximate.faiss": path.stat().st_size})
    with pytest.raises(PsclapError, match="has 1000 rows of 32 dimensions, and the vectors beside it 3000 of 32"):
        EmbeddedCorpus.load(own[1])


@pytest.mark.parametrize("change", ["summary", "summary gone", "file added", "file of another size"])
def test_an_index_older_than_its_output_is_refused(own: tuple[Path, Path], change: str) -> None:
    output, index = own
    EmbeddedCorpus.load(index)
    if change == "summary":
        (output / "_summary.json").write_text(json.dumps({"model": "n", "weights_sha256": "1" * 64}))
    elif change == "summary gone":
        (output / "_summary.json").unlink()
    elif change == "file added":
        shutil.copy(output / "clips" / "part-00000.parquet", output / "clips" / "part-00009.parquet")
    else:
        shutil.copy(output / "clips" / "part-00003.parquet", output / "clips" / "part-00000.parquet")
    with pytest.raises(PsclapError, match=f"older than {output}.*`psclap index {output} {index} --approximate`"):
        EmbeddedCorpus.load(index)


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("with_approximate", [False, True])
def test_the_command_for_an_older_index_makes_the_same_kind_anew(
    output: Path, tmp_path: Path, windows: bool, with_approximate: bool
) -> None:
    copied, index = tmp_path / "an output", tmp_path / "its index"
    shutil.copytree(output, copied)
    before = build_index(copied, index, windows, with_approximate)
    (copied / "_summary.json").write_text(json.dumps({"model": "n", "weights_sha256": "1" * 64}))
    with pytest.raises(PsclapError) as refused:
        EmbeddedCorpus.load(index)
    program, *arguments = shlex.split(str(refused.value).split("`")[1])
    assert program == "psclap"
    assert CliRunner().invoke(app, arguments).exit_code == 0
    after = json.loads((index / "index.json").read_text())
    assert after["model"] == EmbeddedCorpus.load(index, windows).model == "n"
    assert {name: after[name] for name in ("rows", "windows", "bytes")} == {
        name: before[name] for name in ("rows", "windows", "bytes")
    }


def test_an_index_outlives_its_output(own: tuple[Path, Path]) -> None:
    expected = EmbeddedCorpus.load(own[1]).search(QUERIES[0], 3)
    shutil.rmtree(own[0])
    assert EmbeddedCorpus.load(own[1]).search(QUERIES[0], 3) == expected


def test_a_folder_that_is_no_index_is_not_replaced(output: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(PsclapError, match="exists and is no index"):
        build_index(output, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_an_index_that_cannot_be_built_leaves_the_old_one(own: tuple[Path, Path]) -> None:
    output, index = own
    before = (index / "index.json").read_bytes()
    rewritten(output / "clips" / "part-00002.parquet", lambda data: data[:-100])
    with pytest.raises(PsclapError, match=r"part-00002\.parquet cannot be read"):
        build_index(output, index)
    assert (index / "index.json").read_bytes() == before
    assert sorted(path.name for path in index.parent.iterdir()) == ["index", "output"]


def test_too_few_rows_have_no_approximate_index(tmp_path: Path) -> None:
    output = write_scored(tmp_path / "output", unit_vectors(999, DIM))
    with pytest.raises(PsclapError, match="999 rows are too few"):
        build_index(output, tmp_path / "index", with_approximate=True)
    assert not (tmp_path / "index").exists()


def test_without_faiss_the_extra_is_named(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(PsclapError, match=r"pip install 'psclap\[search\]'"):
        build_index(output, tmp_path / "index", with_approximate=True)
    build_index(output, tmp_path / "index")
    assert len(EmbeddedCorpus.load(tmp_path / "index").search(QUERIES[0], 4)) == 4


def test_an_empty_output_has_an_empty_index(tmp_path: Path) -> None:
    build_index(write_scored(tmp_path / "output", unit_vectors(1, DIM)[:0], files=1), tmp_path / "index")
    corpus = EmbeddedCorpus.load(tmp_path / "index")
    assert corpus.search(QUERIES[0], 5) == []
    assert corpus.search(QUERIES[0], 5, where="speaker = 'amy'") == []


def test_a_remote_output_is_indexed_and_searched(output: Path, index: Path, s3_server: str, tmp_path: Path) -> None:
    import fsspec

    url = f"{s3_server}/scored/output"
    fsspec.filesystem("s3").put(str(output), url, recursive=True)
    build_index(url, tmp_path / "index")
    expected = EmbeddedCorpus.load(index).search(QUERIES[0], 7, where="speaker = 'bob'", exact=True)
    assert EmbeddedCorpus.load(tmp_path / "index").search(QUERIES[0], 7, where="speaker = 'bob'") == expected
    assert EmbeddedCorpus.load(url).search(QUERIES[0], 7, where="speaker = 'bob'") == expected
