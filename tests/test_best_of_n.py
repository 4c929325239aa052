"""Best-of-N in expectation: against every subset, and against draws; the bootstrap; the door."""

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psclap.errors import PsclapError
from psclap.evaluation.reward.best_of_n import estimates, expected_best, sweep


def by_all_subsets(rewards: list[int], values: list[float], n: int) -> float:
    """The slow obvious way: every subset, in every order, of which the first best is taken."""
    found = []
    for subset in combinations(range(len(rewards)), n):
        for order in permutations(subset):
            found.append(values[max(order, key=lambda number: rewards[number])])
    return float(np.mean(found))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 1)), min_size=1, max_size=5).flatmap(
        lambda pairs: st.tuples(st.just(pairs), st.integers(1, len(pairs)))
    )
)
def test_the_expectation_is_that_over_all_subsets(case: tuple[list[tuple[int, float]], int]) -> None:
    pairs, n = case
    rewards, values = [list(column) for column in zip(*pairs, strict=True)]
    expected = by_all_subsets(rewards, values, n)
    assert expected_best(np.array(rewards), np.array(values), n) == pytest.approx(expected, abs=1e-12)


def test_many_candidates_agree_with_draws() -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=200), rng.random(200)
    drawn = [max(rng.choice(200, 30, replace=False), key=lambda number: rewards[number]) for _ in range(20_000)]
    assert expected_best(rewards, values, 30) == pytest.approx(values[drawn].mean(), abs=0.01)


def test_one_candidate_is_the_mean_and_all_are_the_best() -> None:
    rewards, values = np.array([0.3, 0.9, 0.1]), np.array([0.0, 0.5, 1.0])
    assert expected_best(rewards, values, 1) == pytest.approx(0.5)
    assert expected_best(rewards, values, 3) == 0.5


def test_a_constant_reward_gains_nothing() -> None:
    rng = np.random.default_rng(0)
    found = sweep([np.zeros(16)] * 30, [rng.random(16) for _ in range(30)])
    assert list(found) == [1, 2, 4, 8, 16]
    for at_n in found.values():
        assert at_n["gain"]["mean"] == pytest.approx(0, abs=1e-12)
        assert at_n["selected"]["mean"] == pytest.approx(at_n["random"]["mean"])


def test_selected_lies_between_random_and_oracle_and_rises_with_n() -> None:
    rng = np.random.default_rng(1)
    judged = [rng.random(16) for _ in range(40)]
    found = sweep([values + rng.normal(0, 0.3, 16) for values in judged], judged)
    means = [[at_n[kind]["mean"] for kind in ("random", "selected", "oracle")] for at_n in found.values()]
    assert means[0] == pytest.approx([means[0][0]] * 3)
    for before, after in pairwise(means):
        assert after[0] == before[0]
        assert before[1] < after[1] < after[2]
    assert found[16]["oracle"]["mean"] == pytest.approx(np.mean([values.max() for values in judged]))


def test_a_prompt_of_fewer_candidates_gives_all_that_it_has() -> None:
    found = sweep([np.array([1.0, 2.0]), np.arange(4.0)], [np.array([0.0, 1.0]), np.array([0, 0, 0, 0.5])], [1, 4, 8])
    assert list(found) == [1, 4]
    assert found[4]["selected"]["mean"] == pytest.approx((1.0 + 0.5) / 2)


def test_intervals_are_those_of_the_bootstrap() -> None:
    """The mean of 400 draws of a normal varies by 1/20: the percentile interval is about 1.96 of these either way."""
    values = np.random.default_rng(2).normal(size=(400, 1))
    (found,) = estimates(values)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert estimates(values) == estimates(values)


def test_the_interval_of_the_gain_is_paired() -> None:
    """Prompts that differ much, and gain all the same: the gain is certain though the means are not."""
    levels = np.linspace(0, 100, 50)
    found = sweep([np.array([0.0, 1.0])] * 50, [np.array([level, level + 1]) for level in levels])
    assert found[2]["gain"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    assert found[2]["selected"]["high"] - found[2]["selected"]["low"] > 10


def test_without_prompts_there_is_nothing_to_say() -> None:
    with pytest.raises(PsclapError, match="no prompt"):
        sweep([], [])
