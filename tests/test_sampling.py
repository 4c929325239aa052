from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from psclap.errors import PsclapError
from psclap.sampling import Balance, EpochPlan, class_balance

SEEDS = st.integers(0, 2**32 - 1)
EPOCHS = st.integers(0, 1000)
TAGS = ("raspy", "silky", "husky", "male", "female", "deep")
SOURCES = st.lists(st.integers(1, 80), min_size=2, max_size=4).filter(lambda sizes: sum(sizes) >= 40)


def order(plan: EpochPlan) -> list[int]:
    return [int(number) for step in range(len(plan)) for number in plan.examples(step)]


def balance(size: int, seed: int, min_rare: int = 2, block_size: int = 8) -> Balance:
    rng = np.random.default_rng(seed)
    is_rare = np.arange(size) == rng.integers(size)
    return Balance(rng.uniform(0.5, 1.5, size), is_rare, min_rare, block_size)


@given(size=st.integers(8, 60), seed=SEEDS, epoch=EPOCHS, kind=st.sampled_from(["single", "several", "balanced"]))
def test_a_plan_is_a_pure_function_of_its_arguments(size, seed, epoch, kind):
    sizes = [size, 60] if kind == "several" else [size]
    weights = [balance(sum(sizes), seed) if kind == "balanced" else None for _ in range(2)]
    one, other = (EpochPlan(sizes, 8, seed, epoch, weight) for weight in weights)
    assert order(one) == order(other)
    assert {len(one.examples(step)) for step in range(len(one))} == {8}


@given(size=st.integers(1, 200), batch_size=st.integers(1, 50), seed=SEEDS, epoch=EPOCHS)
def test_one_source_gives_every_example_once_but_for_a_remainder(size, batch_size, seed, epoch):
    if size < batch_size:
        with pytest.raises(PsclapError, match=rf"{size} examples, less than one batch of {batch_size}"):
            EpochPlan([size], batch_size, seed, epoch)
        return
    plan = EpochPlan([size], batch_size, seed, epoch)
    numbers = order(plan)
    assert len(plan) == size // batch_size
    assert len(numbers) == len(set(numbers)) == size - size % batch_size
    assert set(numbers) <= set(range(size))


@given(seed=SEEDS, epoch=EPOCHS, kind=st.sampled_from([None, "balanced"]))
def test_epochs_and_seeds_differ_in_order(seed, epoch, kind):
    weights = balance(100, 0) if kind else None
    orders = [
        order(EpochPlan([100], 10, s, e, weights)) for s, e in ((seed, epoch), (seed, epoch + 1), (seed + 1, epoch))
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_what_one_epoch_leaves_over_comes_in_another():
    seen = {number for epoch in range(20) for number in order(EpochPlan([15], 8, 0, epoch))}
    assert seen == set(range(15))


@given(sizes=SOURCES, seed=SEEDS, epoch=EPOCHS)
def test_interleaving_ends_when_the_last_source_is_exhausted(sizes, seed, epoch):
    numbers = np.array(order(EpochPlan(sizes, 1, seed, epoch)))
    ends = np.cumsum(sizes)
    assert set(numbers) == set(range(ends[-1]))
    source_of = np.searchsorted(ends, numbers, side="right")
    last = source_of[-1]
    assert (source_of == last).sum() == sizes[last]
    for source, size in enumerate(sizes):
        of_source = numbers[source_of == source]
        passes = [of_source[start : start + size] for start in range(0, len(of_source), size)]
        assert all(len(set(one)) == len(one) for one in passes)  # every pass is a permutation, or its beginning
        assert len(passes[0]) == size


@pytest.mark.parametrize("sizes", [[3000, 500], [2000, 2000, 2000], [1, 4000]])
def test_interleaved_sources_have_equal_shares_whatever_their_size(sizes):
    numbers = order(EpochPlan(sizes, 1, seed=0, epoch=0))
    count = np.bincount(np.searchsorted(np.cumsum(sizes), numbers, side="right"))
    assert np.abs(count / len(numbers) - 1 / len(sizes)).max() < 0.03


@given(sizes=SOURCES, seed=SEEDS)
def test_interleaved_batches_drop_only_the_remainder(sizes, seed):
    whole, batched = order(EpochPlan(sizes, 1, seed, 0)), order(EpochPlan(sizes, 7, seed, 0))
    assert batched == whole[: len(whole) // 7 * 7]


def test_balanced_draws_follow_the_weights():
    weights = np.array([1.0, 2.0, 3.0, 4.0, 10.0] * 10)
    plan_balance = Balance(weights, np.zeros(50, bool), 2, 32)
    drawn = [number for epoch in range(600) for number in order(EpochPlan([50], 10, 0, epoch, plan_balance))]
    assert len(drawn) == 600 * 50
    assert chisquare(np.bincount(drawn, minlength=50), weights / weights.sum() * len(drawn)).pvalue > 1e-3


def test_rare_examples_put_into_a_block_are_drawn_by_their_weights():
    weights, is_rare = np.r_[np.full(90, 1e6), [1.0] * 9, 3.0], np.arange(100) >= 90
    plans = (EpochPlan([100], 10, 0, epoch, Balance(weights, is_rare, 2, 10)) for epoch in range(150))
    count = np.bincount([number for plan in plans for number in order(plan)], minlength=100)
    assert count[90:].sum() == 150 * 20
    assert chisquare(count[90:], weights[90:] / 12 * count[90:].sum()).pvalue > 1e-3


@given(
    size=st.integers(20, 150),
    batch_size=st.integers(1, 20),
    min_rare=st.integers(0, 6),
    block_size=st.integers(6, 40),
    seed=SEEDS,
)
def test_every_block_has_its_rare_examples_and_the_rest_is_what_the_weights_drew(
    size, batch_size, min_rare, block_size, seed
):
    with_rare = balance(size, seed, min_rare, block_size)
    without = Balance(with_rare.weights, with_rare.is_rare, 0, block_size)
    drawn, plain = (np.array(order(EpochPlan([size], batch_size, seed, 0, b))) for b in (with_rare, without))
    assert len(drawn) == len(plain) == size // batch_size * batch_size
    for start in range(0, len(drawn), block_size):
        block, before = drawn[start : start + block_size], plain[start : start + block_size]
        rare, rare_before = (with_rare.is_rare[numbers].sum() for numbers in (block, before))
        assert rare == max(rare_before, min(min_rare, len(block)))
        assert (block != before).sum() == rare - rare_before


def slow_balance(tags_of_example, rare_below_share):
    frequency = Counter(tag for tags in tags_of_example for tag in tags)
    rare_tags = {tag for tag, count in frequency.items() if count < rare_below_share * len(tags_of_example)}
    weights = [sum(1 / frequency[tag] for tag in tags) / len(tags) if tags else None for tags in tags_of_example]
    smallest = min(weight for weight in weights if weight is not None)
    weights = [smallest if weight is None else weight for weight in weights]
    return weights, [bool(rare_tags.intersection(tags)) for tags in tags_of_example]


@given(
    tags=st.lists(st.lists(st.sampled_from(TAGS), unique=True), min_size=1, max_size=60).filter(any),
    share=st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]),
)
def test_class_balance_equals_the_formula_sample_by_sample(tags, share):
    weights, is_rare = slow_balance(tags, share)
    result = class_balance(tags, share, min_rare=3, block_size=16)
    np.testing.assert_allclose(result.weights, weights)
    assert result.is_rare.tolist() == is_rare
    assert (result.min_rare, result.block_size) == (3, 16)


def test_a_tag_is_rare_below_the_share_and_not_at_it():
    tags = [["male"]] * 95 + [["raspy"]] * 5
    assert not class_balance(tags, 0.05, 2, 32).is_rare.any()
    assert class_balance([*tags, ["male"]], 0.05, 2, 32).is_rare.tolist() == [False] * 95 + [True] * 5 + [False]


@pytest.mark.parametrize("tags", [[[], []], [[]]])
def test_balance_without_any_tag_is_refused(tags):
    with pytest.raises(PsclapError, match="needs tags, and no clip has one; set class_balanced: false"):
        class_balance(tags, 0.05, 2, 32)


def test_sources_that_hold_less_than_a_batch_together_are_refused():
    with pytest.raises(PsclapError, match=r"7 examples, less than one batch of 8; lower train\.\*\.global_batch_size"):
        EpochPlan([3, 4], 8, 0, 0)
