"""Outputs of the scoring job as it writes them, with embeddings of our own choice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SPEAKERS = ("amy", "bob", "Zoë", "d'Arc")
TAGS = ("whispered", "fast", "calm")


def unit_vectors(rows: int, dim: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """(rows, dim) random L2-normalised vectors in clusters, some of them twice."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, dim))
    vectors = centres[rng.integers(8, size=rows)] + 0.5 * rng.normal(size=(rows, dim))
    vectors[rows // 2 : rows // 2 + rows // 10] = vectors[: rows // 10]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)


def metadata(rows: int) -> list[dict[str, object]]:
    """What stands beside the embedding of each clip; every value is a function of the row's number."""
    return [
        {
            "key": f"clip-{row:05d}",
            "speaker": SPEAKERS[row % 4] if row % 11 else None,
            "intrinsic_tags": [TAGS[2]] if row % 2 else [],
            "situational_tags": [TAGS[row % 2], "läuft"] if row % 7 else None,
            "transcript": f"the text № {row}",
            "duration_s": row / 10,
            "num_samples": 1600 * row,
            "scores": {"a deep voice": row / 100, "b": None},
            "tag_pitch-level": "high-pitched" if row % 3 else "low-pitched",
        }
        for row in range(rows)
    ]


SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("speaker", pa.string()),
        ("intrinsic_tags", pa.list_(pa.string())),
        ("situational_tags", pa.list_(pa.string())),
        ("transcript", pa.string()),
        ("duration_s", pa.float64()),
        ("num_samples", pa.int64()),
        ("scores", pa.struct([("a deep voice", pa.float32()), ("b", pa.float32())])),
        ("tag_pitch-level", pa.string()),
    ]
)


def write_scored(
    output: Path,
    vectors: np.ndarray,
    *,
    files: int = 3,
    group_rows: int = 50,
    model: str = "m",
    weights: str = "0" * 64,
) -> Path:
    """Writes `output`/clips with rows of `metadata`, `output`/windows with their even ones, and the summary."""
    table = pa.Table.from_pylist(metadata(len(vectors)), schema=SCHEMA)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = table.append_column("embedding", column)
    even = table.take(np.arange(0, len(vectors), 2))
    starts = pa.array([row / 2 for row in range(even.num_rows)])
    windows = even.append_column("start_s", starts).append_column("end_s", starts)
    for name, rows in (("clips", table), ("windows", windows)):
        (output / name).mkdir(parents=True)
        size = -(-rows.num_rows // files)
        for number in range(files):
            part = rows.slice(number * size, size)
            pq.write_table(part, output / name / f"part-{number:05d}.parquet", row_group_size=group_rows)
    (output / "_summary.json").write_text(json.dumps({"model": model, "weights_sha256": weights}))
    return output
