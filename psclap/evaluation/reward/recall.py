"""Attribute recall: of the attributes that prompts ask for, the share that the selected candidates have.

Axes: C candidates of a prompt, A of its attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from psclap.corpora.demo import STYLES
from psclap.errors import PsclapError
from psclap.evaluation.reward.best_of_n import SIZES, in_order, sweep
from psclap.evaluation.reward.rank import Ranked
from psclap.evaluation.reward.styles import StyledPrompt

MIN_ACCURACY = 0.8
Styles = Sequence[Mapping[str, str]]  # of each candidate, by attribute


def attribute_recall(
    prompts: Sequence[StyledPrompt],
    ranked: Sequence[Ranked],
    heard: Sequence[Styles],
    accuracy: Mapping[str, float],
    seed: int = 0,
) -> dict[str, Any]:
    """What the reward selects, by what a judge has `heard` of each candidate, and by what was set.

    `recall` and `all_right` (all asked attributes are there) are sweeps over N, `attributes` has the recall of each at
    the largest N. Attributes that the judge hears with a balanced `accuracy` below MIN_ACCURACY are left out, and
    named; `as_set` counts all of them. Raises PsclapError where none is left.
    """
    judged = [name for name, value in accuracy.items() if value >= MIN_ACCURACY]
    asked = [name for name in STYLES if any(name in prompt.asked for prompt in prompts)]
    if not set(judged) & set(asked):
        raise PsclapError(
            f"the judge hears none of the asked attributes well enough: {dict(accuracy)}, at least {MIN_ACCURACY} is "
            "needed; calibrate it on more clips (reward.calibration_clips)"
        )
    truth = [[line.style for line in prompt.lines] for prompt in prompts]
    return {
        "prompts": len(prompts),
        "judge": {"accuracy": dict(accuracy), "left_out": [name for name in asked if name not in judged]},
        **_sweeps(prompts, ranked, heard, judged, seed),
        "attributes": {name: _of_attribute(prompts, ranked, heard, name, seed) for name in asked if name in judged},
        "as_set": _sweeps(prompts, ranked, truth, asked, seed),
    }


def _sweeps(
    prompts: Sequence[StyledPrompt], ranked: Sequence[Ranked], styles: Sequence[Styles], names: Sequence[str], seed: int
) -> dict[str, Any]:
    has = [_has(prompt, of_prompt, names) for prompt, of_prompt in zip(prompts, styles, strict=True)]
    return {
        "recall": _sweep(ranked, [has_CA.mean(1) if has_CA.size else None for has_CA in has], SIZES, seed),
        "all_right": _sweep(ranked, [has_CA.min(1) if has_CA.size else None for has_CA in has], SIZES, seed),
    }


def _of_attribute(
    prompts: Sequence[StyledPrompt], ranked: Sequence[Ranked], styles: Sequence[Styles], name: str, seed: int
) -> dict[str, Any]:
    has = [_has(prompt, of_prompt, [name]) for prompt, of_prompt in zip(prompts, styles, strict=True)]
    size = max(len(has_CA) for has_CA in has)
    (estimates,) = _sweep(ranked, [has_CA[:, 0] if has_CA.size else None for has_CA in has], [size], seed).values()
    return {"prompts": sum(has_CA.size > 0 for has_CA in has), "candidates": size, **estimates}


def _sweep(
    ranked: Sequence[Ranked], values: Sequence[np.ndarray | None], sizes: Sequence[int], seed: int
) -> dict[int, dict[str, Any]]:
    pairs = [
        pair
        for of_prompt, values_C in zip(ranked, values, strict=True)
        if values_C is not None
        for pair in in_order(of_prompt, values_C.tolist())
    ]
    return sweep([rewards for rewards, _ in pairs], [judged for _, judged in pairs], sizes, seed)


def _has(prompt: StyledPrompt, styles: Styles, names: Sequence[str]) -> np.ndarray:
    """(C, A) of 0 and 1: whether each candidate has what the prompt asks for, of the attributes `names`."""
    asked = {name: tag for name, tag in prompt.asked.items() if name in names}
    has = [[style.get(name) == tag for name, tag in asked.items()] for style in styles]
    return np.array(has, float).reshape(len(styles), len(asked))
