"""Exact search against sorting every score; the outputs of the scoring job as they are."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import metadata, unit_vectors, write_scored

from psclap.errors import PsclapError
from psclap.search import EmbeddedCorpus
from psclap.search.exact import search_exactly

DIM = 24


def brute_force(vectors: np.ndarray, query: np.ndarray, top: int) -> tuple[list[int], np.ndarray]:
    """Every score in float64, sorted; of equal scores the lower row first."""
    scores = np.array([(vector.astype(np.float64) * query.astype(np.float64)).sum() for vector in vectors])
    rows = np.argsort(-scores, kind="stable")[:top]
    return rows.tolist(), scores[rows]


@given(
    rows=st.integers(0, 90),
    queries=st.integers(0, 4),
    top=st.integers(1, 100),
    block=st.integers(1, 40),
    dtype=st.sampled_from(["float16", "float32"]),
    distinct=st.integers(1, 90),
    seed=st.integers(0, 100),
)
def test_equals_sorting_all_scores_whatever_the_blocks(
    rows: int, queries: int, top: int, block: int, dtype: str, distinct: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit_vectors(max(rows, 1), DIM, dtype, seed)[rng.integers(0, min(distinct, max(rows, 1)), rows)]
    queries_QD = unit_vectors(4, DIM, seed=seed + 1)[:queries]
    blocks = [
        (np.arange(start, min(start + block, rows)), vectors[start : start + block]) for start in range(0, rows, block)
    ]
    found = search_exactly(blocks, queries_QD, top)
    assert len(found) == queries
    for query, hits in zip(queries_QD, found, strict=True):
        expected_rows, expected_scores = brute_force(vectors, query, top)
        assert hits.rows.tolist() == expected_rows
        assert hits.scores.tolist() == expected_scores.tolist()


def test_rows_that_float32_cannot_tell_apart_are_in_their_order() -> None:
    """Neighbours differ by less than float32 products are wrong by, so only exact scores find the best."""
    rng = np.random.default_rng(0)
    query = unit_vectors(1, 768)
    noise = rng.normal(size=(2000, 768)).astype(np.float32)
    noise -= (noise @ query.T) * query
    vectors = query + 1e-6 * noise
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    (hits,) = search_exactly([(np.arange(2000), vectors)], query, 10)
    assert hits.rows.tolist() == brute_force(vectors, query[0], 10)[0]


def test_one_vector_in_every_row_comes_back_in_the_order_of_rows() -> None:
    vectors = np.repeat(unit_vectors(1, DIM, "float16"), 5000, axis=0)
    blocks = [
        (np.arange(start, start + 700)[: 5000 - start], vectors[start : start + 700]) for start in range(0, 5000, 700)
    ]
    (hits,) = search_exactly(blocks, unit_vectors(1, DIM, seed=3), 1500)
    assert hits.rows.tolist() == [*range(1500)]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return unit_vectors(400, DIM, "float16")


@pytest.fixture(scope="module")
def output(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 clips in 3 files of several row groups. Not to be changed."""
    return write_scored(tmp_path_factory.mktemp("scored") / "output", vectors)


QUERIES = unit_vectors(3, DIM, seed=9)


def test_an_output_is_searched_as_it_is(output: Path, vectors: np.ndarray) -> None:
    corpus = EmbeddedCorpus.load(output)
    assert (len(corpus), corpus.model, corpus.columns[:2]) == (400, "m", ["key", "speaker"])
    expected = metadata(400)
    for query, found in zip(QUERIES, corpus.search_many(QUERIES, 7), strict=True):
        rows, scores = brute_force(vectors, query, 7)
        assert [clip.pop("score") for clip in found] == scores.tolist()
        assert [clip["key"] for clip in found] == [expected[row]["key"] for row in rows]
        assert [clip["situational_tags"] for clip in found] == [expected[row]["situational_tags"] for row in rows]


def test_a_filter_is_applied_before_the_best_are_taken(output: Path, vectors: np.ndarray) -> None:
    kept = [row for row, values in enumerate(metadata(400)) if values["speaker"] == "bob" and values["duration_s"] > 9]
    found = EmbeddedCorpus.load(output).search(
        QUERIES[0], 5, where="speaker = 'bob' and duration_s > 9", columns=["num_samples"]
    )
    rows, scores = brute_force(vectors[kept], QUERIES[0], 5)
    assert found == [{"num_samples": 1600 * kept[row], "score": score} for row, score in zip(rows, scores, strict=True)]


def test_fewer_rows_than_asked_for_are_all_of_them(output: Path) -> None:
    corpus = EmbeddedCorpus.load(output)
    assert len(corpus.search(QUERIES[0], 10_000)) == 400
    assert len(corpus.search(QUERIES[0], 5, where="key = 'clip-00002'")) == 1
    assert corpus.search(QUERIES[0], 5, where="key = 'nobody'") == []
    assert corpus.search_many(np.empty((0, DIM))) == []
    assert [set(clip) for clip in corpus.search(QUERIES[0], 2, columns=[])] == [{"score"}] * 2


def test_windows_are_searched_where_they_are_asked_for(output: Path) -> None:
    (best, *_) = EmbeddedCorpus.load(output, windows=True).search(QUERIES[0], 3)
    assert best["num_samples"] % 3200 == 0
    assert best["start_s"] == best["num_samples"] / 3200 / 2


def test_an_output_without_rows_is_searched_in_vain(tmp_path: Path) -> None:
    corpus = EmbeddedCorpus.load(write_scored(tmp_path / "output", unit_vectors(1, DIM)[:0], files=1))
    assert corpus.search(QUERIES[0], 5) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": QUERIES[0][:5]}, "has 5 dimensions and the embeddings have 24: they were made by m"),
        ({"query": QUERIES[0] * np.nan}, "nan.*normalise them"),
        ({"query": QUERIES[0] * np.float32(1e38)}, "normalise them"),
        ({"query": QUERIES[0] * 0}, r"of length \[0.0\]; normalise them"),
        ({"query": QUERIES}, r"\(1, 3, 24\)"),
        ({"query": QUERIES[0], "top": 0}, "top 0"),
        ({"query": QUERIES[0], "columns": ["key", "kee"]}, "no column 'kee'; there are key, speaker"),
        ({"query": QUERIES[0], "where": "spk = 1"}, "no column"),
        ({"query": QUERIES[0], "probes": 3}, "psclap index --approximate"),
    ],
)
def test_bad_questions_are_refused(output: Path, arguments: dict, message: str) -> None:
    with pytest.raises(PsclapError, match=message):
        EmbeddedCorpus.load(output).search(**arguments)


def damage(output: Path, how: str) -> None:
    part = output / "clips" / "part-00001.parquet"
    table = pq.read_table(part)
    if how == "truncated":
        part.write_bytes(part.read_bytes()[:-100])
    elif how == "overwritten":  # the footer is whole
        data = bytearray(part.read_bytes())
        data[200 : len(data) // 2] = b"\xff" * (len(data) // 2 - 200)
        part.write_bytes(data)
    elif how == "no summary":
        (output / "_summary.json").unlink()
    elif how == "summary without model":
        (output / "_summary.json").write_text("{}")
    elif how == "summary of a list":
        (output / "_summary.json").write_text("[]")
    elif how == "other columns":
        pq.write_table(table.drop_columns("speaker"), part)
    elif how == "no files":
        for path in (output / "clips").iterdir():
            path.unlink()
    else:
        values = {"NaN": np.nan, "zero": 0.0, "not normalised": 2.0}[how]
        vectors = np.full((table.num_rows, DIM), values, np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM)
        pq.write_table(table.drop_columns("embedding").append_column("embedding", column), part)


DAMAGES = {
    "truncated": "part-00001.parquet cannot be read",
    "overwritten": "part-00001.parquet cannot be read",
    "no summary": "_summary.json is missing",
    "summary without model": "no output of the scoring job",
    "summary of a list": "no output of the scoring job",
    "other columns": "part-00001.parquet has other columns than part-00000.parquet",
    "no files": "holds no Parquet files",
    "NaN": "row 134 is not of length 1",
    "zero": "row 134 is not of length 1",
    "not normalised": "row 134 is not of length 1",
}


@pytest.mark.parametrize(("how", "message"), DAMAGES.items())
def test_a_damaged_output_is_refused(tmp_path: Path, vectors: np.ndarray, how: str, message: str) -> None:
    output = write_scored(tmp_path / "output", vectors)
    damage(output, how)
    with pytest.raises(PsclapError, match=message):
        EmbeddedCorpus.load(output).search(QUERIES[0], 5)


def test_embeddings_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "_summary.json").write_text(json.dumps({"model": "m", "weights_sha256": "0"}))
    pq.write_table(pa.table({"key": ["a"], "embedding": [[1.0, 0.0]]}), tmp_path / "clips" / "part-00000.parquet")
    with pytest.raises(PsclapError, match="fixed-size lists of float16 or float32"):
        EmbeddedCorpus.load(tmp_path)


def test_an_output_is_searched_in_bounded_memory(tmp_path: Path) -> None:
    """Four times the rows take no more of Python's and numpy's memory."""
    peaks = []
    for files in (4, 16):
        vectors = unit_vectors(6000 * files, DIM)
        output = write_scored(tmp_path / str(files), vectors, files=files, group_rows=2000)
        corpus = EmbeddedCorpus.load(output)
        pa.default_memory_pool().release_unused()
        tracemalloc.start()
        corpus.search(QUERIES[0], 5)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
