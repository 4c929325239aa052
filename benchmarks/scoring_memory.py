"""The memory of a scoring job against the size of its corpus.

A manifest names --files FLAC files of half a second again and again, each row with a key of its own. The job runs as
users run it; its driver's and its actors' own memory (unique set size: pages that no other process shares) is looked
at twice a second. The output is complete, or the benchmark fails.

    .venv/bin/python benchmarks/scoring_memory.py --model models/combined --clips 10000 100000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from psclap import audio
from psclap.markdown import table

RATE_HZ = 16000


def make_corpus(folder: Path, files: int) -> None:
    """Short noises."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(files):
        wave = 0.1 * rng.standard_normal(RATE_HZ // 2).astype(np.float32)
        audio.write_flac(folder / f"{number:05d}.flac", wave, RATE_HZ)


def measure(model: Path, folder: Path, clips: int, files: int) -> list[str]:
    """Runs a job over so many clips; a row of the table."""
    manifest = folder / f"{clips}.csv"
    rows = (f"clip-{number:07d},corpus/{number % files:05d}.flac" for number in range(clips))
    manifest.write_text("\n".join(["key,audio", *rows, ""]))
    command = [sys.executable, "-m", "pipelines.score", "--model", str(model), "--input", str(manifest)]
    output = folder / f"{clips}-scored"
    start = time.perf_counter()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([*command, "--output", str(output)], stdout=log, stderr=log)
        driver, actors = _peaks(process)
    seconds = time.perf_counter() - start
    summary = json.loads((output / "_summary.json").read_text())
    if summary["clips"] != clips:
        raise SystemExit(f"{summary['clips']} of {clips} clips were scored: {summary}")
    return [f"{clips:,}", f"{driver / 2**20:.0f}", f"{actors / 2**20:.0f}", f"{seconds:.0f}", f"{clips / seconds:.0f}"]


def _peaks(process: subprocess.Popen) -> tuple[int, int]:
    """The largest memory of the driver, and of any of its actors, in bytes."""
    driver = actor = 0
    while process.poll() is None:
        try:
            family = psutil.Process(process.pid)
            driver = max(driver, family.memory_full_info().uss)
            for member in family.children(recursive=True):
                if any("ScoreBlocks" in word for word in member.cmdline()):
                    actor = max(actor, member.memory_full_info().uss)
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.5)
    return driver, actor


def main() -> None:
    """Measures every size, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/combined"))
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--files", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_corpus(folder / "corpus", arguments.files)
        rows = [measure(arguments.model, folder, clips, arguments.files) for clips in arguments.clips]
    print("\n".join(table(["clips", "driver MiB", "an actor MiB", "s", "clips/s with the start"], rows)))


if __name__ == "__main__":
    main()
