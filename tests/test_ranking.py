"""Ranks by counting against sorting in every order, whatever the blocks; ties, and what is refused."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psclap import metrics
from psclap.errors import PsclapError
from psclap.metrics import Ranks
from psclap.pairs import Pairs
from psclap.ranking import nearest_of, ranks_both_ways, ranks_of, ranks_of_scores


def pairs_of(is_right: np.ndarray) -> Pairs:
    return Pairs.of(*np.nonzero(is_right), *is_right.shape)


def as_lists(ranks: Ranks) -> list[list[int]]:
    return [ranks.above.tolist(), ranks.tied.tolist(), ranks.right.tolist()]


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
    ranks = ranks_of_scores(scores, pairs_of(is_right))
    slow = [slow_ranks(*query) for query in zip(scores, is_right, strict=True)]
    np.testing.assert_allclose(ranks.expected, [np.mean(query) for query in slow])
    recall = np.mean([np.mean([rank <= k for rank in query]) for query in slow])
    assert metrics.recall_at(ranks, k) == pytest.approx(recall)


def test_large_rankings_equal_a_sort():
    rng = np.random.default_rng(0)
    scores, is_right = rng.standard_normal((300, 500)), rng.random((300, 500)) < 0.02
    is_right[:, 0] = True
    ordered = np.take_along_axis(is_right, (-scores).argsort(axis=1), axis=1)
    expected = ordered.argmax(axis=1) + 1
    result = metrics.retrieval_metrics(ranks_of_scores(scores, pairs_of(is_right)))
    assert result == {
        **{f"R@{k}": pytest.approx((expected <= k).mean()) for k in (1, 5, 10)},
        "median_rank": np.median(expected),
        "mean_rank": pytest.approx(expected.mean()),
        "MRR": pytest.approx((1 / expected).mean()),
    }


@st.composite
def few_vectors(draw):
    """Embeddings of few different whole numbers, so that many scores tie, and who is right for whom both ways."""
    number, candidates, dim = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    values = st.integers(-2, 2)
    query, candidate = (
        np.array(draw(st.lists(st.lists(values, min_size=dim, max_size=dim), min_size=n, max_size=n)), np.float32)
        for n in (number, candidates)
    )
    is_right = np.array(draw(st.lists(st.booleans(), min_size=number * candidates, max_size=number * candidates)))
    is_right = is_right.reshape(number, candidates)
    is_right[~is_right.any(1), 0] = True
    is_right[0, ~is_right.any(0)] = True
    return query, candidate, is_right


@given(case=few_vectors(), block_bytes=st.sampled_from([1, 200, 1000, 10**6]))
def test_ranks_of_embeddings_are_those_of_their_scores(case, block_bytes):
    query, candidate, is_right = case
    scores = query @ candidate.T  # of small whole numbers: exact
    there, back = ranks_both_ways(query, candidate, pairs_of(is_right), block_bytes)
    assert as_lists(there) == as_lists(ranks_of_scores(scores, pairs_of(is_right)))
    assert as_lists(back) == as_lists(ranks_of_scores(scores.T, pairs_of(is_right.T)))
    assert as_lists(there) == as_lists(ranks_of(query, candidate, pairs_of(is_right), block_bytes))


def unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def doubled() -> tuple[np.ndarray, np.ndarray, Pairs]:
    """700 clips and 300 captions; every clip and caption is there twice, far from its twin, and one of two is right."""
    rng = np.random.default_rng(1)
    speech, texts = np.tile(unit(rng, 350, 96), (2, 1)), np.tile(unit(rng, 150, 96), (2, 1))
    right = Pairs.of(np.arange(700), np.arange(700) % 300, 700, 300)
    return speech, texts, right


@pytest.mark.parametrize("block_bytes", [20_000, 77_777, 300_000, 10**6, 10**8])
def test_ranks_do_not_depend_on_the_blocks(doubled, block_bytes: int) -> None:
    found = ranks_both_ways(*doubled, block_bytes)
    assert list(map(as_lists, found)) == list(map(as_lists, ranks_both_ways(*doubled)))


def test_what_is_embedded_alike_ties(doubled) -> None:
    there, back = ranks_both_ways(*doubled)
    assert there.tied.tolist() == [1] * 700  # the right caption's twin is wrong
    assert (back.tied + back.right).min() >= 2
    exact = doubled[0].astype(np.float64) @ doubled[1].T.astype(np.float64)
    np.testing.assert_array_equal(
        there.above, (exact > exact[np.arange(700), np.arange(700) % 300][:, None] + 1e-6).sum(1)
    )


@pytest.mark.parametrize("k", [1, 5, 10])
def test_a_constant_model_scores_chance_in_both_directions(k: int) -> None:
    rng = np.random.default_rng(2)
    is_right = rng.random((600, 350)) < 0.01
    is_right[~is_right.any(1), 0] = True
    is_right[0, ~is_right.any(0)] = True
    same = unit(rng, 1, 64)
    there, back = ranks_both_ways(np.repeat(same, 600, 0), np.repeat(same, 350, 0), pairs_of(is_right), 10**5)
    for ranks, right in ((there, is_right), (back, is_right.T)):
        counts, candidates = right.sum(1), right.shape[1]
        assert metrics.recall_at(ranks, k) == pytest.approx(metrics.chance_recall(counts, candidates, k))
        assert ranks.expected == pytest.approx((candidates + 1) / (counts + 1))


def test_the_best_of_several_right_candidates_counts() -> None:
    query, candidate = np.array([[1.0, 0.0]]), np.array([[0.5, 0.0], [0.7, 0.0], [0.9, 0.0], [0.7, 0.0]])
    ranks = ranks_of(query, candidate, Pairs.of([0, 0], [0, 1], 1, 4))
    assert as_lists(ranks) == [[1], [1], [1]]
    assert as_lists(ranks_of(query, candidate, Pairs.of([0, 0], [1, 3], 1, 4))) == [[1], [0], [2]]


@pytest.mark.parametrize("scale", [1e-6, 0.3, 1.0, 7.0, 1e6])
def test_length_changes_no_order(scale: float) -> None:
    rng = np.random.default_rng(3)
    query, candidate, right = unit(rng, 40, 32), unit(rng, 50, 32), Pairs.of(np.arange(40), np.arange(40), 40, 50)
    expected = as_lists(ranks_of(query, candidate, right))
    assert as_lists(ranks_of(query * np.float32(scale), candidate, right)) == expected


def test_memory_is_bounded() -> None:
    rng = np.random.default_rng(4)
    query, candidate = unit(rng, 12_000, 8), unit(rng, 4_000, 8)
    right = Pairs.of(np.arange(12_000), np.arange(12_000) % 4_000, 12_000, 4_000)
    tracemalloc.start()
    ranks_both_ways(query, candidate, right, block_bytes=2**22)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**22  # all scores would be 384 MB


def test_nearest_takes_the_first_of_equals() -> None:
    rng = np.random.default_rng(5)
    query, candidate = unit(rng, 5000, 16), np.tile(unit(rng, 9, 16), (2, 1))
    exact = query.astype(np.float64) @ candidate[:9].T.astype(np.float64)
    np.testing.assert_array_equal(nearest_of(query, candidate), exact.argmax(1))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    right = Pairs.of([0, 1], [0, 1], 2, 2)
    broken = np.array([[0.5, wrong], [0.1, 0.2]])
    for call in (
        lambda: ranks_of_scores(broken, right),
        lambda: ranks_of(broken, np.eye(2), right),
        lambda: ranks_both_ways(np.eye(2), broken, right),
        lambda: nearest_of(broken, np.eye(2)),
    ):
        with pytest.raises(PsclapError, match="not finite"):
            call()


def test_every_query_needs_a_right_candidate() -> None:
    some = Pairs.of([0, 2], [0, 0], 3, 2)
    with pytest.raises(PsclapError, match="query 1 has no right candidate"):
        ranks_of(np.eye(3, 2), np.eye(2), some)
    with pytest.raises(PsclapError, match="query 1 has no right candidate"):
        ranks_both_ways(np.eye(2), np.eye(2), Pairs.of([0, 1], [0, 0], 2, 2))  # nothing is right for candidate 1
    with pytest.raises(PsclapError, match="no queries"):
        ranks_of(np.empty((0, 2)), np.eye(2), Pairs.of([], [], 0, 2))


@given(is_right=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5).map(np.array))
def test_pairs_are_the_matrix(is_right: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.nonzero(is_right)
    order = rng.permutation(np.tile(np.arange(len(rows)), 2))  # in any order, and each twice
    pairs = Pairs.of(rows[order], columns[order], *is_right.shape)
    assert [pairs.of_query(row).tolist() for row in range(len(pairs))] == [
        np.flatnonzero(row).tolist() for row in is_right
    ]
    back = pairs.transposed
    assert [back.of_query(row).tolist() for row in range(len(back))] == [
        np.flatnonzero(row).tolist() for row in is_right.T
    ]
    assert pairs.queries[pairs.by_candidate].tolist() == back.numbers.tolist()
