"""Retrieval metrics: ranks by counting, against sorting and searching; a large test set; the bootstrap.

    sort and search   the ParaSpeechCLAP release's way: argsort of the whole matrix of scores, then clip by clip a
                      search for the right caption in the sorted numbers, in a Python loop
    counting          psclap.ranking.ranks_of_scores, from the same float32 matrix
    embeddings        psclap.ranking.ranks_of, from the embeddings: the product is in it, in float64, and exact
    float32 product   what the matrix that the first two start from costs, for comparison

Embeddings are random unit vectors; a clip's is its caption's with noise. That sort-and-search and counting give the
same rank for every clip is checked. Each part runs in a process of its own, with each number of threads; passes are
interleaved, times are medians. `above` is the peak of memory during the call above what the embeddings take.

    PYTHONPATH=. python benchmarks/retrieval_metrics.py --threads 1 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from psclap.evaluation import RESAMPLES
from psclap.evaluation.bootstrap import intervals
from psclap.evaluation.outcomes import Ranked
from psclap.metrics import retrieval_metrics
from psclap.pairs import Pairs
from psclap.ranking import ranks_both_ways, ranks_of, ranks_of_scores

DIM = 768
SMALL = 5_000
CLIPS, CAPTIONS = 100_000, 20_000
SPEAKERS = 1_000


def embeddings(clips: int, captions: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Speech (clips, DIM), texts (captions, DIM), and the number of each clip's caption."""
    rng = np.random.default_rng(0)
    texts = _unit(rng.standard_normal((captions, DIM), np.float32))
    right = np.arange(clips) % captions
    speech = rng.standard_normal((clips, DIM), np.float32)
    speech *= noise / np.sqrt(DIM)
    speech += texts[right]
    return _unit(speech), texts, right


def _unit(rows: np.ndarray) -> np.ndarray:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def sort_and_search(scores: torch.Tensor, right: list[int]) -> np.ndarray:
    """The rank of each row's right column, by its place in the sorted row."""
    order = torch.argsort(scores, dim=1, descending=True)
    wanted = torch.tensor(right)
    return np.array([(order[row] == wanted[row]).nonzero()[0].item() + 1 for row in range(len(order))])


def small(passes: int) -> dict[str, Any]:
    """Seconds of each way at SMALL x SMALL."""
    speech, texts, right = embeddings(SMALL, SMALL, noise=8.0)
    pairs = Pairs.of(np.arange(SMALL), right, SMALL, SMALL)
    scores = speech @ texts.T
    ways: dict[str, Callable[[], Any]] = {
        "sort and search": lambda: sort_and_search(torch.from_numpy(scores), right.tolist()),
        "counting": lambda: ranks_of_scores(scores, pairs).expected,
        "embeddings": lambda: ranks_of(speech, texts, pairs).expected,
        "float32 product": lambda: speech @ texts.T,
    }
    found = {name: way() for name, way in ways.items()}
    assert np.array_equal(found["sort and search"], found["counting"])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(passes):
        for name, way in ways.items():
            times[name].append(timed(way))
    moved = np.abs(found["embeddings"] - found["counting"])
    return {
        "times": {name: [*map(statistics.median, zip(*of_way, strict=True))] for name, of_way in times.items()},
        "mean_rank": float(found["counting"].mean()),
        "changed": int((moved > 0).sum()),
        "by_at_most": float(moved.max()),
    }


def large(passes: int) -> dict[str, Any]:
    """Seconds and memory of both directions at CLIPS x CAPTIONS, and the rate of the product in it."""
    speech, texts, right = embeddings(CLIPS, CAPTIONS, noise=8.0)
    second = (right + 1) % CAPTIONS  # every other clip has two captions
    clips = np.arange(CLIPS)
    pairs = Pairs.of(np.append(clips, clips[::2]), np.append(right, second[::2]), CLIPS, CAPTIONS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of making the embeddings, is forgotten
    before = _memory("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    to_text, to_speech = ranks_both_ways(speech, texts, pairs)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    size = 2048
    block = np.ones((size, DIM))
    block @ block.T
    product_s = min(timed(lambda: block @ block.T)[1] for _ in range(5))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "product_cpu_seconds": product_s * (CLIPS / size) * (CAPTIONS / size),
        "embeddings_mb": (speech.nbytes + texts.nbytes) / 1e6,
        "above_mb": _memory("VmHWM") - before,
        "matrix_mb": CLIPS * CAPTIONS * 4 / 1e6,
        "audio_to_text": retrieval_metrics(to_text),
        "text_to_audio": retrieval_metrics(to_speech),
    }


def bootstrap(passes: int) -> dict[str, Any]:
    """Seconds of all intervals of CLIPS queries, by the unit that is drawn; ranks are geometric: many differ."""
    rng = np.random.default_rng(0)
    rank = rng.geometric(1 / 200, CLIPS).astype(np.float64)
    outcome = Ranked(rank, np.stack([rank <= k for k in (1, 5, 10)], axis=1).astype(np.float64))
    units = {"clip": np.arange(CLIPS), "speaker": rng.permutation(np.arange(CLIPS) % SPEAKERS)}
    seconds = {name: timed(lambda unit=unit: intervals(outcome, unit)) for name, unit in units.items()}
    return {"seconds, CPU seconds": seconds, "resamples": RESAMPLES, "different_ranks": outcome.num_codes}


def timed(way: Callable[[], Any]) -> tuple[float, float]:
    """The seconds that a call takes, and the CPU seconds of all threads: what other programs disturb least."""
    start, start_cpu = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - start, time.process_time() - start_cpu


def _memory(name: str) -> float:
    """MB of this process, from /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(name)


PARTS = {"small": small, "large": large, "bootstrap": bootstrap}


def in_child(part: str, threads: int, passes: int) -> dict[str, Any]:
    """What a part finds in a process of its own: BLAS takes its number of threads once."""
    command = [sys.executable, __file__, "--child", part, "--passes", str(passes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def report(found: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Prints what was found as Markdown."""
    for (part, threads), result in found.items():
        print(f"\n{part}, threads: {threads}\n")
        if part == "small":
            print("| way | s | CPU s | sort and search / it, s | CPU s |\n|---|---|---|---|---|")
            slow, slow_cpu = result["times"]["sort and search"]
            for way, (seconds, cpu) in result["times"].items():
                print(f"| {way} | {seconds:.3f} | {cpu:.3f} | {slow / seconds:.1f} | {slow_cpu / cpu:.1f} |")
            print(
                f"\nEqual ranks, mean {result['mean_rank']:.2f}; exact scores change {result['changed']} of {SMALL:,} "
                f"ranks, by {result['by_at_most']:g} at most"
            )
        else:
            print(json.dumps(result, indent=1))


def main() -> None:
    """Runs the parts, or in a child one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=[*PARTS])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--child", choices=[*PARTS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(PARTS[options.child](options.passes)))
        return
    report({(part, n): in_child(part, n, options.passes) for part in options.parts for n in options.threads})


if __name__ == "__main__":
    main()
