"""Evaluations as tables in Markdown: one model in detail, several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from psclap.markdown import table

_WORDS = {"audio_to_text": "speech to caption", "text_to_audio": "caption to speech"}


def model_tables(results: Mapping[str, Any]) -> str:
    """One model's results: every headline number with its interval, beside chance."""
    about, model, chance = (results[name] for name in ("about", "model", "chance"))
    lines = [
        f"{about['model']} on the {about['split']} split: {about['clips']:,} clips. In %, with 95 % intervals "
        f"(bootstrap over {about['units']:,} {about['unit']}s)."
    ]
    if model["retrieval"]:
        header = ["captions", "direction", "candidates", "R@1", "chance", "R@5", "R@10", "chance", "median rank", "MRR"]
        lines += ["", "Retrieval:", "", *table(header, [*_retrieval_rows(model, chance)])]
    if model["classification"]:
        header = ["attribute", "candidates", "clips", "UAR", "with ensembles", "chance", "macro F1"]
        lines += ["", "Zero-shot classification:", "", *table(header, [*_classification_rows(model, chance)])]
    if "composition" in model:
        header = ["attributes", "speech to text, R@1", "independent", "chance", "text to speech, R@1", "chance"]
        lines += ["", "As attributes are added:", "", *table(header, [*_composition_rows(model, chance)])]
    return "\n".join(lines)


def _retrieval_rows(model: Mapping[str, Any], chance: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, of_set in model["retrieval"].items():
        for direction, words in _WORDS.items():
            found, guessed = of_set[direction], chance["retrieval"][name][direction]
            yield [
                *(name, words, f"{found['candidates']:,}"),
                *(_sure(found, "R@1"), _percent(guessed["R@1"]), _percent(found["R@5"])),
                *(_sure(found, "R@10"), _percent(guessed["R@10"]), _rank(found), _sure(found, "MRR")),
            ]


def _classification_rows(model: Mapping[str, Any], chance: Mapping[str, Any]) -> Iterator[list[str]]:
    for attribute, found in model["classification"].items():
        yield [
            *(attribute, f"{len(found['candidates'])}", f"{sum(map(sum, found['confusion'])):,}", _sure(found, "UAR")),
            _sure(found["ensemble"], "UAR") if "ensemble" in found else "-",
            *(_percent(chance["classification"][attribute]["UAR"]), _sure(found, "macro_F1")),
        ]


def _composition_rows(model: Mapping[str, Any], chance: Mapping[str, Any]) -> Iterator[list[str]]:
    for k, found in model["composition"].items():
        to_text, to_speech = (found[direction] for direction in _WORDS)
        guessed = [_percent(chance["composition"][k][direction]["R@1"]) for direction in _WORDS]
        independent = _percent(to_text["independent_R@1"])
        yield [k, _sure(to_text, "R@1"), independent, guessed[0], _sure(to_speech, "R@1"), guessed[1]]


def _sure(group: Mapping[str, Any], name: str) -> str:
    return _with_ends(group[name], *group["intervals"][name])


def _with_ends(value: float, low: float, high: float) -> str:
    return f"{_percent(value)} [{_percent(low)}, {_percent(high)}]"


def _rank(group: Mapping[str, Any]) -> str:
    low, high = group["intervals"]["median_rank"]
    return f"{group['median_rank']:.4g} [{low:.4g}, {high:.4g}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def summary_table(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown tables from every variant's headline numbers: what is found, how sure it is, and of how many words."""
    first = next(iter(numbers.values()))
    sets = [name for name in first if name not in ("classification", "composition")]
    attributes = list(first["classification"])
    to_text = {name: {variant: entry[name]["audio_to_text"] for variant, entry in numbers.items()} for name in sets}
    uar = {name: {variant: entry["classification"][name] for variant, entry in numbers.items()} for name in attributes}
    lines = ["Retrieval, speech to caption, R@1 / R@10 in %:", ""]
    lines += _side_by_side(numbers, {f"{name} set": to_text[name] for name in sets}, _pair)
    lines += ["", "Zero-shot classification, UAR in %:", ""]
    lines += _side_by_side(numbers, uar, lambda scores, kind: _percent(scores[f"{kind}UAR"]))
    lines += ["", "The same R@1 and UAR with their 95 % intervals (bootstrap, see docs/evaluation.md):", ""]
    lines += _intervals([*numbers], {f"{name} set": to_text[name] for name in sets}, "R@1")
    lines += ["", *_intervals([*numbers], uar, "UAR")]
    if "composition" in first:
        lines += ["", *_composition(numbers)]
    return "\n".join([*lines, ""])


def _side_by_side(numbers: Mapping[str, Any], columns: Mapping[str, Mapping[str, Any]], cell: Any) -> list[str]:
    """A row per variant, then the untrained model and chance, which are the same for all variants or nearly so."""
    rows = [[variant, *(cell(of_all[variant], "") for of_all in columns.values())] for variant in numbers]
    first = next(iter(numbers))
    for kind in ("untrained", "chance"):
        rows.append([kind, *(cell(of_all[first], f"{kind}_") for of_all in columns.values())])
    return table(["variant", *columns], rows)


def _pair(scores: Mapping[str, float], kind: str) -> str:
    return f"{_percent(scores[f'{kind}R@1'])} / {_percent(scores[f'{kind}R@10'])}"


def _intervals(variants: Sequence[str], columns: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    rows = [
        [
            variant,
            *(_with_ends(*(of[variant][f"{name}{end}"] for end in ("", "_low", "_high"))) for of in columns.values()),
        ]
        for variant in variants
    ]
    return table(["variant", *columns], rows)


def _composition(numbers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """R@1 by the number of attributes of every variant, and if attributes were told independently of each other."""
    first = next(iter(numbers.values()))["composition"]
    rows = []
    for variant, entry in numbers.items():
        for name, words in (("R@1", variant), ("independent_R@1", f"{variant}, if told one by one")):
            rows.append([words, *(_percent(of_k[name]) for of_k in entry["composition"].values())])
    rows.append(["chance", *(_percent(of_k["chance_R@1"]) for of_k in first.values())])
    title = "Speech to a text of so many attributes, R@1 in % (the protocol is in docs/evaluation.md):"
    return [title, "", *table(["variant", *first], rows)]
