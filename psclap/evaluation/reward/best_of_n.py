"""How good a reward is: what it selects of N candidates, against a random choice and the best one, by a judge.

Nothing is drawn: the mean over all subsets of N of a prompt's C candidates follows from the order alone. Of the
candidates sorted by the reward, the one at place k (from 0) is a subset's best in C(C-1-k, N-1) of the C(C, N) subsets.
Candidates of one reward are in random order among each other, so a constant reward gets what chance gets.
Axes: P prompts, C candidates, N sizes, K kinds, V values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import comb

import numpy as np

from psclap.errors import PsclapError
from psclap.evaluation import PAIRED_RESAMPLES
from psclap.evaluation.bootstrap import interval
from psclap.evaluation.reward.rank import Ranked

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
KINDS = ("random", "selected", "oracle", "gain")
Estimate = Mapping[str, float]


def expected_best(reward_C: np.ndarray, value_C: np.ndarray, n: int) -> float:
    """The mean, over all subsets of n candidates, of the value of the subset's best by reward; n is at most C.

    >>> expected_best(np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.0, 0.0]), 2)
    0.6666666666666666
    """
    total = len(reward_C)
    _, group_C = np.unique(-np.asarray(reward_C), return_inverse=True)
    means = np.bincount(group_C, value_C) / np.bincount(group_C)
    by_reward_C = means[np.sort(group_C)]
    chances_C = np.array([comb(total - 1 - place, n - 1) / comb(total, n) for place in range(total)])
    return float(chances_C @ by_reward_C)


def sweep(
    rewards: Sequence[np.ndarray], judged: Sequence[np.ndarray], sizes: Sequence[int] = SIZES, seed: int = 0
) -> dict[int, dict[str, Estimate]]:
    """{N: {"random", "selected", "oracle", "gain"}} of prompts, each (C,) rewards and judge's values, higher is better.

    Each is an estimate, `mean` over the prompts with `low` and `high`, a 95 % interval of the percentile bootstrap over
    prompts. `oracle` chooses by the judge; `gain` is selected minus random. A prompt of fewer than N candidates gives
    all that it has; an N that none has is left out. Only a judge that is no part of the reward says anything
    (`psclap.evaluation.reward.selection.check_judge`). Raises PsclapError where there is no prompt.
    """
    if not rewards:
        raise PsclapError("there is no prompt with candidates to evaluate the reward on")
    used = [n for n in sizes if n <= max(len(reward_C) for reward_C in rewards)]
    values_PNK = np.array(
        [[_values(*pair, n) for n in used] for pair in zip(rewards, judged, strict=True)]  # one draw of prompts for all
    )
    estimated = iter(estimates(values_PNK.reshape(len(rewards), -1), seed))
    return {n: {kind: next(estimated) for kind in KINDS} for n in used}


def _values(reward_C: np.ndarray, value_C: np.ndarray, n: int) -> tuple[float, ...]:
    """Of KINDS, of one prompt."""
    size = min(n, len(reward_C))
    random = float(value_C.mean())
    selected = expected_best(reward_C, value_C, size) if size > 1 else random
    return random, selected, expected_best(value_C, value_C, size), selected - random


def estimates(values_PV: np.ndarray, seed: int = 0) -> list[Estimate]:
    """The mean of each column with its interval; the columns are drawn together."""
    rng, count = np.random.default_rng(seed), len(values_PV)
    draws = (rng.multinomial(count, np.full(count, 1 / count)) for _ in range(PAIRED_RESAMPLES))
    means_RV = np.array([times_P @ values_PV / count for times_P in draws])
    ends = (interval(means_R) for means_R in means_RV.T)
    return [
        {"mean": float(mean), "low": low, "high": high}
        for mean, (low, high) in zip(values_PV.mean(0), ends, strict=True)
    ]


def in_order(ranked: Ranked, values: Iterable[float | None]) -> list[tuple[np.ndarray, np.ndarray]]:
    """What `sweep` takes of a prompt: how its candidates stand in the reward's order, and the judge's values.

    Candidates without a score or a value are left out; nothing is returned where none is left.
    """
    known = [(c.preference, value) for c, value in zip(ranked.candidates, values, strict=True) if c.score is not None]
    known = [(preference, value) for preference, value in known if value is not None]
    if not known:
        return []
    order = {preference: place for place, preference in enumerate(sorted({preference for preference, _ in known}))}
    return [(np.array([float(order[p]) for p, _ in known]), np.array([value for _, value in known], float))]
