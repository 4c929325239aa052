"""The results of a model as tables and as what follows from them: every number beside what guessing scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from psclap.markdown import table
from psclap.model_card.facts import Facts
from psclap.model_card.metadata import DIRECTIONS
from psclap.model_card.standing import (
    STRONG,
    SURE,
    WEAK,
    Standing,
    Strength,
    attribute_standings,
    is_above_chance,
    worst_confusions,
)
from psclap.tags import default_prompt

SPEAKS_OF = {"intrinsic": "the speaker's voice", "situational": "how this utterance is spoken", "combined": "both"}
"""What the captions of a set are about."""

_CANDIDATES = {"audio_to_text": "distinct", "text_to_audio": "clips"}
_SHOWN_CONFUSION = 0.05


def percent(share: float) -> str:
    """A share in per cent with two digits: metrics files have four, so that nothing is lost.

    >>> percent(0.8462)
    '84.62'
    """
    return f"{100 * share:.2f}"


def standings(facts: Facts) -> list[Standing]:
    """How every attribute stands; empty where none was scored."""
    return attribute_standings(facts.classification, facts.evaluation["model"]["classification"])


def near_chance_names(facts: Facts) -> list[str]:
    """The attributes that the model tells no better than guessing."""
    return _names(facts, "near chance")


def strong_names(facts: Facts) -> list[str]:
    """The attributes that the model tells well."""
    return _names(facts, "strong")


def _names(facts: Facts, strength: Strength) -> list[str]:
    return [standing.name for standing in standings(facts) if standing.strength == strength]


def example_prompts(facts: Facts) -> list[str]:
    """Prompts to try: the candidates of the attribute that the model tells best."""
    best = max(standings(facts), key=lambda standing: standing.score - standing.chance, default=None)
    if best is None:
        return ["A calm, quiet voice.", "A loud voice, speaking fast."]
    return [default_prompt(tag) for tag in facts.evaluation["model"]["classification"][best.name]["candidates"]]


def results(facts: Facts) -> Iterator[str]:
    """The section's lines."""
    tested, split = facts.tested, facts.params.evaluate.split
    yield (
        f"On the {split} split: {tested['clips']:,} clips of {tested['speakers']:,} speakers, "
        f"{tested['hours']:.2f} hours, each embedded whole. All shares are in %."
    )
    about = facts.evaluation["about"]
    yield from ("", "### Retrieval", "", *_retrieval_table(facts), "")
    yield (
        f"What the captions speak of: {'; '.join(f'{name}: {SPEAKS_OF[name]}' for name in facts.retrieval)}. "
        "Candidates are the set's distinct captions, or its clips; chance is a random order of them. 95 %: the "
        f"interval by bootstrap over {about['units']:,} {about['unit']}s."
    )
    yield from _retrieval_remarks(facts)
    yield from ("", "### Zero-shot classification", "")
    if not facts.classification:
        yield "Not measured: the test clips carry no tags that were scored. Do not take it to work."
        return
    yield from (*_classification_table(facts), "")
    yield (
        'An attribute\'s candidates are put as "A person is speaking in a ... style."; the nearest one wins. UAR is '
        "the mean of the candidates' recalls; untrained is this model before its first step; by ensembles is the UAR "
        "where all wordings of a candidate are averaged."
    )
    yield from ("", *_classification_remarks(facts))


def _retrieval_table(facts: Facts) -> list[str]:
    rows = []
    for caption_set, numbers in facts.retrieval.items():
        for direction, words in DIRECTIONS.items():
            scores = numbers[direction]
            first, *others = (percent(scores[key]) for key in ("R@1", "chance_R@1", "R@5", "R@10", "chance_R@10"))
            ranks = [f"{scores[key]:g}" for key in ("median_rank", "mean_rank")]
            candidates = facts.tested["captions"][caption_set][_CANDIDATES[direction]]
            rows.append([caption_set, words, f"{candidates:,}", first, _interval(scores, "R@1"), *others, *ranks])
    header = [
        "captions",
        "direction",
        "candidates",
        "R@1",
        "95 %",
        "by chance",
        "R@5",
        "R@10",
        "by chance",
        "median rank",
        "mean rank",
    ]
    return table(header, rows)


def _classification_table(facts: Facts) -> list[str]:
    scored = facts.evaluation["model"]["classification"]
    rows = []
    for name, numbers in facts.classification.items():
        clips = sum(map(sum, scored[name]["confusion"]))
        uar, *others = (
            percent(numbers[key]) for key in ("UAR", "chance_UAR", "untrained_UAR", "ensemble_UAR", "macro_F1")
        )
        rows.append(
            [name, ", ".join(scored[name]["candidates"]), f"{clips:,}", uar, _interval(numbers, "UAR"), *others]
        )
    header = ["attribute", "candidates", "clips", "UAR", "95 %", "by chance", "untrained", "by ensembles", "macro F1"]
    return table(header, rows)


def _interval(scores: Mapping[str, float], name: str) -> str:
    return f"{percent(scores[f'{name}_low'])} to {percent(scores[f'{name}_high'])}"


def _retrieval_remarks(facts: Facts) -> Iterator[str]:
    at_chance = [name for name, numbers in facts.retrieval.items() if not _finds(facts, name, numbers)]
    unseen = [name for name in facts.retrieval if name not in facts.train.caption_sets]
    if at_chance:
        yield ""
        yield f"On {_listed(at_chance)} captions it finds no more than chance would: do not search with such captions."
    if unseen and facts.train.caption_sets:
        yield ""
        yield f"It has seen no {_listed(unseen, 'or')} captions in training."


def _finds(facts: Facts, caption_set: str, numbers: Mapping[str, Any]) -> bool:
    """Whether speech to caption is above chance among the first 1 or the first 10."""
    clips = facts.tested["captions"][caption_set]["clips"]
    scores = numbers["audio_to_text"]
    return any(is_above_chance(scores[f"R@{k}"], scores[f"chance_R@{k}"], clips) for k in (1, 10))


def _classification_remarks(facts: Facts) -> Iterator[str]:
    by_strength: dict[Strength, list[Standing]] = {"strong": [], "moderate": [], "near chance": []}
    for standing in standings(facts):
        by_strength[standing.strength].append(standing)
    says = {
        "strong": "Strong",
        "moderate": "Better than chance, yet often wrong",
        "near chance": "At or near chance, so do not use it for these",
    }
    for strength, members in by_strength.items():
        if members:
            yield f"- {says[strength]}: {', '.join(map(_against_chance, members))}."
    yield from _confusion_remarks(facts)
    yield ""
    yield (
        f"Strong is {100 * STRONG:.0f} % or more of the way from chance to perfect; near chance is less than "
        f"{100 * WEAK:.0f} % of it, or within {SURE:g} standard errors of chance. The error counts clips as "
        f"independent, but they come from {facts.tested['speakers']:,} speakers only: the true one is larger."
    )


def _confusion_remarks(facts: Facts) -> Iterator[str]:
    hopeless = near_chance_names(facts)
    mistakes = [
        f"{mistake.actual} for {mistake.predicted} ({mistake.attribute}, {percent(mistake.share)} % of its clips)"
        for mistake in worst_confusions(facts.evaluation["model"]["classification"])
        if mistake.attribute not in hopeless and mistake.share >= _SHOWN_CONFUSION
    ]
    if mistakes:
        yield f"- Most often mistaken: {'; '.join(mistakes)}."


def _against_chance(standing: Standing) -> str:
    return f"{standing.name} ({percent(standing.score)}, chance {percent(standing.chance)})"


def _listed(names: list[str], conjunction: str = "and") -> str:
    """Names as a sentence has them.

    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    return f" {conjunction} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
