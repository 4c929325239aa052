"""The epoch plan: which clips make up each global batch, as a pure function of its arguments.

The plan knows nothing of ranks: a rank takes its slice of every global batch. An example is a number that
stands for one (clip, caption set) pair; examples are numbered through the sources one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from psclap.errors import PsclapError
from psclap.loop_config import SamplingConfig

_DRAWS_AT_ONCE = 1 << 20
_BUDGET_WINDOW = 8  # batches that are sorted by length together where bucket_batches does not say


@dataclass(frozen=True)
class Balance:
    """Class-balanced drawing: a weight per example, and at least `min_rare` rare examples in each block."""

    weights: np.ndarray  # (num_examples,) positive
    is_rare: np.ndarray  # (num_examples,) bool
    min_rare: int
    block_size: int


@dataclass(frozen=True)
class Examples:
    """What a plan may ask of the examples; a column that the options do not use is None. All are (num_examples,)."""

    source_sizes: Sequence[int]
    shard: np.ndarray | None = None  # number of the shard that holds the clip
    num_samples: np.ndarray | None = None  # of the crop
    caption_group: np.ndarray | None = None  # equal where two examples may give the same caption
    balance: Balance | None = None
    max_batch_samples: int | None = None  # of a batch with its padding

    def __len__(self) -> int:
        return sum(self.source_sizes)

    @cached_property
    def num_shards(self) -> int:
        return 0 if self.shard is None or not len(self.shard) else int(self.shard.max()) + 1


class EpochPlan:
    """The global batches of one epoch: `len(plan)` steps, each of `batch_size` examples.

    - Concatenated sources (or one): every example exactly once an epoch. What does not fill a last batch begins
      the next epoch, so that no example is lost and none repeated.
    - Interleaved sources: drawn from by probability, each in shuffled order, until the first or each of them is
      exhausted; see `_interleaved`.
    - Balanced: as many draws as there are examples, with replacement, by weight.

    With a budget of samples (`Examples.max_batch_samples`) batches have fewer examples where those are long.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, epoch: int, options: SamplingConfig):
        """Raises PsclapError for less data than one batch, and for captions that cannot be kept apart."""
        if len(examples) < batch_size:
            raise PsclapError(
                f"the training data has {len(examples)} examples, less than one batch of {batch_size}; "
                "lower train.*.global_batch_size"
            )
        rng = np.random.default_rng([seed, epoch])
        largest, budget = batch_size, examples.max_batch_samples
        if budget is not None:
            batch_size = options.batch_multiple
        if examples.balance is not None:
            order = _balanced(examples, batch_size, rng, options)
        elif options.mixing == "interleave" and len(examples.source_sizes) > 1:
            order = _interleaved(examples, batch_size, rng, options)
        else:
            order = _concatenated(examples, batch_size, seed, epoch, options)
        if options.distinct_captions:
            order = _spread(order, examples.caption_group, batch_size, rng)
        self._bounds = np.arange(0, len(order) + 1, batch_size)
        if budget is not None:
            order, self._bounds = _budgeted(order, examples.num_samples, budget, largest, options, rng)
        elif options.bucket_batches:
            order = _bucketed(order, examples.num_samples, batch_size, options.bucket_batches, rng)
        self._order = order

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def examples(self, step: int) -> np.ndarray:
        """(batch_size,) example numbers of one global batch; fewer where a budget ends it before."""
        return self._order[self._bounds[step] : self._bounds[step + 1]]

    def first_place(self, step: int) -> int:
        """How many examples of the epoch come before this batch."""
        return int(self._bounds[step])


class _Blocks:
    """Shards in random blocks of `size`, one block after the other; all in one where `size` is None.

    The clips of one block at a time are mixed, and each shard is gone through once: reads from remote storage
    stay sequential. All sources go through the blocks in the same order.
    """

    def __init__(self, examples: Examples, size: int | None, rng: np.random.Generator):
        self._shard = examples.shard
        self._block_of_shard = None if size is None else rng.permutation(examples.num_shards) // size

    def sorted(self, order: np.ndarray) -> np.ndarray:
        """`order`, block after block; the order inside a block stays."""
        if self._block_of_shard is None:
            return order
        assert self._shard is not None
        return order[np.argsort(self._block_of_shard[self._shard[order]], kind="stable")]


def _concatenated(examples: Examples, batch_size: int, seed: int, epoch: int, options: SamplingConfig) -> np.ndarray:
    """This epoch's part of the endless stream of shuffled epochs, cut where batches end.

    Batch k takes places [k B, (k + 1) B) of the stream, and belongs to the epoch in which it ends.
    """
    size = len(examples)

    def whole(number: int) -> np.ndarray:
        rng = np.random.default_rng([seed, number, 0])
        return _Blocks(examples, options.shuffle_block_shards, rng).sorted(rng.permutation(size))

    carried = epoch * size % batch_size
    order = whole(epoch)
    if carried:
        order = np.concatenate([whole(epoch - 1)[-carried:], order])
    return order[: len(order) // batch_size * batch_size]


def _interleaved(examples: Examples, batch_size: int, rng: np.random.Generator, options: SamplingConfig) -> np.ndarray:
    """Sources drawn from by probability; an exhausted one starts over, newly shuffled.

    "all": until each has been exhausted once and the batch is full (with equal probabilities the paper's combined
    training, "interleaved uniformly until both are exhausted"). "first": no example is repeated; the last draws
    that do not fill a batch are left out.
    """
    sizes = np.asarray(examples.source_sizes)
    chosen = _draw_sources(sizes, batch_size, options, rng)
    ends = _ends(chosen, sizes)
    if options.mixing_stop == "first":
        end = min(ends) // batch_size * batch_size
    else:
        end = -(-max(ends) // batch_size) * batch_size
    if not end:
        raise PsclapError(
            f"mixing_stop first ends the epoch after {min(ends)} examples, before one batch of {batch_size} is full; "
            "lower train.*.global_batch_size, raise the probability of the other sources, or stop at all"
        )
    chosen = chosen[:end]
    blocks = _Blocks(examples, options.shuffle_block_shards, rng)
    order = np.empty(end, np.int64)
    first = 0
    for k, size in enumerate(sizes):
        places = np.flatnonzero(chosen == k)
        rounds = max(1, -(-len(places) // size))
        stream = [blocks.sorted(first + rng.permutation(size)) for _ in range(rounds)]
        order[places] = np.concatenate(stream)[: len(places)]
        first += size
    return order


def _ends(chosen: np.ndarray, sizes: np.ndarray) -> list[int]:
    """After how many draws each source is exhausted, of those that are."""
    places = [np.flatnonzero(chosen == k) for k in range(len(sizes))]
    return [
        int(of_source[size - 1]) + 1 for of_source, size in zip(places, sizes, strict=True) if len(of_source) >= size
    ]


def _draw_sources(sizes: np.ndarray, batch_size: int, options: SamplingConfig, rng: np.random.Generator) -> np.ndarray:
    """Source numbers, until the first or each source is exhausted, and for one batch more."""
    weights = np.asarray(options.mixing_probabilities or np.ones(len(sizes)))
    cumulative = np.cumsum(weights / weights.sum())
    chosen = np.empty(0, np.int16)
    at_once = min(_DRAWS_AT_ONCE, 2 * int(sizes.sum()))
    left, ended = sizes.copy(), False
    while not ended:
        ended = bool((left <= 0).any() if options.mixing_stop == "first" else (left <= 0).all())
        draws = rng.random(batch_size if ended else at_once) * cumulative[-1]
        more = np.searchsorted(cumulative, draws, side="right").astype(np.int16)
        left = left - np.bincount(more, minlength=len(sizes))
        chosen = np.concatenate([chosen, more])
    return chosen


def _balanced(examples: Examples, batch_size: int, rng: np.random.Generator, options: SamplingConfig) -> np.ndarray:
    """Weighted draws with replacement; a block short of rare examples has its last common ones replaced."""
    assert examples.balance is not None
    balance = examples.balance
    draws = _draw(balance.weights, len(examples) // batch_size * batch_size, rng)
    order = _Blocks(examples, options.shuffle_block_shards, rng).sorted(draws)
    rare = np.flatnonzero(balance.is_rare)
    if len(rare) and balance.min_rare:
        for blocks in _parts(order, balance.block_size):
            _guarantee_rare(blocks, balance, rare, rng)
    return order


def _draw(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) places drawn with replacement, each as often as its weight says.

    Uniform draws are made in ascending order (normalised sums of exponential gaps), so that the search for them goes
    through memory once, and shuffled afterwards: five times as fast as searching for them in random order.
    """
    cumulative = np.cumsum(weights)
    points = np.cumsum(rng.standard_exponential(count + 1))
    drawn = np.searchsorted(cumulative, points[:-1] * (cumulative[-1] / points[-1]), side="right")
    np.minimum(drawn, len(weights) - 1, out=drawn)  # where rounding took a point to the very end
    rng.shuffle(drawn)
    return drawn


def _parts(order: np.ndarray, block_size: int) -> list[np.ndarray]:
    """Views of `order`: (parts, block_size), and what is left over as (1, rest)."""
    whole = len(order) // block_size * block_size
    parts = [order[:whole].reshape(-1, block_size), order[whole:].reshape(1, -1)]
    return [part for part in parts if part.size]


def _guarantee_rare(blocks: np.ndarray, balance: Balance, rare: np.ndarray, rng: np.random.Generator) -> None:
    """Replaces, in place, the last common examples of each row that has fewer than `min_rare` rare ones."""
    missing = balance.min_rare - balance.is_rare[blocks].sum(1)
    lacking = np.flatnonzero(missing > 0)
    block = blocks[lacking]
    is_common = ~balance.is_rare[block]
    number_from_the_end = is_common[:, ::-1].cumsum(1)[:, ::-1]
    replaced = is_common & (number_from_the_end <= missing[lacking, None])
    block[replaced] = rare[_draw(balance.weights[rare], int(replaced.sum()), rng)]
    blocks[lacking] = block


def _spread(order: np.ndarray, group: np.ndarray | None, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """The same examples with no two of one group in a batch.

    Sorted by group and dealt out to the M batches in turn, a group of at most M examples meets each batch at most
    once. Groups, the examples in a group, and the batches are in random order.
    """
    assert group is not None
    steps = len(order) // batch_size
    group_of_place = group[order]
    _, group_of_place, count = np.unique(group_of_place, return_inverse=True, return_counts=True)
    if count.max() > steps:
        raise PsclapError(
            f"distinct_captions: {count.max()} examples share a caption, and an epoch has {steps} batches of "
            f"{batch_size}: two of them must meet; lower train.*.global_batch_size or set distinct_captions: false"
        )
    in_group_order = np.argsort(rng.permutation(len(count))[group_of_place], kind="stable")
    batches = order[in_group_order].reshape(batch_size, steps).T
    return rng.permuted(batches[rng.permutation(steps)], axis=1).ravel()


def _bucketed(
    order: np.ndarray, num_samples: np.ndarray | None, batch_size: int, window: int, rng: np.random.Generator
) -> np.ndarray:
    """Batches of like lengths: `window` batches at a time are sorted by length, and come in random order."""
    assert num_samples is not None
    order = order.copy()
    for start in range(0, len(order), window * batch_size):
        part = order[start : start + window * batch_size]
        by_length = part[np.argsort(num_samples[part], kind="stable")].reshape(-1, batch_size)
        order[start : start + len(part)] = rng.permuted(rng.permutation(by_length), axis=1).ravel()
    return order


def _budgeted(
    order: np.ndarray,
    num_samples: np.ndarray | None,
    budget: int,
    largest: int,
    options: SamplingConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Batches of at most `largest` examples whose padded samples are within the budget, and where each begins.

    Each has a multiple of `batch_multiple` examples, the smallest also where that exceeds the budget. As in
    `_bucketed`, examples are sorted by length within a window.
    """
    assert num_samples is not None
    batches = []
    for start in range(0, len(order), window := (options.bucket_batches or _BUDGET_WINDOW) * largest):
        part = order[start : start + window]
        part = part[np.argsort(-num_samples[part], kind="stable")]
        cut = [*_cut(num_samples[part], budget, largest, options.batch_multiple)]
        batches += [part[cut[number] : cut[number + 1]] for number in rng.permutation(len(cut) - 1)]
    return np.concatenate(batches), np.cumsum([0, *map(len, batches)])


def _cut(falling: np.ndarray, budget: int, largest: int, multiple: int) -> Iterator[int]:
    """Where batches of lengths that fall begin, and the end of the last."""
    start = 0
    while start < len(falling):
        yield start
        fitting = min(int(budget // falling[start]), largest) // multiple * multiple
        start += max(fitting, multiple)
    yield len(falling)


Weighting = Literal["inverse", "sqrt", "log"]


def class_balance(
    tags: pa.ListArray | pa.ChunkedArray,
    weighting: Weighting,
    rare_below_share: float,
    min_rare: int,
    block_size: int,
) -> Balance:
    """Balance by the tags of each example: its weight is the mean over its tags of the tag's weight.

    With n the number of examples that carry a tag, the tag's weight is 1 / n (`inverse`, the paper's), 1 / sqrt(n)
    (`sqrt`) or 1 / log(1 + n) (`log`). A tag is rare when less than `rare_below_share` of the examples carry it; an
    example is rare when one of its tags is. Source: ParaSpeechCLAP, class-balanced sampling. Raises PsclapError
    where no example has a tag; an example without tags gets the smallest weight.
    """
    has_tag_NV = _incidence(tags)
    if not has_tag_NV.nnz:
        raise PsclapError("class-balanced sampling needs tags, and no clip has one; set class_balance: none")
    num_tags = np.diff(has_tag_NV.indptr)
    frequency = np.maximum(np.bincount(has_tag_NV.indices, minlength=has_tag_NV.shape[1]), 1)  # unused words: 1
    weight_of_tag = {"inverse": 1 / frequency, "sqrt": frequency**-0.5, "log": 1 / np.log1p(frequency)}[weighting]
    weights = has_tag_NV @ weight_of_tag / np.maximum(num_tags, 1)
    weights[num_tags == 0] = weights[num_tags > 0].min()
    is_rare_tag = (frequency < rare_below_share * len(num_tags)).astype(float)
    return Balance(weights, has_tag_NV @ is_rare_tag > 0, min_rare, block_size)


def _incidence(tags: pa.ListArray | pa.ChunkedArray) -> Any:
    """The sparse matrix (N examples, V tags) that has a one where the example carries the tag."""
    from scipy.sparse import csr_array

    array = tags.combine_chunks() if isinstance(tags, pa.ChunkedArray) else tags
    values = array.flatten()
    words = values if isinstance(values, pa.DictionaryArray) else values.dictionary_encode()
    offsets = array.offsets.to_numpy()
    shape = (len(array), len(words.dictionary))
    return csr_array((np.ones(len(words)), words.indices.to_numpy(), offsets - offsets[0]), shape=shape)


def caption_groups(captions: pa.ListArray | pa.LargeListArray) -> np.ndarray:
    """(num_examples,) numbers, equal for examples that share a caption, also by way of others.

    `captions` holds the texts that each example may be given.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    counts = np.diff(captions.offsets.to_numpy())
    texts = captions.flatten().dictionary_encode()
    num_texts = len(texts.dictionary)
    example = np.repeat(np.arange(len(counts)), counts)
    shape = (num_texts + len(counts),) * 2
    edges = coo_array((np.ones(len(example), np.int8), (texts.indices.to_numpy(), num_texts + example)), shape)
    return connected_components(edges, directed=False)[1][num_texts:]
