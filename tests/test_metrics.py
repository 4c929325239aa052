import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import comb
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from psclap import metrics
from psclap.errors import PsclapError


def slow_ranks(scores, is_right):
    """Ranks of the first right candidate in every order that sorts `scores`, equally likely."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[one] >= scores[other] for one, other in itertools.pairwise(order))
    ]
    return [1 + next(place for place, number in enumerate(order) if is_right[number]) for order in orders]


@st.composite
def queries(draw, ties: bool):
    """Scores and right candidates of some queries, with ties among the scores or without."""
    number, candidates = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    scores, is_right = np.zeros((number, candidates)), np.zeros((number, candidates), bool)
    for query in range(number):
        unique = st.lists(st.integers(0, 3 if ties else 99), min_size=candidates, max_size=candidates, unique=not ties)
        scores[query] = draw(unique)
        right = st.sets(st.integers(0, candidates - 1), min_size=1, max_size=candidates)
        is_right[query, list(draw(right))] = True
    return scores, is_right


@pytest.mark.parametrize("ties", [False, True])
@given(data=st.data(), k=st.integers(1, 8))
def test_ranks_and_recalls_equal_the_mean_over_sorted_orders(ties, data, k):
    scores, is_right = data.draw(queries(ties))
    ranks = metrics.ranks(scores, is_right)
    slow = [slow_ranks(*query) for query in zip(scores, is_right, strict=True)]
    np.testing.assert_allclose(ranks.expected, [np.mean(query) for query in slow])
    recall = np.mean([np.mean([rank <= k for rank in query]) for query in slow])
    assert metrics.recall_at(ranks, k) == pytest.approx(recall)


def test_large_rankings_equal_a_sort():
    rng = np.random.default_rng(0)
    scores, is_right = rng.standard_normal((50, 300)), rng.random((50, 300)) < 0.02
    is_right[:, 0] = True
    ordered = np.take_along_axis(is_right, (-scores).argsort(axis=1), axis=1)
    expected = ordered.argmax(axis=1) + 1
    result = metrics.retrieval_metrics(metrics.ranks(scores, is_right))
    assert result == {
        **{f"R@{k}": pytest.approx((expected <= k).mean()) for k in (1, 5, 10)},
        "median_rank": np.median(expected),
        "mean_rank": pytest.approx(expected.mean()),
        "MRR": pytest.approx((1 / expected).mean()),
    }


@pytest.mark.parametrize("k", [1, 5, 10, 40])
def test_a_model_that_scores_everything_alike_gets_what_guessing_gets(k):
    is_right = np.eye(40, dtype=bool)
    ranks = metrics.ranks(np.full((40, 40), 0.25), is_right)
    assert metrics.recall_at(ranks, k) == pytest.approx(metrics.chance_recall(is_right.sum(1), 40, k))
    assert ranks.expected == pytest.approx(20.5)


@given(right=st.lists(st.integers(1, 12), min_size=1, max_size=5), k=st.integers(1, 15))
def test_chance_recall_is_the_hypergeometric_formula(right, k):
    formula = np.mean([1 - comb(12 - count, k) / comb(12, min(k, 12)) for count in right])
    assert metrics.chance_recall(np.array(right), 12, k) == pytest.approx(formula)


def test_chance_recall_is_what_shuffling_finds():
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(np.arange(20), (20_000, 1)), axis=1)
    found = (orders[:, :5] < 3).any(axis=1).mean()  # candidates 0, 1 and 2 are right
    assert metrics.chance_recall(np.array([3]), 20, 5) == pytest.approx(found, abs=0.015)


LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@given(pairs=LABELS)
def test_confusion_uar_and_macro_f1_equal_scikit_learn(pairs):
    actual, predicted = np.array(pairs).T
    confusion = metrics.confusion_matrix(actual, predicted, 5)
    np.testing.assert_array_equal(confusion, confusion_matrix(actual, predicted, labels=range(5)))
    occurs = np.unique(actual)  # a class without an item has no recall to average
    recall = recall_score(actual, predicted, labels=occurs, average="macro", zero_division=0)
    assert metrics.unweighted_average_recall(confusion) == pytest.approx(recall)
    f1 = f1_score(actual, predicted, labels=occurs, average="macro", zero_division=0)
    assert metrics.macro_f1(confusion) == pytest.approx(f1)


def test_rows_of_the_confusion_matrix_are_the_actual_class():
    confusion = metrics.confusion_matrix(np.array([2, 2, 0]), np.array([1, 1, 0]), 3)
    assert confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 2, 0]]


def test_scores_that_are_not_finite_are_refused():
    scores = np.array([[0.5, np.nan], [0.1, 0.2]])
    with pytest.raises(PsclapError, match="not finite"):
        metrics.ranks(scores, np.eye(2, dtype=bool))
