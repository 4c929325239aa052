r"""Loaders compared on the same clips: psclap, webdataset, mosaicml-streaming and plain files.

Every system delivers the same batches (crops padded to (B, T) float32, captions, lengths; no tokenizer), with the
same batch size, crop and number of loader processes, from one local disk whose files lie in the page cache. Two data
sets are made once, under --data: `short` (2-6 s, never cropped) and `long` (60 s, cropped to 10 s), FLAC at 16 kHz.

    psclap      the shards by their index; every clip of the set can come next
    webdataset  the very same tars, shards and a buffer of samples shuffled, batched in the loader processes
    streaming   MDS shards of the same FLAC bytes, shuffle=True, StreamingDataLoader
    files       a map-style Dataset over FLAC files and a DataLoader: each file decoded whole, then cropped

This is the harder comparison: webdataset and streaming hand out bytes, so they are given psclap's own decoder, which
decodes the crop alone; webdataset's buffer is a quarter of the clips, where its documentation has 1,000.
Loader processes outlive the epoch (persistent_workers). With 0 processes the peers load in the training process;
psclap then has what threads it starts by itself.

Columns. Every number is of a fresh process with its libraries imported (torch, and the system's own) before the clock:

    clips/s      over --batches batches after --warmup, across epochs
    first batch  from before the data set and loader are made (index read, order drawn, processes started) to the
                 first batch delivered
    resume       the same, from the state saved on disk at --resume-at of the epoch. webdataset saves nothing: its
                 deterministic shuffle is run again and the samples before are skipped, undecoded. Files: a seeded
                 sampler, sliced. `exact` says whether the batch is the one that an uninterrupted run delivers
    memory       proportional set size of the process and its children, the highest of --epochs epochs, with the
                 libraries; in brackets above what the process held before; growth from the end of the first
                 epoch to the end of the last

Times are medians over --passes; in a pass, systems take turns. A ratio is the median of the passes' own ratios, and
above 1 psclap is the better one. Memory is measured once.

mosaicml-streaming cannot live in the project's environment; its packages get one of their own, over the project's:

    .venv/bin/python -m venv .venv-peers
    .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
        .venv-peers/lib/python3.11/site-packages/project.pth
    .venv-peers/bin/pip install --no-deps --requirement benchmarks/peers/requirements.txt
    .venv/bin/python benchmarks/loader.py --peers-python .venv-peers/bin/python

It works with the project's numpy and torch; only its vision data sets, which need torchvision, are kept from being
imported. It names its shared memory alike for the whole machine: run one benchmark at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loader_child import Job
from loader_data import DataSet, make
from loader_systems import SYSTEMS, Setting

_HERE = Path(__file__).resolve().parent
_NEED_PEERS = ("webdataset", "streaming")
_OURS = "psclap"
_TIMEOUT_S = 1800  # of one process: a loader that hangs must not hang the benchmark
_HEADER = (
    "| data | processes | system | clips/s | ratio | first batch, s | ratio | resume, s | ratio | exact "
    "| memory, MiB | ratio | growth, MiB |"
)


@dataclass
class Row:
    """The results of one system in one setting: a number per pass, in order; memory once."""

    clips_per_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    resume_s: list[float] = field(default_factory=list)
    exact: bool = True
    memory: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    arguments = _arguments()
    print(_HEADER + "\n|" + "---|" * (_HEADER.count("|") - 1), flush=True)
    lines, raw = [], []
    for data_set in (arguments.short, arguments.long):
        if not data_set.num_clips:
            continue
        folder = make(data_set, arguments.data)
        for num_workers in arguments.processes:
            setting = Setting(folder, data_set.num_clips, num_workers, arguments.batch_size, data_set.crop_s)
            rows = measure(setting, arguments)
            raw.append({"setting": vars(setting), "rows": {name: vars(row) for name, row in rows.items()}})
            for line in table_lines(data_set.name, num_workers, rows):
                lines.append(line)
                print(line, flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join([_HEADER, "|" + "---|" * (_HEADER.count("|") - 1), *lines]) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(raw, default=str, indent=1) + "\n")


def measure(setting: Setting, arguments: argparse.Namespace) -> dict[str, Row]:
    """All systems in one setting."""
    rows = {name: Row() for name in arguments.systems}
    if "streaming" in rows and not (setting.folder / "mds" / "index.json").is_file():
        _run(Job("mds", "streaming", setting, {}), arguments)
    with tempfile.TemporaryDirectory() as scratch:
        next_captions = {}
        for name in rows:
            # Rounded down to whole turns of the loader processes: after a resume, process 0 is the first to deliver.
            step = int(arguments.resume_at * (setting.num_clips // setting.batch_size))
            step -= step % max(1, setting.num_workers)
            options = {"step": step, "state_file": f"{scratch}/{name}.json"}
            saved = _run(Job("save", name, setting, options), arguments)
            next_captions[name] = saved["captions"]
        for number in range(arguments.passes):
            for name in _turn(list(rows), number):
                row = rows[name]
                speed_options = {"warmup": arguments.warmup, "batches": arguments.batches}
                speed = _run(Job("speed", name, setting, speed_options), arguments)
                row.clips_per_s.append(speed["clips_per_s"])
                row.first_s.append(speed["first_s"])
                resumed = _run(Job("resume", name, setting, {"state_file": f"{scratch}/{name}.json"}), arguments)
                row.resume_s.append(resumed["resume_s"])
                row.exact &= resumed["captions"] == next_captions[name]
        for name, row in rows.items():
            row.memory = _run(Job("memory", name, setting, {"epochs": arguments.epochs}), arguments)
    return rows


def _turn(names: Sequence[str], number: int) -> list[str]:
    """The names, another one first in each pass."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def _run(job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """The result of a job, done by a process of its own."""
    python = arguments.peers_python if job.system in _NEED_PEERS else sys.executable
    path = os.pathsep.join([str(_HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [python, str(_HERE / "loader_child.py"), job.to_json()],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        raise SystemExit(f"{job.what} of {job.system} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table_lines(data: str, num_workers: int, rows: dict[str, Row]) -> Iterator[str]:
    """A Markdown line per system; ratios are to psclap's row, where it is there."""
    ours = rows.get(_OURS, Row())
    for name, row in rows.items():
        yield "| " + " | ".join([data, str(num_workers), name, *_cells(row, ours)]) + " |"


def _cells(row: Row, ours: Row) -> list[str]:
    memory, epochs = row.memory, row.memory["epoch_mib"]
    compared = bool(ours.memory) and row is not ours
    return [
        f"{statistics.median(row.clips_per_s):,.0f} ({min(row.clips_per_s):,.0f}-{max(row.clips_per_s):,.0f})",
        _ratio(ours.clips_per_s, row.clips_per_s) if compared else "",
        f"{statistics.median(row.first_s):.3f}",
        _ratio(row.first_s, ours.first_s) if compared else "",
        f"{statistics.median(row.resume_s):.3f}",
        _ratio(row.resume_s, ours.resume_s) if compared else "",
        "yes" if row.exact else "no",
        f"{memory['peak_mib']:,.0f} ({memory['peak_mib'] - memory['imports_mib']:,.0f})",
        f"{memory['peak_mib'] / ours.memory['peak_mib']:.2f}" if compared else "",
        f"{epochs[-1] - epochs[0]:+,.0f}",
    ]


def _ratio(numerators: Sequence[float], denominators: Sequence[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)):.2f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", default=sys.executable, help="runs webdataset and streaming")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "psclap-benchmark")
    parser.add_argument("--short-clips", type=int, default=2000, help="0 leaves the data set out")
    parser.add_argument("--long-clips", type=int, default=200, help="0 leaves the data set out")
    parser.add_argument("--long-s", type=float, default=60.0)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--processes", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--resume-at", type=float, default=0.5, help="share of the epoch")
    parser.add_argument("--out", type=Path, help="also writes the table here")
    parser.add_argument("--json", type=Path, help="also writes every pass's numbers here")
    arguments = parser.parse_args()
    arguments.short = DataSet("short", arguments.short_clips, 2.0, 6.0, 10.0)
    arguments.long = DataSet("long", arguments.long_clips, arguments.long_s, arguments.long_s, 10.0)
    return arguments


if __name__ == "__main__":
    main()
