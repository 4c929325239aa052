"""An evaluation in words and files: headline numbers, tables, CSV for `dvc plots`, every query.

`results` is `{"about": ..., "model": ..., "untrained": ..., "chance": ...}`, as psclap.evaluation.run makes it;
`untrained` may be missing.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psclap.evaluation.pictures import draw_composition, draw_confusions, draw_recall
from psclap.evaluation.retrieval import DIRECTIONS
from psclap.files import write_json
from psclap.metrics import RECALL_CUTOFFS

EVALUATION_NAME = "evaluation.json"
QUERIES_NAME = "queries.parquet"

_SHOWN = ("R@1", "R@5", "R@10", "median_rank", "mean_rank")
_CHANCE_OF = ("R@1", "R@10")


def kinds(results: Mapping[str, Any]) -> list[str]:
    """What there are scores of: model, untrained (where it was scored), chance."""
    return [kind for kind in ("model", "untrained", "chance") if kind in results]


def headline(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The numbers worth a metrics file: one entry per caption set, `classification`, and `composition` if measured.

    Every number of the model stands beside its interval, chance and the untrained model.
    """
    entries: dict[str, dict[str, Any]] = {
        name: {direction: _retrieval_entry(results, name, direction) for direction in DIRECTIONS}
        for name in results["model"]["retrieval"]
    }
    entries["classification"] = {
        attribute: _classification_entry(results, attribute) for attribute in results["model"]["classification"]
    }
    if "composition" in results["model"]:
        entries["composition"] = {k: _composition_entry(results, k) for k in results["model"]["composition"]}
    return entries


def _retrieval_entry(results: Mapping[str, Any], name: str, direction: str) -> dict[str, float]:
    of = {kind: results[kind]["retrieval"][name][direction] for kind in kinds(results)}
    return {
        **{key: _round(of["model"][key]) for key in _SHOWN},
        **_ends(of["model"], _CHANCE_OF),
        **{
            f"{kind}_{key}": _round(of[kind][key])
            for kind in ("chance", "untrained")
            if kind in of
            for key in _CHANCE_OF
        },
    }


def _classification_entry(results: Mapping[str, Any], attribute: str) -> dict[str, float]:
    of = {kind: results[kind]["classification"][attribute] for kind in kinds(results)}
    return {
        "UAR": _round(of["model"]["UAR"]),
        **_ends(of["model"], ["UAR"]),
        "macro_F1": _round(of["model"]["macro_F1"]),
        **({"ensemble_UAR": _round(of["model"]["ensemble"]["UAR"])} if "ensemble" in of["model"] else {}),
        **{f"{kind}_UAR": _round(of[kind]["UAR"]) for kind in ("chance", "untrained") if kind in of},
    }


def _composition_entry(results: Mapping[str, Any], k: str) -> dict[str, float]:
    model, chance = (results[kind]["composition"][k]["audio_to_text"] for kind in ("model", "chance"))
    return {
        "R@1": _round(model["R@1"]),
        **_ends(model, ["R@1"]),
        "independent_R@1": _round(model["independent_R@1"]),
        "chance_R@1": _round(chance["R@1"]),
    }


def _ends(group: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """The ends of the intervals of some metrics."""
    ends = {name: group["intervals"][name] for name in names}
    return {f"{name}_{end}": _round(ends[name][place]) for name in ends for place, end in enumerate(("low", "high"))}


def _round(value: float) -> float:
    return round(float(value), 4)


def write_report(folder: Path, title: str, results: Mapping[str, Any], queries: pa.Table) -> None:
    """Writes `evaluation.json` (everything), `queries.parquet` (every query), and tables and pictures of them.

    Those are `recall.csv`, `tags.csv`, `composition.csv`, one `confusion_ATTRIBUTE.csv` each, and PNG files. Files
    depend on the arguments alone.
    """
    write_json(folder / EVALUATION_NAME, results)
    pq.write_table(queries, folder / QUERIES_NAME, compression="zstd")
    model = results["model"]
    if model["retrieval"]:
        _write_csv(folder / "recall.csv", ["caption_set", "k", *_columns(results)], _recall_rows(results))
        draw_recall(folder / "recall.png", title, {kind: results[kind] for kind in kinds(results)})
    if model["classification"]:
        _write_csv(folder / "tags.csv", ["attribute", "tag", "clips", "recall", "ensemble_recall"], _tag_rows(model))
        draw_confusions(folder / "confusion.png", title, model["classification"])
    for attribute, scores in model["classification"].items():
        _write_csv(folder / f"confusion_{attribute}.csv", ["actual", "predicted"], _confusion_rows(scores))
    if "composition" in model:
        header = ["attributes", "direction", "recall", "low", "high", "independent", "chance"]
        _write_csv(folder / "composition.csv", header, _composition_rows(results))
        draw_composition(folder / "composition.png", title, results)


def _columns(results: Mapping[str, Any]) -> list[str]:
    return ["recall" if kind == "model" else kind for kind in kinds(results)]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def _recall_rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    for name in results["model"]["retrieval"]:
        for k in RECALL_CUTOFFS:
            of_kinds = [results[kind]["retrieval"][name]["audio_to_text"][f"R@{k}"] for kind in kinds(results)]
            yield [name, k, *map(_round, of_kinds)]


def _tag_rows(model: Mapping[str, Any]) -> Iterator[list[Any]]:
    for attribute, scores in model["classification"].items():
        ensemble = scores.get("ensemble", {}).get("tags", {})
        for tag, found in scores["tags"].items():
            by_ensemble = _round(ensemble[tag]["recall"]) if tag in ensemble else ""
            yield [attribute, tag, found["clips"], _round(found["recall"]), by_ensemble]


def _confusion_rows(scores: Mapping[str, Any]) -> Iterator[list[str]]:
    for actual, row in zip(scores["candidates"], scores["confusion"], strict=True):
        for predicted, count in zip(scores["candidates"], row, strict=True):
            yield from [[actual, predicted]] * count


def _composition_rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    for k, of_k in results["model"]["composition"].items():
        for direction in DIRECTIONS:
            found, chance = of_k[direction], results["chance"]["composition"][k][direction]["R@1"]
            independent = _round(found["independent_R@1"]) if "independent_R@1" in found else ""
            ends = map(_round, found["intervals"]["R@1"])
            yield [k, direction, _round(found["R@1"]), *ends, independent, _round(chance)]
