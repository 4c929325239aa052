"""How retrieval falls as attributes are added: does a model join "male", "slow" and "loud", or only know each alone?

The protocol, for each number k of attributes:

1. A clip has the attributes of which its tags hold exactly one candidate. An attribute's candidates are the tags of it
   that occur. Of attributes that share a tag (volume and situational have "loud") the first counts.
2. Five sets of k attributes are drawn by a seed, of those with at most 1,000 combinations of tags; for k = 1 each
   attribute is a set. The clips of a set are those that have all its attributes; the seed draws 2,000 of more.
3. The texts of a set are all combinations of its attributes' tags, put as one prompt: "A person is speaking in a male,
   slow, loud style."
4. Speech to text: the query is a clip, the candidates are all combinations; its own is right; chance is one in their
   number. Text to speech: the query is a combination that occurs, the candidates are the clips of the set, and all that
   have the combination are right. R@1 is over the queries of all sets of k attributes together.

Each attribute makes the task harder, for a model that joins perfectly too. `independent_R@1` is what R@1 of speech to
text would be if every attribute were told as well as alone (k = 1), and independently of the others: what lies below
it is lost in the joining.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from psclap.evaluation.retrieval import Direction, RetrievalSet
from psclap.pairs import Pairs
from psclap.tags import ATTRIBUTES, default_prompt, tag_of

MAX_ATTRIBUTE_SETS = 5
MAX_COMBINATIONS = 1000
MAX_CLIPS = 2000
_NONE = -1


@dataclass(frozen=True, eq=False)
class CompositionSet(RetrievalSet):
    """Clips and all combinations of the tags of one set of attributes; its captions are the combinations' prompts."""

    attributes: tuple[str, ...]
    combinations: Sequence[str]  # M: the tags of each, such as "male, slow"

    @cached_property
    def asked(self) -> np.ndarray:
        """The numbers of the combinations that a clip has, ascending: the queries of text to speech."""
        return np.flatnonzero(self.right.transposed.counts)

    def by_direction(self) -> dict[Direction, Pairs]:
        """What is right for a clip, and for a combination of `asked`."""
        clips = self.right.transposed
        return {
            "audio_to_text": self.right,
            "text_to_audio": Pairs(np.unique(clips.offsets), clips.numbers, clips.num_candidates),
        }


def composition_sets(
    rows: np.ndarray, tags: Sequence[Collection[str]], attributes: Sequence[str], seed: int = 0
) -> dict[int, list[CompositionSet]]:
    """The sets of each number of attributes, from (N,) rows of the index and the tags of each.

    A number of attributes that no two clips differ in is left out.
    """
    rng = np.random.default_rng(seed)
    labels = _labels(tags, attributes)
    sets = {}
    for k in range(1, len(labels) + 1):
        chosen = [names for names in itertools.combinations(labels, k) if _size(labels, names) <= MAX_COMBINATIONS]
        in_order = range(len(chosen)) if k == 1 else rng.permutation(len(chosen))
        found = filter(None, (_set_of(rows, {name: labels[name] for name in chosen[n]}, rng) for n in in_order))
        if of_k := [*itertools.islice(found, None if k == 1 else MAX_ATTRIBUTE_SETS)]:
            sets[k] = of_k
    return sets


@dataclass(frozen=True)
class _Labels:
    """An attribute's tags that occur, and the number of each clip's, _NONE where it has not exactly one."""

    tags: tuple[str, ...]
    numbers: np.ndarray  # (N,)


def _labels(tags: Sequence[Collection[str]], attributes: Sequence[str]) -> dict[str, _Labels]:
    """The labels of the attributes that share no tag with one before them, and of which two tags occur."""
    labels: dict[str, _Labels] = {}
    for name in attributes:
        candidates = {*ATTRIBUTES[name]}
        if any(candidates.intersection(of_other.tags) for of_other in labels.values()):
            continue
        carried = [tag_of(name, of_clip) for of_clip in tags]
        occurring = tuple(tag for tag in ATTRIBUTES[name] if tag in carried)
        number_N = np.array([_NONE if own is None else occurring.index(own) for own in carried], np.int64)
        if len(occurring) > 1:
            labels[name] = _Labels(occurring, number_N)
    return labels


def _size(labels: dict[str, _Labels], names: Sequence[str]) -> int:
    return math.prod(len(labels[name].tags) for name in names)


def _set_of(rows: np.ndarray, labels: dict[str, _Labels], rng: np.random.Generator) -> CompositionSet | None:
    """The set of some attributes; None where the clips that have them all are of one combination, or none."""
    clips = np.flatnonzero(np.all([of_one.numbers != _NONE for of_one in labels.values()], axis=0))
    if len(clips) > MAX_CLIPS:
        clips = np.sort(rng.choice(clips, MAX_CLIPS, replace=False))
    combinations = [", ".join(tags) for tags in itertools.product(*(of_one.tags for of_one in labels.values()))]
    number_N = np.zeros(len(clips), np.int64)  # of the product, whose last attribute runs fastest
    for of_one in labels.values():
        number_N = number_N * len(of_one.tags) + of_one.numbers[clips]
    if len(np.unique(number_N)) < 2:
        return None
    right = Pairs.of(np.arange(len(clips)), number_N, len(clips), len(combinations))
    return CompositionSet(rows[clips], [*map(default_prompt, combinations)], right, tuple(labels), combinations)
