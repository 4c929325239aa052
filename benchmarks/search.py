"""`psclap search` at millions of rows: exact and approximate, beside what else one would do.

    python benchmarks/search.py --rows 1000000 --peers --folder /tmp/bench
    python benchmarks/search.py --rows 5000000 --folder /tmp/bench

Random vectors of 768 dimensions in float16 (`search_data.py`); each measurement is a process of its own. Peers in
the same run: everything in memory and sorted, faiss' flat index, and a compressed faiss index alone, without the
exact scores of its candidates, as clip-retrieval uses one. The folder (1.6 kB a row, and 3.1 kB while the index is
built from Parquet, up to 2 M rows) is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from search_data import DIM, Mixture

TOP = 10
_PARQUET_ROWS = 2_000_000  # of more rows there is no room for Parquet beside the index
_ROWS_PER_FILE = 65_536


def metadata(start: int, count: int) -> pa.Table:
    rows = np.arange(start, start + count)
    tags = np.array(["fast", "slow", "whispered", "calm", "angry", "happy"])
    return pa.table(
        {
            "key": [f"clip-{row:08d}" for row in rows],
            "speaker": [f"speaker-{row % 2000}" for row in rows],
            "situational_tags": pa.FixedSizeListArray.from_arrays(
                pa.array(tags[np.stack([rows % 6, rows // 7 % 6], 1).ravel()]), 2
            ).cast(pa.list_(pa.string())),
            "duration_s": (rows % 190) / 10 + 1,
        }
    )


def write_output(output: Path, rows: int) -> None:
    (output / "clips").mkdir(parents=True)
    blocks, start = Mixture().blocks(rows, seed=1, block_rows=_ROWS_PER_FILE), 0
    for number, block in enumerate(blocks):
        column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), DIM)
        table = metadata(start, len(block)).append_column("embedding", column)
        path = output / "clips" / f"part-{number:05d}.parquet"
        pq.write_table(table, path, compression="none", use_dictionary=["speaker"], row_group_size=16_384)
        start += len(block)
    (output / "_summary.json").write_text(json.dumps({"model": "random", "weights_sha256": "0" * 64}))


class Peak:
    """The largest anonymous memory of this process: what mapped files take can be given back."""

    def __init__(self) -> None:
        self.mib, self._done = 0.0, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            status = Path("/proc/self/status").read_text()
            self.mib = max(self.mib, int(status.split("RssAnon:")[1].split()[0]) / 1024)


def timed(work: Callable[[], Any], repeats: int) -> float:
    """The median of the seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def forget(path: Path) -> None:
    """Drops a file from the page cache."""
    with open(path, "rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def recall(found: list[list[int]], truth: list[list[int]]) -> float:
    return float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found, truth, strict=True)]))


def build_exact(folder: Path, rows: int) -> dict[str, Any]:
    from psclap.search import build_index

    start = time.perf_counter()
    if rows <= _PARQUET_ROWS:
        build_index(folder / "output", folder / "index")
    else:
        _build_directly(folder / "index", rows)
    seconds = time.perf_counter() - start
    _register(folder / "index", {})
    return {"s": seconds, "bytes": {p.name: p.stat().st_size for p in sorted((folder / "index").iterdir())}}


def build_approximate(folder: Path, rows: int) -> dict[str, Any]:
    from psclap.search import approximate

    path = folder / "index" / approximate.APPROXIMATE_NAME
    vectors = np.load(folder / "index" / "vectors.npy", mmap_mode="c")
    start = time.perf_counter()
    facts = approximate.build(vectors, path)
    seconds = time.perf_counter() - start
    _register(folder / "index", {"approximate": facts})
    return {"s": seconds, **facts, "bytes": path.stat().st_size}


def _build_directly(index: Path, rows: int) -> None:
    """As `build_index` writes it, but without an output to read: there is no room for both."""
    index.mkdir(parents=True)
    header = {"descr": "<f2", "fortran_order": False, "shape": (rows, DIM)}
    with open(index / "vectors.npy", "wb") as stream:
        np.lib.format.write_array_header_2_0(stream, header)
        for block in Mixture().blocks(rows, seed=1):
            stream.write(block.data)
    with pa.ipc.new_file(str(index / "metadata.arrow"), metadata(0, 1).schema) as writer:
        for start in range(0, rows, 65_536):
            writer.write_table(metadata(start, min(65_536, rows - start)))
    facts = {
        "version": 1, "model": "random", "weights_sha256": "0", "rows": rows, "dim": DIM, "dtype": "float16",
        "source": "/nowhere", "windows": False, "fingerprint": "", "bytes": {},
    }  # fmt: skip
    (index / "index.json").write_text(json.dumps(facts))


def _register(index: Path, facts: dict[str, Any]) -> None:
    """Adds facts, the sizes of the files, and a source that is gone."""
    facts = json.loads((index / "index.json").read_text()) | {"source": "/nowhere"} | facts
    facts["bytes"] = {path.name: path.stat().st_size for path in index.iterdir() if path.name != "index.json"}
    (index / "index.json").write_text(json.dumps(facts))


def queries_of(mixture: Mixture) -> dict[str, np.ndarray]:
    return {"speech": mixture.speech_queries(32, seed=2), "text": mixture.text_queries(32, seed=3)}


FILTERS = {"1 of 2000": "speaker = 'speaker-7'", "half": "duration_s > 10.5"}


def exact(folder: Path, rows: int) -> dict[str, Any]:
    from psclap.search import EmbeddedCorpus

    queries = queries_of(Mixture())
    start = time.perf_counter()
    corpus = EmbeddedCorpus.load(folder / "index")
    results: dict[str, Any] = {"open_s": time.perf_counter() - start}
    query = queries["text"][0]
    forget(folder / "index" / "vectors.npy")
    results["cold_s"] = timed(lambda: corpus.search(query, TOP, exact=True), 1)
    results["warm_s"] = timed(lambda: corpus.search(query, TOP, exact=True), 3)
    results["32_s"] = timed(lambda: corpus.search_many(queries["text"], TOP, exact=True), 2)
    for name, where in FILTERS.items():
        results[f"where {name}_s"] = timed(lambda w=where: corpus.search(query, TOP, where=w, exact=True), 3)
    truth = {name: keys(corpus, of_kind, exact=True) for name, of_kind in queries.items()}
    (folder / "truth.json").write_text(json.dumps(truth))
    return results


def approximate(folder: Path, rows: int) -> dict[str, Any]:
    from psclap.search import EmbeddedCorpus

    queries, truth = queries_of(Mixture()), json.loads((folder / "truth.json").read_text())
    start = time.perf_counter()
    corpus = EmbeddedCorpus.load(folder / "index")
    results: dict[str, Any] = {"open_s": time.perf_counter() - start}
    one_by_one(corpus, queries["text"], 16)  # reads the index in
    for name, where in FILTERS.items():
        results[f"where {name}_s"] = timed(lambda w=where: corpus.search(queries["text"][0], TOP, where=w), 3)
    for probes in (1, 4, 16, 64):
        for name, of_kind in queries.items():
            found: list[list[int]] = []
            seconds = timed(lambda p=probes, q=of_kind, f=found: f.extend(one_by_one(corpus, q, p)), 1) / len(of_kind)
            results[f"probes {probes} {name}"] = {"s": seconds, "recall": recall(found, truth[name])}
    return results


def keys(corpus: Any, queries: np.ndarray, **options: Any) -> list[list[int]]:
    found = corpus.search_many(queries, TOP, columns=["key"], **options)
    return [[int(clip["key"][5:]) for clip in clips] for clips in found]


def one_by_one(corpus: Any, queries: np.ndarray, probes: int) -> list[list[int]]:
    return [keys(corpus, query[None], probes=probes)[0] for query in queries]


def in_memory(folder: Path, rows: int) -> dict[str, Any]:
    """Everything in memory in float32, every score sorted."""
    embeddings = np.load(folder / "index" / "vectors.npy").astype(np.float32)
    query = Mixture().text_queries(1, seed=3)[0]
    return {"1_s": timed(lambda: np.argsort(-(embeddings @ query), kind="stable")[:TOP], 3)}


def faiss_flat(folder: Path, rows: int) -> dict[str, Any]:
    import faiss

    index = faiss.IndexFlatIP(DIM)
    vectors = np.load(folder / "index" / "vectors.npy", mmap_mode="r")
    for start in range(0, rows, 65_536):
        index.add(vectors[start : start + 65_536].astype(np.float32))
    queries = Mixture().text_queries(32, seed=3)
    return {
        "1_s": timed(lambda: index.search(queries[:1], TOP), 3),
        "32_s": timed(lambda: index.search(queries, TOP), 2),
    }


def faiss_alone(folder: Path, rows: int) -> dict[str, Any]:
    """Our faiss index in memory, whose own order is the answer."""
    import faiss

    index = faiss.read_index(str(folder / "index" / "approximate.faiss"))
    truth, queries = json.loads((folder / "truth.json").read_text()), queries_of(Mixture())
    results: dict[str, Any] = {}
    for probes in (4, 16, 64):
        faiss.extract_index_ivf(index).nprobe = probes
        for name, of_kind in queries.items():
            begun = time.perf_counter()
            found = [index.search(query[None], TOP)[1][0].tolist() for query in of_kind]
            seconds = (time.perf_counter() - begun) / len(of_kind)
            results[f"probes {probes} {name}"] = {"s": seconds, "recall": recall(found, truth[name])}
    return results


MEASURED = {
    function.__name__: function
    for function in (build_exact, exact, build_approximate, approximate, in_memory, faiss_flat, faiss_alone)
}


@contextmanager
def working_folder(parent: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="psclap-search-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def child(name: str, folder: Path, rows: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", name, "--folder", str(folder), "--rows", str(rows)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(name, json.dumps(result, indent=1), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        peak = Peak()
        result = MEASURED[options.measure](options.folder, options.rows)
        print(json.dumps({**result, "peak_anonymous_mib": round(peak.mib)}))
        return
    with working_folder(options.folder) as folder:
        if options.rows <= _PARQUET_ROWS:
            write_output(folder / "output", options.rows)
        child("build_exact", folder, options.rows)
        shutil.rmtree(folder / "output", ignore_errors=True)
        for name in ("exact", "build_approximate", "approximate"):
            child(name, folder, options.rows)
        for name in ("in_memory", "faiss_flat", "faiss_alone") if options.peers else ():
            child(name, folder, options.rows)


if __name__ == "__main__":
    main()
