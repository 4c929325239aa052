import itertools
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chisquare

from psclap.errors import PsclapError
from psclap.loop_config import SamplingConfig
from psclap.sampling import Balance, EpochPlan, Examples, caption_groups, class_balance

SEEDS = st.integers(0, 2**32 - 1)
EPOCHS = st.integers(0, 1000)
TAGS = ("raspy", "silky", "husky", "male", "female", "deep")
SOURCES = st.lists(st.integers(1, 80), min_size=2, max_size=4).filter(lambda sizes: sum(sizes) >= 40)
PLAIN = SamplingConfig(rare_block_size=8)
CONCATENATED = replace(PLAIN, mixing="concatenate")


def plan(examples, batch_size, seed=0, epoch=0, options=PLAIN):
    examples = examples if isinstance(examples, Examples) else Examples(examples)
    return EpochPlan(examples, batch_size, seed, epoch, options)


def order(plan: EpochPlan) -> list[int]:
    return [int(number) for step in range(len(plan)) for number in plan.examples(step)]


def balance(size: int, seed: int, min_rare: int = 2, block_size: int = 8) -> Balance:
    rng = np.random.default_rng(seed)
    is_rare = np.arange(size) == rng.integers(size)
    return Balance(rng.uniform(0.5, 1.5, size), is_rare, min_rare, block_size)


def full(sizes, seed=0, shards=7, groups=12, balanced=False):
    """Examples with every column, in shards of neighbours as an index has them."""
    size = sum(sizes)
    rng = np.random.default_rng(seed)
    return Examples(
        sizes,
        shard=np.concatenate([np.sort(rng.integers(0, shards, part)) for part in sizes]),
        num_samples=rng.integers(100, 1000, size),
        caption_group=rng.integers(0, groups, size),
        balance=balance(size, seed) if balanced else None,
    )


OPTIONS = {
    "plain": PLAIN,
    "concatenated": CONCATENATED,
    "first": replace(PLAIN, mixing_stop="first"),
    "blocks": replace(PLAIN, shuffle_block_shards=2),
    "buckets": replace(CONCATENATED, bucket_batches=3),
    "distinct": replace(CONCATENATED, distinct_captions=True),
}


@given(size=st.integers(64, 90), seed=SEEDS, epoch=EPOCHS, kind=st.sampled_from([*OPTIONS, "balanced"]))
def test_a_plan_is_a_pure_function_of_its_arguments(size, seed, epoch, kind):
    sizes = [size] if kind == "balanced" else [size, 60]
    options = OPTIONS.get(kind, PLAIN)
    one, other = (
        plan(full(sizes, seed, groups=40, balanced=kind == "balanced"), 8, seed, epoch, options) for _ in "12"
    )
    assert order(one) == order(other)
    assert {len(one.examples(step)) for step in range(len(one))} == {8}


@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    batch_size=st.integers(1, 40),
    seed=SEEDS,
    first_epoch=EPOCHS,
    kind=st.sampled_from(["concatenated", "blocks", "buckets"]),
)
def test_every_example_comes_exactly_once_an_epoch_and_none_is_lost_between_epochs(
    sizes, batch_size, seed, first_epoch, kind
):
    """The batches of all epochs, one after the other, are shuffled epochs, one after the other."""
    total = sum(sizes)
    examples, options = full(sizes, seed), replace(OPTIONS[kind], mixing="concatenate")
    if total < batch_size:
        with pytest.raises(PsclapError, match=rf"{total} examples, less than one batch of {batch_size}"):
            plan(examples, batch_size, seed, first_epoch, options)
        return
    epochs = [plan(examples, batch_size, seed, first_epoch + k, options) for k in range(4)]
    steps = [(first_epoch + k + 1) * total // batch_size - (first_epoch + k) * total // batch_size for k in range(4)]
    assert [len(one) for one in epochs] == steps
    for number, one in enumerate(epochs):
        epoch = first_epoch + number
        carried_in, carried_out = (e * total % batch_size for e in (epoch, epoch + 1))
        count = Counter(order(one))
        assert count.total() == carried_in + total - carried_out
        assert max(count.values()) <= 2
    if first_epoch * total % batch_size == 0 and (first_epoch + 4) * total % batch_size == 0:
        assert Counter(n for one in epochs for n in order(one)) == dict.fromkeys(range(total), 4)


@given(size=st.integers(1, 60), batch_size=st.integers(1, 30), seed=SEEDS)
def test_over_the_epochs_in_which_batches_divide_every_example_comes_equally_often(size, batch_size, seed):
    assume(size >= batch_size)
    drawn = Counter(n for epoch in range(batch_size) for n in order(plan([size], batch_size, seed, epoch)))
    assert drawn == dict.fromkeys(range(size), batch_size)


def test_what_one_epoch_leaves_over_comes_first_in_the_next():
    size, batch_size = 15, 8
    first, second = (order(plan([size], batch_size, 0, epoch)) for epoch in (0, 1))
    left_over = set(range(size)) - set(first)
    assert len(left_over) == 7
    assert set(second[:7]) == left_over


@given(seed=SEEDS, epoch=EPOCHS, kind=st.sampled_from([*OPTIONS, "balanced"]))
def test_epochs_and_seeds_differ_in_order(seed, epoch, kind):
    examples = full([100], 5, groups=60, balanced=kind == "balanced")
    options = OPTIONS.get(kind, PLAIN)
    orders = [
        order(plan(examples, 10, s, e, options)) for s, e in ((seed, epoch), (seed, epoch + 1), (seed + 1, epoch))
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


@given(sizes=SOURCES, batch_size=st.integers(1, 16), seed=SEEDS, epoch=EPOCHS)
def test_interleaving_ends_with_the_batch_in_which_the_last_source_is_exhausted(sizes, batch_size, seed, epoch):
    numbers = np.array(order(plan(sizes, batch_size, seed, epoch)))
    ends = np.cumsum(sizes)
    assert set(numbers) == set(range(ends[-1]))
    source_of = np.searchsorted(ends, numbers, side="right")
    finished = max(np.flatnonzero(source_of == k)[size - 1] for k, size in enumerate(sizes))
    assert len(numbers) == (finished // batch_size + 1) * batch_size
    for source, size in enumerate(sizes):
        of_source = numbers[source_of == source]
        passes = [of_source[start : start + size] for start in range(0, len(of_source), size)]
        assert all(len(set(one)) == len(one) for one in passes)  # every pass is a permutation, or its beginning
        assert len(passes[0]) == size


@given(sizes=SOURCES, batch_size=st.integers(1, 4), seed=SEEDS, epoch=EPOCHS)
def test_interleaving_to_the_first_exhausted_source_repeats_nothing(sizes, batch_size, seed, epoch):
    options = replace(PLAIN, mixing_stop="first")
    try:
        numbers = np.array(order(plan(sizes, batch_size, seed, epoch, options)))
    except PsclapError:
        assert min(sizes) < batch_size
        return
    assert len(set(numbers)) == len(numbers)
    counts = np.bincount(np.searchsorted(np.cumsum(sizes), numbers, side="right"), minlength=len(sizes))
    assert any(size - count < batch_size for size, count in zip(sizes, counts, strict=True))


@pytest.mark.parametrize("stop", ["all", "first"])
@pytest.mark.parametrize("probabilities", [None, (0.2, 0.3, 0.5), (0.6, 0.2, 0.2)])
def test_interleaved_sources_have_the_shares_of_their_probabilities_whatever_their_size(probabilities, stop):
    options = replace(PLAIN, mixing_probabilities=probabilities, mixing_stop=stop)
    numbers = order(plan([3000, 2500, 4000], 8, 0, 0, options))
    count = np.bincount(np.searchsorted(np.cumsum([3000, 2500, 4000]), numbers, side="right"), minlength=3)
    wanted = np.array(probabilities or (1 / 3, 1 / 3, 1 / 3)) * len(numbers)
    assert chisquare(count, wanted).pvalue > 1e-3


@given(sizes=st.lists(st.integers(20, 80), min_size=1, max_size=3), block=st.integers(1, 4), seed=SEEDS)
def test_blocks_of_shards_come_one_after_the_other_and_are_mixed_inside(sizes, block, seed):
    examples = full(sizes, seed)
    options = replace(CONCATENATED, shuffle_block_shards=block)
    shards = examples.shard[order(plan(examples, 1, seed, 0, options))]
    places = {shard: np.flatnonzero(shards == shard) for shard in set(shards)}
    for shard, of_shard in places.items():
        between = set(shards[of_shard[0] : of_shard[-1] + 1])
        assert len(between) <= block, shard
    if block == 1:
        assert (np.diff(shards) != 0).sum() == len(places) - 1


def test_interleaved_sources_go_through_the_shards_together():
    """Two views of the same clips: what a cache must hold is one block of each, not two different ones."""
    shard = np.repeat(np.arange(10), 50)
    examples = Examples([500, 500], shard=np.concatenate([shard, shard]))
    numbers = np.array(order(plan(examples, 10, 1, 0, replace(PLAIN, shuffle_block_shards=1, mixing_stop="first"))))
    orders = [list(dict.fromkeys(examples.shard[numbers[(numbers >= 500) == second]])) for second in (False, True)]
    shortest = min(map(len, orders))
    assert shortest >= 9
    assert orders[0][:shortest] == orders[1][:shortest]


@given(size=st.integers(60, 200), batch_size=st.integers(2, 10), window=st.integers(2, 6), seed=SEEDS)
def test_buckets_hold_like_lengths(size, batch_size, window, seed):
    examples = full([size], seed)
    bucketed = plan(examples, batch_size, seed, 0, replace(PLAIN, bucket_batches=window))
    plain = plan(examples, batch_size, seed, 0)
    assert sorted(order(bucketed)) == sorted(order(plain))
    for start in range(0, len(plain), window):
        steps = range(start, min(start + window, len(plain)))
        lengths = [examples.num_samples[bucketed.examples(step)] for step in steps]
        before = sorted(n for step in steps for n in examples.num_samples[plain.examples(step)])
        assert sorted(n for batch in lengths for n in batch) == before
        by_length = sorted(lengths, key=lambda batch: (batch.min(), batch.max()))
        assert all(one.max() <= other.min() for one, other in itertools.pairwise(by_length))


@given(size=st.integers(20, 200), batch_size=st.integers(2, 16), groups=st.integers(1, 60), seed=SEEDS, epoch=EPOCHS)
def test_no_two_examples_of_a_caption_meet_or_the_plan_is_refused(size, batch_size, groups, seed, epoch):
    assume(size >= batch_size)
    examples = full([size], seed, groups=groups)
    options = replace(PLAIN, distinct_captions=True)
    plain = plan(examples, batch_size, seed, epoch)
    largest = max(Counter(examples.caption_group[order(plain)].tolist()).values())
    if largest > len(plain):
        with pytest.raises(PsclapError, match=rf"{largest} examples share a caption, and an epoch has {len(plain)}"):
            plan(examples, batch_size, seed, epoch, options)
        return
    distinct = plan(examples, batch_size, seed, epoch, options)
    assert sorted(order(distinct)) == sorted(order(plain))
    for step in range(len(distinct)):
        of_batch = examples.caption_group[distinct.examples(step)]
        assert len(set(of_batch)) == len(of_batch)


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3), min_size=1, max_size=30))
def test_caption_groups_join_what_shares_a_caption_also_by_way_of_others(captions):
    joined = {number: {number} for number in range(len(captions))}
    for one in range(len(captions)):
        for other in range(one):
            if set(captions[one]) & set(captions[other]):
                merged = joined[one] | joined[other]
                for member in merged:
                    joined[member] = merged
    groups = defaultdict(set)
    for number, group in enumerate(caption_groups(pa.array(captions))):
        groups[group].add(number)
    assert {frozenset(members) for members in groups.values()} == {frozenset(members) for members in joined.values()}


def test_balanced_draws_follow_the_weights():
    weights = np.array([1.0, 2.0, 3.0, 4.0, 10.0] * 10)
    examples = Examples([50], balance=Balance(weights, np.zeros(50, bool), 2, 32))
    drawn = [number for epoch in range(600) for number in order(plan(examples, 10, 0, epoch))]
    assert len(drawn) == 600 * 50
    assert chisquare(np.bincount(drawn, minlength=50), weights / weights.sum() * len(drawn)).pvalue > 1e-3


def test_balanced_draws_by_blocks_of_shards_follow_the_weights_too():
    weights = np.array([1.0, 2.0, 3.0, 4.0, 10.0] * 10)
    shard = np.repeat(np.arange(5), 10)
    examples = Examples([50], shard=shard, balance=Balance(weights, np.zeros(50, bool), 2, 32))
    options = replace(PLAIN, shuffle_block_shards=1)
    orders = [order(plan(examples, 10, 0, epoch, options)) for epoch in range(600)]
    assert all((np.diff(shard[numbers]) != 0).sum() <= 4 for numbers in orders)
    count = np.bincount([number for numbers in orders for number in numbers], minlength=50)
    assert chisquare(count, weights / weights.sum() * 600 * 50).pvalue > 1e-3


def test_rare_examples_put_into_a_block_are_drawn_by_their_weights():
    weights, is_rare = np.r_[np.full(90, 1e6), [1.0] * 9, 3.0], np.arange(100) >= 90
    examples = Examples([100], balance=Balance(weights, is_rare, 2, 10))
    plans = (plan(examples, 10, 0, epoch) for epoch in range(150))
    count = np.bincount([number for one in plans for number in order(one)], minlength=100)
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
    drawn, plain = (np.array(order(plan(Examples([size], balance=b), batch_size, seed))) for b in (with_rare, without))
    assert len(drawn) == len(plain) == size // batch_size * batch_size
    for start in range(0, len(drawn), block_size):
        block, before = drawn[start : start + block_size], plain[start : start + block_size]
        rare, rare_before = (with_rare.is_rare[numbers].sum() for numbers in (block, before))
        assert rare == max(rare_before, min(min_rare, len(block)))
        assert (block != before).sum() == rare - rare_before
        replaced = np.flatnonzero(block != before)
        common_before = np.flatnonzero(~with_rare.is_rare[before])
        assert replaced.tolist() == common_before[len(common_before) - len(replaced) :].tolist()


FORMULAS = {"inverse": lambda n: 1 / n, "sqrt": lambda n: n**-0.5, "log": lambda n: 1 / np.log(1 + n)}


def slow_balance(tags_of_example, weighting, rare_below_share):
    frequency = Counter(tag for tags in tags_of_example for tag in tags)
    rare_tags = {tag for tag, count in frequency.items() if count < rare_below_share * len(tags_of_example)}
    weight = {tag: FORMULAS[weighting](count) for tag, count in frequency.items()}
    weights = [sum(weight[tag] for tag in tags) / len(tags) if tags else None for tags in tags_of_example]
    smallest = min(weight for weight in weights if weight is not None)
    weights = [smallest if weight is None else weight for weight in weights]
    return weights, [bool(rare_tags.intersection(tags)) for tags in tags_of_example]


def arrow(tags, kind="plain"):
    array = pa.array(tags, pa.list_(pa.string()))
    if kind == "words":
        return array.cast(pa.list_(pa.dictionary(pa.int32(), pa.string())))
    return pa.chunked_array([array.slice(0, 1), array.slice(1)]) if kind == "chunked" else array


@given(
    tags=st.lists(st.lists(st.sampled_from(TAGS), unique=True), min_size=2, max_size=60).filter(any),
    share=st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]),
    weighting=st.sampled_from(sorted(FORMULAS)),
    kind=st.sampled_from(["plain", "words", "chunked"]),
)
def test_class_balance_equals_the_formula_sample_by_sample(tags, share, weighting, kind):
    weights, is_rare = slow_balance(tags, weighting, share)
    result = class_balance(arrow(tags, kind), weighting, share, min_rare=3, block_size=16)
    np.testing.assert_allclose(result.weights, weights)
    assert result.is_rare.tolist() == is_rare
    assert (result.min_rare, result.block_size) == (3, 16)


def test_a_tag_is_rare_below_the_share_and_not_at_it():
    tags = [["male"]] * 95 + [["raspy"]] * 5
    assert not class_balance(arrow(tags), "inverse", 0.05, 2, 32).is_rare.any()
    is_rare = class_balance(arrow([*tags, ["male"]]), "inverse", 0.05, 2, 32).is_rare
    assert is_rare.tolist() == [False] * 95 + [True] * 5 + [False]


@pytest.mark.parametrize("tags", [[[], []], [[]]])
def test_balance_without_any_tag_is_refused(tags):
    with pytest.raises(PsclapError, match="needs tags, and no clip has one; set class_balance: none"):
        class_balance(arrow(tags), "inverse", 0.05, 2, 32)


def test_more_sources_than_a_byte_counts_are_interleaved():
    numbers = np.array(order(plan([10] * 300, 8, options=PLAIN)))
    assert set(numbers) == set(range(3000))


@pytest.mark.parametrize("probabilities", [(99.0, 1.0), (1e-6, 1e-6), (0.0001, 0.0003)])
def test_probabilities_are_shares_of_their_sum(probabilities):
    options = replace(PLAIN, mixing_probabilities=probabilities, mixing_stop="first")
    numbers = np.array(order(plan([4000, 4000], 8, options=options)))
    wanted = np.array(probabilities) / sum(probabilities) * len(numbers)
    assert chisquare(np.bincount(numbers // 4000, minlength=2), wanted).pvalue > 1e-3


def test_stopping_before_one_batch_is_full_is_refused():
    with pytest.raises(PsclapError, match=r"mixing_stop first ends the epoch after .* before one batch of 64 is full"):
        plan([1, 400], 64, options=replace(PLAIN, mixing_stop="first"))


def test_sources_that_hold_less_than_a_batch_together_are_refused():
    with pytest.raises(PsclapError, match=r"7 examples, less than one batch of 8; lower train\.\*\.global_batch_size"):
        plan([3, 4], 8)


@given(
    size=st.integers(24, 300),
    largest=st.integers(1, 6),
    multiple=st.integers(1, 4),
    budget=st.integers(500, 9000),
    seed=SEEDS,
    epoch=st.integers(0, 5),
)
def test_batches_are_within_the_budget(size, largest, multiple, budget, seed, epoch):
    examples = replace(full([size], seed), max_batch_samples=budget)
    options = replace(PLAIN, max_batch_s=1.0, batch_multiple=multiple)
    batches = plan(examples, largest * multiple, seed, epoch, options)
    first = 0
    for step in range(len(batches)):
        numbers = batches.examples(step)
        assert len(numbers) % multiple == 0 < len(numbers) <= largest * multiple
        padded = len(numbers) * examples.num_samples[numbers].max()
        assert padded <= budget or len(numbers) == multiple
        assert batches.first_place(step) == first
        first += len(numbers)
    # All of the shuffled stream's next examples, cut where a multiple ends: none is lost, none comes twice.
    assert sorted(order(batches)) == sorted(order(plan(examples_without_budget(examples), multiple, seed, epoch)))


def examples_without_budget(examples: Examples) -> Examples:
    return replace(examples, max_batch_samples=None)


def test_a_budget_saves_padding_and_fills_batches():
    examples = replace(full([2000], 3), max_batch_samples=16 * 600)
    batches = plan(examples, 64, options=replace(PLAIN, max_batch_s=1.0, batch_multiple=2))
    lengths = [examples.num_samples[batches.examples(step)] for step in range(len(batches))]
    padded, real = sum(len(of) * of.max() for of in lengths), sum(of.sum() for of in lengths)
    assert real / padded > 0.9
    assert np.median([len(of) * of.max() for of in lengths]) > 0.8 * 16 * 600
    assert len({len(of) for of in lengths}) > 3
