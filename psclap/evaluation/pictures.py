"""An evaluation in pictures, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from psclap.metrics import RECALL_CUTOFFS

_PNG: dict[str, Any] = {"dpi": 110, "metadata": {"Software": None}}


def draw_recall(path: Path, title: str, results: Mapping[str, Any]) -> None:
    """Recall at 1, 5 and 10 of every caption set, speech to caption; a bar for each of the results."""
    from matplotlib.figure import Figure  # a second to import, and only reports need it

    sets = list(results["model"]["retrieval"])
    figure = Figure(figsize=(2.6 * len(sets) + 1, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(sets), sharey=True, squeeze=False)[0], sets, strict=True):
        for place, kind in enumerate(results):
            recalls = results[kind]["retrieval"][name]["audio_to_text"]
            heights = [100 * recalls[f"R@{k}"] for k in RECALL_CUTOFFS]
            axes.bar(np.arange(3) + 0.27 * (place - 1), heights, 0.25, label=kind)
        axes.set_xticks(range(3), [f"R@{k}" for k in RECALL_CUTOFFS])
        axes.set_title(f"{name} set")
    figure.axes[0].set_ylabel("speech to caption, %")
    figure.axes[0].set_ylim(0, 100)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, **_PNG)


def draw_confusions(path: Path, title: str, scored: Mapping[str, Any]) -> None:
    """The confusion matrix of every attribute, as shares of its rows."""
    from matplotlib.figure import Figure

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
    figure.savefig(path, **_PNG)


def draw_composition(path: Path, title: str, results: Mapping[str, Any]) -> None:
    """R@1, speech to text, by the number of attributes that the text names, with its interval and its yardsticks."""
    from matplotlib.figure import Figure

    of_k = {int(k): scores["audio_to_text"] for k, scores in results["model"]["composition"].items()}
    chance = [100 * results["chance"]["composition"][str(k)]["audio_to_text"]["R@1"] for k in of_k]
    ends = 100 * np.array([scores["intervals"]["R@1"] for scores in of_k.values()])
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.fill_between([*of_k], ends[:, 0], ends[:, 1], alpha=0.2)
    axes.plot([*of_k], [100 * scores["R@1"] for scores in of_k.values()], marker="o", label="R@1 and its 95 % interval")
    independent = [100 * scores["independent_R@1"] for scores in of_k.values()]
    axes.plot([*of_k], independent, linestyle="--", label="if attributes were told independently")
    axes.plot([*of_k], chance, linestyle=":", color="k", label="chance")
    axes.set_xticks([*of_k])
    axes.set_ylim(0, 100)
    axes.set_xlabel("attributes in the text")
    axes.set_ylabel("speech to text, %")
    axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, **_PNG)
