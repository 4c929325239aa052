"""Evaluation results as headline numbers, a table, CSV for `dvc plots`, and pictures.

`results` is `{"model": ..., "untrained": ..., "chance": ...}`, each as `TestSets.evaluate` returns it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from psclap.files import write_json
from psclap.markdown import table

_SHOWN = ("R@1", "R@5", "R@10", "median_rank", "mean_rank")
_DIRECTIONS = ("audio_to_text", "text_to_audio")


def headline(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The numbers worth a metrics file: one entry per caption set, and `classification`.

    Every number of the model stands beside chance and the untrained model.
    """
    model, untrained, chance = results["model"], results["untrained"], results["chance"]
    entries: dict[str, dict[str, Any]] = {}
    for name, of_set in model["retrieval"].items():
        entries[name] = {
            direction: {
                **{key: _round(of_set[direction][key]) for key in _SHOWN},
                **{f"chance_R@{k}": _round(chance["retrieval"][name][direction][f"R@{k}"]) for k in (1, 10)},
                **{f"untrained_R@{k}": _round(untrained["retrieval"][name][direction][f"R@{k}"]) for k in (1, 10)},
            }
            for direction in _DIRECTIONS
        }
    entries["classification"] = {
        attribute: {
            "UAR": _round(scores["UAR"]),
            "macro_F1": _round(scores["macro_F1"]),
            "chance_UAR": _round(chance["classification"][attribute]["UAR"]),
            "untrained_UAR": _round(untrained["classification"][attribute]["UAR"]),
        }
        for attribute, scores in model["classification"].items()
    }
    return entries


def _round(value: float) -> float:
    return round(float(value), 4)


def summary_table(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """Two Markdown tables from every variant's headline numbers: retrieval and classification."""
    first = next(iter(numbers.values()))
    sets = [name for name in first if name != "classification"]
    lines = ["Retrieval, speech to caption, R@1 / R@10 in %:", ""]
    lines += table(
        ["variant", *(f"{name} set" for name in sets)],
        [[variant, *(_pair(entry[name]["audio_to_text"], "") for name in sets)] for variant, entry in numbers.items()]
        + [
            ["untrained", *(_pair(first[name]["audio_to_text"], "untrained_") for name in sets)],
            ["chance", *(_pair(first[name]["audio_to_text"], "chance_") for name in sets)],
        ],
    )
    attributes = list(first["classification"])
    lines += ["", "Zero-shot classification, UAR in %:", ""]
    lines += table(
        ["variant", *attributes],
        [
            [variant, *(f"{100 * entry['classification'][name]['UAR']:.1f}" for name in attributes)]
            for variant, entry in numbers.items()
        ]
        + [
            [kind, *(f"{100 * first['classification'][name][f'{kind}_UAR']:.1f}" for name in attributes)]
            for kind in ("untrained", "chance")
        ],
    )
    return "\n".join([*lines, ""])


def _pair(scores: Mapping[str, float], prefix: str) -> str:
    return f"{100 * scores[f'{prefix}R@1']:.1f} / {100 * scores[f'{prefix}R@10']:.1f}"


def write_report(folder: Path, title: str, results: Mapping[str, Any]) -> None:
    """Writes `evaluation.json` (everything), `recall.csv`, one `confusion_ATTRIBUTE.csv` each, and the same
    as PNG files. Files depend on the results alone.
    """
    write_json(folder / "evaluation.json", results)
    _write_recall_csv(folder / "recall.csv", results)
    for attribute, scores in results["model"]["classification"].items():
        _write_confusion_csv(folder / f"confusion_{attribute}.csv", scores)
    _draw_recall(folder / "recall.png", title, results)
    _draw_confusions(folder / "confusion.png", title, results)


def _write_recall_csv(path: Path, results: Mapping[str, Any]) -> None:
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["caption_set", "k", "recall", "untrained", "chance"])
        for name in results["model"]["retrieval"]:
            for k in (1, 5, 10):
                kinds = [results[kind]["retrieval"][name]["audio_to_text"][f"R@{k}"] for kind in results]
                writer.writerow([name, k, *map(_round, kinds)])


def _write_confusion_csv(path: Path, scores: Mapping[str, Any]) -> None:
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["actual", "predicted"])
        for actual, row in zip(scores["candidates"], scores["confusion"], strict=True):
            for predicted, count in zip(scores["candidates"], row, strict=True):
                writer.writerows([[actual, predicted]] * count)


def _draw_recall(path: Path, title: str, results: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure  # a second to import, and only reports need it

    sets = list(results["model"]["retrieval"])
    figure = Figure(figsize=(2.6 * len(sets) + 1, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(sets), sharey=True, squeeze=False)[0], sets, strict=True):
        for place, kind in enumerate(results):
            recalls = results[kind]["retrieval"][name]["audio_to_text"]
            heights = [100 * recalls[f"R@{k}"] for k in (1, 5, 10)]
            axes.bar(np.arange(3) + 0.27 * (place - 1), heights, 0.25, label=kind)
        axes.set_xticks(range(3), ["R@1", "R@5", "R@10"])
        axes.set_title(f"{name} set")
    figure.axes[0].set_ylabel("speech to caption, %")
    figure.axes[0].set_ylim(0, 100)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_confusions(path: Path, title: str, results: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure

    scored = results["model"]["classification"]
    columns = min(4, len(scored))
    rows = -(-len(scored) // columns)
    figure = Figure(figsize=(2.7 * columns, 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (attribute, scores) in zip(grid, scored.items(), strict=False):
        confusion = np.array(scores["confusion"])
        shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        for (row, column), share in np.ndenumerate(shares):
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color="w" if share > 0.6 else "k")
        ticks = range(len(scores["candidates"]))
        axes.set_xticks(ticks, scores["candidates"], rotation=40, ha="right", fontsize="small")
        axes.set_yticks(ticks, scores["candidates"], fontsize="small")
        axes.set_title(f"{attribute}, UAR {100 * scores['UAR']:.0f} %", fontsize="medium")
    for axes in grid[len(scored) :]:
        axes.remove()
    figure.suptitle(f"{title}: share of the actual class (rows) by prediction, %")
    figure.savefig(path, dpi=110, metadata={"Software": None})
