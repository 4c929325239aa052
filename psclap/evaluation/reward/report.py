"""What best-of-N brings, as tables, CSV and a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from psclap.evaluation.reward.best_of_n import KINDS
from psclap.files import atomic_file, write_json
from psclap.markdown import table

Sweep = Mapping[int, Mapping[str, Mapping[str, float]]]


def sweep_table(sizes: Sweep, judge: str, percent: bool = False) -> list[str]:
    """The lines of a table: N x (random, selected, oracle, gain), each with its 95 % interval."""
    rows = [[str(n), *(_cell(at_n[kind], percent) for kind in KINDS)] for n, at_n in sizes.items()]
    return table([f"N, by {judge}", "random", "selected", "oracle", "selected - random"], rows)


def recall_page(variant: str, result: Mapping[str, Any], candidates: str) -> str:
    """The result of `attribute_recall` as a page of Markdown; `candidates` says how many there were, and how drawn."""
    return "\n".join([*_page(variant, result, candidates), ""])


def _page(variant: str, result: Mapping[str, Any], candidates: str) -> Iterator[str]:
    yield f"# Best-of-N by {variant}"
    yield ""
    yield (
        f"{result['prompts']} prompts of 2 to 4 attributes, {candidates}. In %, with the 95 % interval of a bootstrap "
        "over prompts."
    )
    yield from ("", "Asked attributes that are there:", "", *sweep_table(result["recall"], "the judge", percent=True))
    yield from ("", "All asked attributes are there:", "", *sweep_table(result["all_right"], "the judge", percent=True))
    as_set = result["as_set"]
    yield from ("", "The same by what was set, the judge apart:", "")
    yield from sweep_table(as_set["recall"], "attributes set", percent=True)
    yield from ("", *sweep_table(as_set["all_right"], "all attributes set", percent=True))
    size = max(result["recall"])
    yield from ("", f"Each attribute at N = {size}, and the judge's balanced accuracy on held-out clips:", "")
    accuracy = result["judge"]["accuracy"]
    rows = [
        [name, str(at["prompts"]), f"{100 * accuracy[name]:.1f}", *(_cell(at[kind], True) for kind in KINDS)]
        for name, at in result["attributes"].items()
    ]
    yield from table(["attribute", "prompts", "judge", "random", "selected", "oracle", "selected - random"], rows)
    if left_out := result["judge"]["left_out"]:
        yield from ("", f"Left out, as the judge does not hear them well enough: {', '.join(left_out)}.")


def _cell(estimate: Mapping[str, float], percent: bool) -> str:
    digits = 1 if percent else 3
    mean, low, high = (estimate[name] * (100 if percent else 1) for name in ("mean", "low", "high"))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def headline(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers worth a metrics file."""
    size = max(result["recall"])
    return {
        f"{name}@{size}": {kind: round(result[name][size][kind]["mean"], 4) for kind in KINDS}
        for name in ("recall", "all_right")
    } | {"judge_accuracy": {name: round(value, 4) for name, value in result["judge"]["accuracy"].items()}}


def told(numbers: Mapping[str, Any]) -> str:
    """The headline's recall in words."""
    name = next(name for name in numbers if name.startswith("recall@"))
    recall = numbers[name]
    return (
        f"attribute recall of the selected of {name.removeprefix('recall@')}: {recall['selected']:.3f} (random "
        f"{recall['random']:.3f}, oracle {recall['oracle']:.3f})"
    )


def write_recall(folder: Path, variant: str, result: Mapping[str, Any], candidates: str) -> None:
    """Writes `table.md`, `reward.json` (everything), `best_of_n.csv` and `best_of_n.png`."""
    with atomic_file(folder / "table.md") as partial:
        partial.write_text(recall_page(variant, result, candidates), encoding="utf-8")
    write_json(folder / "reward.json", result)
    with open(folder / "best_of_n.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["measure", "N", *(f"{kind}_{end}" for kind in KINDS for end in ("mean", "low", "high"))])
        for name in ("recall", "all_right"):
            for n, at_n in result[name].items():
                numbers = (at_n[kind][end] for kind in KINDS for end in ("mean", "low", "high"))
                writer.writerow([name, n, *(f"{number:.4f}" for number in numbers)])
    _draw(folder / "best_of_n.png", variant, result)


def _draw(path: Path, variant: str, result: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure  # a second to import, and only reports need it

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    titles = {"recall": "asked attributes that are there", "all_right": "all asked attributes are there"}
    for axes, (name, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        sizes = list(result[name])
        for kind, style in (("oracle", "C2--"), ("selected", "C0-"), ("random", "C1:")):
            mean, low, high = ([100 * result[name][n][kind][end] for n in sizes] for end in ("mean", "low", "high"))
            axes.plot(sizes, mean, style, marker="o", label=kind)
            axes.fill_between(sizes, low, high, color=style[:2], alpha=0.15)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.set_xlabel("N")
        axes.set_title(title)
    figure.axes[0].set_ylabel("%, by the acoustic judge")
    figure.axes[0].set_ylim(0, 102)
    figure.axes[0].legend(loc="lower right")
    figure.suptitle(f"Best-of-N by {variant}")
    figure.savefig(path, dpi=110, metadata={"Software": None})
