"""The epoch plan: which clips make up each global batch, as a pure function of its arguments.

The plan knows nothing of ranks: a rank takes its slice of every global batch. An example is a number that
stands for one (clip, caption set) pair; examples are numbered through the sources one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psclap.errors import PsclapError


@dataclass(frozen=True)
class Balance:
    """Class-balanced drawing: a weight per example, and at least `min_rare` rare examples in each block."""

    weights: np.ndarray  # (num_examples,) positive
    is_rare: np.ndarray  # (num_examples,) bool
    min_rare: int
    block_size: int


class EpochPlan:
    """The global batches of one epoch: `len(plan)` steps, each of `batch_size` examples."""

    def __init__(
        self,
        source_sizes: Sequence[int],
        batch_size: int,
        seed: int,
        epoch: int,
        balance: Balance | None = None,
    ):
        """Without `balance`: one source is shuffled, every example once; several are interleaved, see
        `_interleave`. With it: as many draws as there are examples, with replacement, by weight. The last
        examples that do not fill a batch are left to the next epoch's shuffle.

        Raises PsclapError where the sources hold less than one batch.
        """
        total = sum(source_sizes)
        if total < batch_size:
            raise PsclapError(
                f"the training data has {total} examples, less than one batch of {batch_size}; "
                "lower train.*.global_batch_size"
            )
        rng = np.random.default_rng([seed, epoch])
        if balance is not None:
            order = _balanced(total // batch_size * batch_size, balance, rng)
        elif len(source_sizes) == 1:
            order = rng.permutation(total)
        else:
            order = _interleave(source_sizes, rng)
        self._batches = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)

    def __len__(self) -> int:
        return len(self._batches)

    def examples(self, step: int) -> np.ndarray:
        """(batch_size,) example numbers of one global batch."""
        return self._batches[step]


def _interleave(sizes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Sources drawn from uniformly until each has been exhausted once; an exhausted one starts over.

    The paper's combined training ("interleaved uniformly until both are exhausted").
    """
    sources = np.empty(0, np.int64)
    while any((sources == k).sum() < size for k, size in enumerate(sizes)):
        sources = np.concatenate([sources, rng.integers(len(sizes), size=2 * len(sizes) * max(sizes))])
    # The draws at which source k has given size_k examples: the last source to get there ends the epoch.
    ends = [np.flatnonzero(sources == k)[size - 1] for k, size in enumerate(sizes)]
    sources = sources[: max(ends) + 1]
    order = np.empty(len(sources), np.int64)
    offset = 0
    for k, size in enumerate(sizes):
        places = np.flatnonzero(sources == k)
        rounds = -(-len(places) // size)
        order[places] = offset + np.concatenate([rng.permutation(size) for _ in range(rounds)])[: len(places)]
        offset += size
    return order


def _balanced(num_draws: int, balance: Balance, rng: np.random.Generator) -> np.ndarray:
    """Weighted draws with replacement; a block short of rare examples has its last common ones replaced."""
    cumulative = np.cumsum(balance.weights)
    order = np.searchsorted(cumulative, rng.random(num_draws) * cumulative[-1], side="right")
    rare = np.flatnonzero(balance.is_rare)
    if not len(rare) or not balance.min_rare:
        return order
    rare_cumulative = np.cumsum(balance.weights[rare])
    for start in range(0, num_draws, balance.block_size):
        block = order[start : start + balance.block_size]
        common = np.flatnonzero(~balance.is_rare[block])
        missing = min(balance.min_rare - (len(block) - len(common)), len(common))
        if missing > 0:
            draws = rng.random(missing) * rare_cumulative[-1]
            block[common[-missing:]] = rare[np.searchsorted(rare_cumulative, draws, side="right")]
    return order


def class_balance(
    tags_of_example: Sequence[Sequence[str]], rare_below_share: float, min_rare: int, block_size: int
) -> Balance:
    """Balance by tags: an example's weight is the mean over its tags of 1 / frequency(tag).

    A tag is rare when less than `rare_below_share` of the examples carry it; an example is rare when one of
    its tags is. Source: ParaSpeechCLAP, class-balanced sampling. Raises PsclapError where no example has
    a tag; an example without tags gets the smallest weight.
    """
    counts = np.array([len(tags) for tags in tags_of_example])
    flat = np.array([tag for tags in tags_of_example for tag in tags], dtype=str)
    if not len(flat):
        raise PsclapError("class-balanced sampling needs tags, and no clip has one; set class_balanced: false")
    _, tag_ids, frequency = np.unique(flat, return_inverse=True, return_counts=True)
    example_ids = np.repeat(np.arange(len(counts)), counts)
    inverse = np.bincount(example_ids, 1.0 / frequency[tag_ids], len(counts))
    weights = np.divide(inverse, counts, out=np.zeros(len(counts)), where=counts > 0)
    weights[counts == 0] = weights[counts > 0].min()
    is_rare_tag = frequency < rare_below_share * len(counts)
    is_rare = np.bincount(example_ids, is_rare_tag[tag_ids], len(counts)) > 0
    return Balance(weights, is_rare, min_rare, block_size)
