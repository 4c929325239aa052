import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import comb
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from psclap import metrics


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


@given(batch=st.lists(LABELS, min_size=1, max_size=4))
def test_scores_of_many_matrices_are_those_of_each(batch):
    confusions = [metrics.confusion_matrix(*np.array(pairs).T, 5) for pairs in batch]
    for of_many, of_one in (
        (metrics.unweighted_average_recalls, metrics.unweighted_average_recall),
        (metrics.macro_f1s, metrics.macro_f1),
    ):
        assert of_many(np.stack(confusions)).tolist() == [of_one(confusion) for confusion in confusions]
