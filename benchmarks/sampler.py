"""The class-balanced plan at a million rows, against a walk over the rows in Python.

The rows' tags are synthetic: 1 to 5 different ones of 59, by Zipf's law, beside a key, a caption and a transcript.

    psclap        psclap.sampling: the weights by array operations over the column of tags, the epoch's order by one
                  search. Codes and a dictionary, as ShardIndex reads the column; plain texts too, for comparison
    dataset walk  the ParaSpeechCLAP release's way: `for row in dataset` over a Hugging Face Dataset of this table,
                  a Counter and a set per row, weights by list comprehension; torch.multinomial for the draws, then
                  batch by batch the rare ones counted in a set, and common ones replaced where they are too few
    Arrow walk    the same with nothing fetched but the list of tags, row by row from the Arrow column
    list walk     the same over Python lists that lie in memory already: what is left when fetching costs nothing

The walks are kinder than the release: the list of rare rows is made once instead of for each batch that lacks some.
`weights` is everything up to the weights, once a run; `epoch` the order of one epoch. A ratio is walk / psclap, of
the medians. That all give the same weights, but for a factor, is checked. The dataset walk needs the peers'
environment of benchmarks/loader.py, and is left out without it.

    PYTHONPATH=. .venv-peers/bin/python benchmarks/sampler.py --rows 1000000
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from psclap.loop_config import SamplingConfig
from psclap.sampling import EpochPlan, Examples, class_balance

_OURS = "psclap"
_MAX_TAGS = 5
_CHUNK = 100_000  # rows drawn at a time: memory while the table is made


@dataclass(frozen=True)
class Options:
    """What both ways are given alike."""

    batch_size: int
    rare_below_share: float
    min_rare: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """The weights of the rows, and the seconds that these and an epoch's order took."""

    weights: np.ndarray
    weights_s: float
    epoch_s: float


def make_table(num_rows: int, num_tags: int, seed: int) -> pa.Table:
    """Rows with 1 to 5 different tags (`tags`, and coded as an index has them `coded`), the k-th with weight 1 / k."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, _MAX_TAGS + 1, num_rows)
    log_weights = -np.log(np.arange(1, num_tags + 1))
    chosen = []
    for start in range(0, num_rows, _CHUNK):
        of_chunk = counts[start : start + _CHUNK]
        # The largest keys are draws without replacement (Gumbel's trick); as many as the row has tags are taken.
        keys = log_weights + rng.gumbel(size=(len(of_chunk), num_tags))
        ranked = np.argsort(-keys, axis=1)[:, :_MAX_TAGS]
        chosen.append(ranked[np.arange(_MAX_TAGS) < of_chunk[:, None]])
    words = pa.array([f"tag-{number:02d}" for number in range(num_tags)])
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    codes = pa.array(np.concatenate(chosen).astype(np.int32))
    numbers = pc.cast(pa.array(np.arange(num_rows)), pa.string())
    return pa.table(
        {
            "key": pc.binary_join_element_wise("train-voxceleb--", numbers, ""),
            "caption": pc.binary_join_element_wise("A man speaks in a deep, raspy voice, number ", numbers, "."),
            "transcript": pc.binary_join_element_wise("What was said in clip ", numbers, "."),
            "tags": pa.ListArray.from_arrays(offsets, words.take(codes)),
            "coded": pa.ListArray.from_arrays(offsets, pa.DictionaryArray.from_arrays(codes, words)),
        }
    )


def ours(tags: pa.ChunkedArray, options: Options) -> Outcome:
    """Psclap's plan. Everything here that knows psclap's API of sampling."""
    start = time.perf_counter()
    balance = class_balance(tags, "inverse", options.rare_below_share, options.min_rare, options.batch_size)
    middle = time.perf_counter()
    examples = Examples([len(tags)], balance=balance)
    plan = EpochPlan(examples, options.batch_size, options.seed, 0, SamplingConfig())
    assert len(plan) == len(tags) // options.batch_size
    return Outcome(balance.weights, middle - start, time.perf_counter() - middle)


def dataset_walk(table: pa.Table, options: Options) -> Outcome:
    """Row by row, whole rows, as a Hugging Face Dataset gives them."""
    from datasets import Dataset

    rows = Dataset(table.drop_columns(["coded"]))
    return _walk((row["tags"] for row in rows), options)


def arrow_walk(table: pa.Table, options: Options) -> Outcome:
    """Row by row from the table."""
    column = table["tags"].combine_chunks()
    return _walk((column[number].as_py() for number in range(len(column))), options)


def list_walk(rows: Sequence[list[str]], options: Options) -> Outcome:
    """Row by row over lists in memory."""
    return _walk(rows, options)


def _walk(rows: Iterable[list[str]], options: Options) -> Outcome:
    start = time.perf_counter()
    counter: Counter[str] = Counter()
    tags_of_row: list[set[str]] = []
    for tags in rows:
        normalised = {tag.strip().lower() for tag in tags}
        counter.update(normalised)
        tags_of_row.append(normalised)
    weight_of_tag = {tag: 1.0 / count for tag, count in counter.items()}
    weights = [sum(weight_of_tag[tag] for tag in tags) / len(tags) for tags in tags_of_row]
    rare_tags = {tag for tag, count in counter.items() if count / len(tags_of_row) < options.rare_below_share}
    rare_rows = {number for number, tags in enumerate(tags_of_row) if any(tag in rare_tags for tag in tags)}
    middle = time.perf_counter()
    _walk_epoch(weights, rare_rows, options)
    return Outcome(np.array(weights), middle - start, time.perf_counter() - middle)


def _walk_epoch(weights: list[float], rare_rows: set[int], options: Options) -> list[int]:
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.multinomial(torch.tensor(weights), len(weights), replacement=True, generator=generator).tolist()
    rare_list, rng = sorted(rare_rows), random.Random(options.seed)
    for start in range(0, len(order) - options.batch_size + 1, options.batch_size):
        batch = order[start : start + options.batch_size]
        missing = options.min_rare - sum(1 for row in batch if row in rare_rows)
        if missing > 0 and rare_list:
            common = [place for place, row in enumerate(batch) if row not in rare_rows]
            for place in common[:missing]:
                order[start + place] = rng.choice(rare_list)
    return order


def main() -> None:
    arguments = _arguments()
    options = Options(arguments.batch_size, arguments.rare_below_share, arguments.min_rare, arguments.seed)
    table = make_table(arguments.rows, arguments.tags, arguments.seed)
    lists = table["tags"].to_pylist()
    ways: dict[str, Callable[[], Outcome]] = {
        _OURS: lambda: ours(table["coded"], options),
        "psclap, from texts": lambda: ours(table["tags"], options),
        "Arrow walk": lambda: arrow_walk(table, options),
        "list walk": lambda: list_walk(lists, options),
    }
    if importlib.util.find_spec("datasets"):
        ways["dataset walk"] = lambda: dataset_walk(table, options)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ways}
    for _ in range(arguments.passes):
        for name, way in ways.items():
            outcomes[name].append(way())
    _check_equal({name: of_way[0].weights for name, of_way in outcomes.items()})
    text = "\n".join(_table(outcomes, arguments)) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)


def _check_equal(weights: dict[str, np.ndarray]) -> None:
    expected = weights[_OURS] / weights[_OURS].sum()
    for name, values in weights.items():
        if not np.allclose(values / values.sum(), expected, rtol=1e-9, atol=0):
            raise SystemExit(f"the weights of {name!r} are not psclap's")


def _table(outcomes: dict[str, list[Outcome]], arguments: argparse.Namespace) -> list[str]:
    lines = [f"| {arguments.rows:,} rows | weights, s | ratio | epoch, s | ratio | both, s | ratio |", "|" + "---|" * 7]
    ours_s = _medians(outcomes[_OURS])
    for name, of_way in outcomes.items():
        cells = [
            (f"{own_s:.3f}", f"{own_s / our_s:.1f}") for own_s, our_s in zip(_medians(of_way), ours_s, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(cell for pair in cells for cell in pair) + " |")
    return lines


def _medians(outcomes: Sequence[Outcome]) -> list[float]:
    """Seconds: the weights, the epoch, both."""
    seconds = [(o.weights_s, o.epoch_s, o.weights_s + o.epoch_s) for o in outcomes]
    return [statistics.median(column) for column in zip(*seconds, strict=True)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tags", type=int, default=59)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--min-rare", type=int, default=2)
    parser.add_argument("--rare-below-share", type=float, default=0.05)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also writes the table here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
