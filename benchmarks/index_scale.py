"""What a training pays before its first batch when the data set is large: 1 and 10 million clips.

The index is synthetic (no audio behind it), with all its columns filled as a real one: two captions, three tags, a
transcript. Each step is timed in a fresh process with its libraries imported, one after the other:

    open      the summary and the footer of the index
    stream    the rows of the split and caption set, their places in the shards, class balance where it is weighted
    plan      the order of one epoch
    resume    from the saved position, open to the first job of the loader (which batches it reads, not their sound)

Memory is the process's resident set above what its libraries take, after the step, and at its highest.

    python benchmarks/index_scale.py --rows 1000000 10000000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from psclap.schema import INDEX_SCHEMA
from psclap.tags import VOCABULARY

_CHUNK = 200_000
_CLIPS_PER_SHARD = 2000
_SAMPLE_RATE_HZ = 16000
_BATCH_SIZE = 128
WAYS = ("plain", "weighted", "blocks", "distinct")


def make(folder: Path, rows: int) -> None:
    """Writes an index of so many rows and its summary."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-rows // _CLIPS_PER_SHARD)
    with pq.ParquetWriter(folder / "index.parquet", INDEX_SCHEMA, compression="zstd") as writer:
        for start in range(0, rows, _CHUNK):
            writer.write_table(_chunk(np.arange(start, min(start + _CHUNK, rows))), row_group_size=1 << 16)
    summary = {
        "sample_rate_hz": _SAMPLE_RATE_HZ,
        "index_sha256": "0" * 64,
        "shards": {f"train-{number:05d}.tar": {"bytes": 1, "sha256": f"{number:064d}"} for number in range(shards)},
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def _chunk(numbers: np.ndarray) -> pa.Table:
    rng = np.random.default_rng([0, int(numbers[0])])
    texts = pc.cast(pa.array(numbers), pa.string())
    speakers = pc.cast(pa.array(numbers // 50), pa.string())
    size = len(numbers)
    tags = _lists(pa.array(VOCABULARY).take(pa.array(rng.zipf(1.3, 3 * size) % len(VOCABULARY))), 3)
    # A speaker's captions are those of all its clips, as in ParaSpeechCaps.
    captions = [pc.binary_join_element_wise(f"Caption {kind} of the speaker", speakers, " ") for kind in ("one", "two")]
    both = pa.concat_arrays(captions).take(pa.array(np.arange(2 * size).reshape(2, size).T.ravel()))
    sets = pa.array(["intrinsic"]).take(pa.array(np.zeros(2 * size, np.int64)))
    num_samples = rng.integers(_SAMPLE_RATE_HZ, 20 * _SAMPLE_RATE_HZ, size)
    columns: dict[str, Any] = {
        "key": pc.binary_join_element_wise("train-voxceleb", texts, "--"),
        "speaker": speakers,
        "source": _same("voxceleb", size),
        "split": _same("train", size),
        "captions": _lists(pa.StructArray.from_arrays([sets, both], names=["set", "text"]), 2),
        "intrinsic_tags": tags,
        "situational_tags": _lists(pa.array([], pa.string()), 0, size),
        "classification_tags": _lists(pa.array([], pa.string()), 0, size),
        "transcript": pc.binary_join_element_wise("What the speaker said in clip", texts, " "),
        "language": _same("en", size),
        "phonemes": _lists(pa.array([], pa.string()), 0, size),
        "shard": pc.binary_join_element_wise(
            "train-", pc.utf8_lpad(pc.cast(pa.array(numbers // _CLIPS_PER_SHARD), pa.string()), 5, "0"), ".tar", ""
        ),
        "byte_offset": (numbers % _CLIPS_PER_SHARD) * 150_000 + 512,
        "byte_length": num_samples * 5 // 4,
        "metadata_length": rng.integers(300, 500, size),
        "num_samples": num_samples,
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


def _same(text: str, size: int) -> pa.Array:
    return pa.array([text]).take(pa.array(np.zeros(size, np.int64)))


def _lists(values: pa.Array, each: int, size: int | None = None) -> pa.ListArray:
    size = len(values) // each if size is None else size
    return pa.ListArray.from_arrays(pa.array(np.arange(size + 1, dtype=np.int32) * each), values)


def measure(folder: Path, way: str) -> dict[str, list[float]]:
    """Seconds, MB after and peak MB of each step; runs in a process of its own."""
    from dataclasses import replace

    from psclap.config import PRESETS_FOLDER, load_params
    from psclap.loader import Loader, Position
    from psclap.loop_config import LoadingConfig, SamplingConfig
    from psclap.shards.index import ShardIndex
    from psclap.training.data import build_stream

    options = {
        "plain": SamplingConfig(),
        "weighted": SamplingConfig(class_balance="inverse"),
        "blocks": SamplingConfig(shuffle_block_shards=16),
        "distinct": SamplingConfig(distinct_captions=True),
    }
    base = load_params(PRESETS_FOLDER / "demo.yaml").train["intrinsic"]
    config = replace(base, global_batch_size=_BATCH_SIZE, sampling=options[way])
    if way != "plain":
        import scipy.sparse.csgraph  # noqa: F401 - a library, as the others

    before_mb = _resident_mb()
    steps: dict[str, list[float]] = {}

    def step(name: str, work: Any) -> Any:
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        steps[name] = [seconds, _resident_mb() - before_mb, _resident_mb("VmHWM") - before_mb]
        return result

    index = step("open", lambda: ShardIndex(folder))
    stream = step("stream", partial(build_stream, config, index, seed=0))
    plan = step("plan", partial(stream.plan, 0))
    position = Position(0, len(plan) // 2)

    def resume() -> None:
        again = build_stream(config, ShardIndex(folder), seed=0)
        loader = Loader(again, None, max_crop_s=10.0, loading=LoadingConfig(), position=position)  # type: ignore[arg-type]
        next(loader._jobs())

    del plan, stream, index
    step("resume", resume)
    return steps


def _resident_mb(what: str = "VmRSS") -> float:
    """A figure of the kernel's; VmHWM is the highest so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), arguments.measure[1])))
        return
    print("| rows | plan | step | s | MB after | MB peak |\n|---|---|---|---|---|---|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), rows)
            for way in arguments.ways:
                command = [sys.executable, __file__, "--measure", folder, way]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                for name, (seconds, after_mb, peak_mb) in json.loads(output).items():
                    print(f"| {rows:,} | {way} | {name} | {seconds:.3f} | {after_mb:.0f} | {peak_mb:.0f} |", flush=True)


if __name__ == "__main__":
    main()
