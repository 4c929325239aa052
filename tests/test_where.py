"""Filters on metadata, against the same question asked in Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import SCHEMA, metadata

from psclap.errors import PsclapError
from psclap.search.where import Where

ROWS = metadata(60)
BATCH = pa.RecordBatch.from_pylist(ROWS, schema=SCHEMA)


def selected(text: str, batch: pa.RecordBatch = BATCH) -> list[int]:
    return [row for row, is_selected in enumerate(Where(text, batch.schema).mask(batch)) if is_selected]


def dictionary_encoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """As an index stores it."""
    columns = []
    for name in batch.schema.names:
        column = batch.column(name)
        if column.type == pa.string():
            column = column.dictionary_encode()
        elif pa.types.is_list(column.type):
            values = column.flatten().dictionary_encode()
            column = pa.ListArray.from_arrays(column.offsets, values, mask=column.is_null())
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


CASES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("speaker = 'amy'", lambda row: row["speaker"] == "amy"),
    ('speaker == "d\'Arc"', lambda row: row["speaker"] == "d'Arc"),
    ("speaker = 'Zoë' or key = 'clip-00003'", lambda row: row["speaker"] == "Zoë" or row["key"] == "clip-00003"),
    ("speaker != 'amy'", lambda row: row["speaker"] not in ("amy", None)),
    ("not speaker = 'amy'", lambda row: row["speaker"] not in ("amy", None)),
    ("speaker is None", lambda row: row["speaker"] is None),
    ("speaker is not None and duration_s<1", lambda row: row["speaker"] is not None and row["duration_s"] < 1),
    ("speaker in ('amy', 'bob')", lambda row: row["speaker"] in ("amy", "bob")),
    ("speaker not in ['amy', 'bob']", lambda row: row["speaker"] not in ("amy", "bob", None)),
    ("speaker in ()", lambda row: False),
    ("duration_s > 3", lambda row: row["duration_s"] > 3),
    ("1 < duration_s <= 2.5", lambda row: 1 < row["duration_s"] <= 2.5),
    ("duration_s > -1", lambda row: True),
    ("num_samples in (1600, 3200)", lambda row: row["num_samples"] in (1600, 3200)),
    ("'fast' in situational_tags", lambda row: "fast" in (row["situational_tags"] or ())),
    (
        "'fast' not in situational_tags",
        lambda row: row["situational_tags"] is not None and "fast" not in row["situational_tags"],
    ),
    ("'läuft' in situational_tags", lambda row: "läuft" in (row["situational_tags"] or ())),
    ("'calm' in intrinsic_tags", lambda row: "calm" in row["intrinsic_tags"]),
    ("'№ 1' in transcript", lambda row: "№ 1" in row["transcript"]),
    ("'o' in speaker", lambda row: "o" in (row["speaker"] or "")),
    ("`tag_pitch-level` = 'low-pitched'", lambda row: row["tag_pitch-level"] == "low-pitched"),
    ("key = '`a = b`'", lambda row: False),
    ("scores['a deep voice'] >= 0.3", lambda row: row["scores"]["a deep voice"] >= 0.295),
    ("scores.b > 0", lambda row: False),
]


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[text for text, _ in CASES])
@pytest.mark.parametrize("batch", [BATCH, dictionary_encoded(BATCH)], ids=["plain", "dictionary"])
def test_a_filter_selects_what_it_says(
    text: str, expected: Callable[[dict[str, Any]], Any], batch: pa.RecordBatch
) -> None:
    assert selected(text, batch) == [row for row, values in enumerate(ROWS) if expected(values)]


LEAVES = st.sampled_from(
    [(text, expected) for text, expected in CASES if "scores.b" not in text and "None" not in text]
)


@given(st.lists(st.tuples(LEAVES, st.sampled_from(["and", "or"])), min_size=1, max_size=5))
def test_and_and_or_join_as_in_python(parts: list[tuple[tuple[str, Callable], str]]) -> None:
    """Python's own `eval`, over the truth of the parts, is the judge of precedence."""
    text, truths = "", ""
    for number, ((leaf, _), joint) in enumerate(parts):
        text += f"({leaf}) {joint} "
        truths += f"t[{number}] {joint} "
    text, truths = text.rsplit(" ", 2)[0], truths.rsplit(" ", 2)[0]
    rows = [
        row
        for row, values in enumerate(ROWS)
        if eval(truths, {"t": [bool(expected(values)) for (_, expected), _ in parts]})
    ]
    assert selected(text) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spker = 'x'", "names 'spker', which is no column; there are key, speaker,"),
        ("`no such` = 1", "names 'no such'"),
        ("speaker = 3", r"does not fit its columns \(speaker: string\)"),
        ("'x' in duration_s", r"does not fit its columns \(duration_s: double\)"),
        ("speaker in (1, 2)", "does not fit its columns"),
        ("scores.c > 1", "does not fit its columns"),
        ("num_samples < 1000000000000000000000000", "does not fit its columns"),
        ("__import__('os').system('true')", "names '__import__'"),
        ("speaker.upper() = 'X'", "not understood"),
        ("[x for x in speaker]", "names 'x'"),
        ("(lambda: speaker)()", "not understood"),
        ("speaker + 'a' = 'b'", "not understood"),
        ("speaker", "not understood"),
        ("speaker is 'x'", "not understood"),
        ("1 < 2", "names no column"),
        ("", "no expression"),
        ("speaker ==", "no expression"),
        ("speaker = 'amy", "no expression"),
        ("speaker = 'a'; 1", "no expression"),
        ("not " * 5000 + "speaker = 'x'", "filter"),
        ("(" * 500 + "speaker = 'x'" + ")" * 500, "no expression"),
        ("speaker = '" + "x" * 200_000 + "'", "200,012 characters"),
    ],
)
def test_what_is_no_filter_is_refused(text: str, message: str) -> None:
    with pytest.raises(PsclapError, match=message):
        Where(text, SCHEMA)


def test_a_filter_runs_nothing(tmp_path: Path) -> None:
    with pytest.raises(PsclapError):
        Where(f"speaker = open('{tmp_path / 'made'}', 'w')", SCHEMA)
    assert not [*tmp_path.iterdir()]
