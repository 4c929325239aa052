"""Intervals that hold the truth as often as they say, and metrics of samples that are those of the sampled queries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psclap import metrics
from psclap.errors import PsclapError
from psclap.evaluation import bootstrap
from psclap.evaluation.bootstrap import check_resamples, intervals, p_value, resampled
from psclap.evaluation.outcomes import Labelled, Ranked, metrics_of
from psclap.metrics import Ranks


def ranked(ranks: np.ndarray) -> Ranked:
    """Queries without ties, of these ranks."""
    return Ranked.of(Ranks(ranks - 1, np.zeros_like(ranks), np.ones_like(ranks)))


RANKS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=12)


@given(queries=RANKS, data=st.data())
def test_metrics_of_a_sample_are_those_of_its_queries(queries, data) -> None:
    ranks = Ranks(*np.array(queries).T)
    outcome = Ranked.of(ranks)
    assert metrics_of(outcome) == pytest.approx(metrics.retrieval_metrics(ranks))
    drawn = np.array(data.draw(st.lists(st.integers(0, len(queries) - 1), min_size=1, max_size=15)))
    counts = np.bincount(outcome.codes[drawn], minlength=outcome.num_codes)
    of_sample = {name: value for name, (value,) in outcome.metrics(counts[None]).items()}
    sampled = Ranks(ranks.above[drawn], ranks.tied[drawn], ranks.right[drawn])
    assert of_sample == pytest.approx(metrics.retrieval_metrics(sampled))


@given(labels=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20))
def test_metrics_of_labels_are_those_of_their_confusion_matrix(labels) -> None:
    outcome = Labelled(("a", "b", "c"), *np.array(labels).T)
    assert metrics_of(outcome) == {
        "UAR": pytest.approx(metrics.unweighted_average_recall(outcome.confusion)),
        "macro_F1": pytest.approx(metrics.macro_f1(outcome.confusion)),
    }


def test_a_resample_is_of_whole_units() -> None:
    """Of two units, all of one or all of the other or both are drawn: the mean rank takes three values."""
    (found,) = resampled([ranked(np.array([1, 1, 1, 9, 9]))], np.array([0, 0, 0, 1, 1]), 400)
    assert {*np.round(found["mean_rank"], 6)} == {1.0, 4.2, 9.0}
    assert (found["mean_rank"] == 4.2).mean() == pytest.approx(0.5, abs=0.1)


def test_resamples_are_equal_for_all_outcomes_and_do_not_depend_on_how_many_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    outcome, unit = ranked(rng.integers(1, 50, 200)), rng.permutation(np.arange(200) % 30)
    one, same = resampled([outcome, outcome], unit, 150, seed=3)
    monkeypatch.setattr(bootstrap, "_COUNTS_BYTES", 1)
    (again,) = resampled([outcome], unit, 150, seed=3)
    (other,) = resampled([outcome], unit, 150, seed=4)
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
        np.testing.assert_allclose(one[name], again[name], rtol=1e-12)
    assert (one["mean_rank"] != other["mean_rank"]).any()


def coverage(simulate, truth: dict[str, float], runs: int = 200) -> dict[str, float]:
    """The share of simulations whose interval holds the truth."""
    inside = dict.fromkeys(truth, 0)
    for run in range(runs):
        found = intervals(*simulate(np.random.default_rng(run)), resamples=200, seed=run)
        for name, value in truth.items():
            inside[name] += found[name][0] <= value <= found[name][1]
    return {name: count / runs for name, count in inside.items()}


def test_intervals_of_independent_queries_hold_the_truth_as_often_as_they_say() -> None:
    """Ranks of a geometric distribution: R@1 is p, the mean 1 / p, the median known."""
    p = 0.12

    def simulate(rng: np.random.Generator):
        return ranked(rng.geometric(p, 250)), np.arange(250)

    found = coverage(simulate, {"R@1": p, "R@5": 1 - (1 - p) ** 5, "mean_rank": 1 / p, "median_rank": 6.0})
    assert all(0.90 <= share <= 0.99 for share in found.values()), found


def test_intervals_over_speakers_hold_the_truth_where_those_over_clips_do_not() -> None:
    """A speaker is found with a chance of his own, so his clips are not independent."""
    unit = np.repeat(np.arange(60), 8)

    def simulate(rng: np.random.Generator):
        found = rng.random(len(unit)) < rng.beta(0.6, 0.6, 60)[unit]
        return ranked(np.where(found, 1, 20))

    over_speakers = coverage(lambda rng: (simulate(rng), unit), {"R@1": 0.5})
    over_clips = coverage(lambda rng: (simulate(rng), np.arange(len(unit))), {"R@1": 0.5})
    assert 0.90 <= over_speakers["R@1"] <= 0.99
    assert over_clips["R@1"] < 0.75


def test_intervals_of_uar_hold_the_truth() -> None:
    recall = np.array([0.9, 0.6, 0.3])

    def simulate(rng: np.random.Generator):
        actual = rng.choice(3, 400, p=[0.6, 0.3, 0.1])
        predicted = np.where(rng.random(400) < recall[actual], actual, (actual + 1) % 3)
        return Labelled(("a", "b", "c"), actual, predicted), np.arange(400)

    assert 0.90 <= coverage(simulate, {"UAR": recall.mean()})["UAR"] <= 0.99


def test_p_values_of_equal_models_are_spread_evenly() -> None:
    """Two models that differ by luck alone: one p-value in twenty is below 0.05, and half are below a half."""
    values = []
    for run in range(300):
        rng = np.random.default_rng(run)
        hard = rng.random(300)  # what is hard for one is hard for the other
        outcomes = [ranked(np.where(rng.random(300) < hard, 1, 9)) for _ in range(2)]
        one, other = resampled(outcomes, np.arange(300), 200, seed=run)
        values.append(p_value(other["R@1"] - one["R@1"]))
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.1
    assert 0.4 <= np.mean(np.array(values) < 0.5) <= 0.6


def test_too_few_resamples_are_refused() -> None:
    with pytest.raises(PsclapError, match="99 resamples are too few"):
        check_resamples(99)
    assert check_resamples(100) == 100
