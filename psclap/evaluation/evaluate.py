"""One model on every test set: retrieval and classification, from one pass over the clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from tqdm import tqdm

from psclap.config import EvaluateConfig
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.classification import ClassificationSet, classify
from psclap.evaluation.clips import Clips, Unit
from psclap.evaluation.composition import CompositionSet, composition_sets
from psclap.evaluation.outcomes import Ranked
from psclap.evaluation.results import Evaluation, Outcomes
from psclap.evaluation.retrieval import DIRECTIONS, Direction, RetrievalSet
from psclap.ranking import ranks_both_ways, ranks_of
from psclap.shards.index import ShardIndex


@dataclass(frozen=True, eq=False)
class Embedded:
    """What one model makes of the clips, captions and prompts of the test sets: L2-normalised embeddings."""

    speech: np.ndarray  # (len(rows), D)
    texts: Mapping[str, np.ndarray]  # (M, D) of each caption set
    tags: Mapping[str, np.ndarray]  # (K, D) of each attribute, by the single prompt
    ensembles: Mapping[str, np.ndarray] = field(default_factory=dict)  # and by all wordings of a tag
    prompts: Mapping[str, np.ndarray] = field(default_factory=dict)  # (D,) of each combination of tags


class TestSets:
    """The retrieval and classification sets that a configuration names, and the clips they are made of."""

    __test__ = False  # not a class of pytest's

    def __init__(self, index: ShardIndex, config: EvaluateConfig, unit: Unit | None = None, extras: bool = True):
        """`unit`: what resamples draw, see Clips. `extras`: prompt ensembles and the composition of attributes too.

        Raises PsclapError where the split lacks what a set is made of.
        """
        self.index, self.split = index, config.split
        self.retrieval: dict[str, RetrievalSet] = {
            name: RetrievalSet.of(index, config.split, name) for name in config.caption_sets
        }
        self.classification = [ClassificationSet.of(index, config.split, name) for name in config.attributes]
        self._unit, self._extras = unit, extras
        rows = [s.rows for s in self.retrieval.values()] + [s.rows for s in self.classification]
        if not rows:
            raise PsclapError(
                f"nothing to score: the {config.split} clips of {index.location} have no captions, and tags of no "
                "attribute with two candidates; choose another split"
            )
        self.rows = np.unique(np.concatenate(rows))

    @cached_property
    def clips(self) -> Clips:
        """All clips of the test sets."""
        return Clips.of(self.index, self.rows, self._unit)

    @cached_property
    def composition(self) -> dict[int, list[CompositionSet]]:
        """The sets of combinations of k attributes, by k."""
        if not self._extras:
            return {}
        return composition_sets(self.rows, self.clips.tags, [s.attribute for s in self.classification])

    def evaluate(self, embedder: Embedder) -> Evaluation:
        """How a model does."""
        return self.score(self.embed(embedder))

    def embed(self, embedder: Embedder) -> Embedded:
        """Embeds the clips, captions and prompts. Raises PsclapError for a model of another sample rate."""
        if embedder.sample_rate_hz != self.index.sample_rate_hz:
            raise PsclapError(
                f"the model hears {embedder.sample_rate_hz} Hz and the shards hold {self.index.sample_rate_hz} Hz; "
                "set shard.sample_rate_hz to the model's rate"
            )
        rows = tqdm(self.rows, desc="clips", unit="clip", leave=False, disable=None)  # on a terminal only
        return self.with_texts(embedder.embed_audio(self.index.read_clip(int(row)) for row in rows), embedder)

    def with_texts(self, speech: np.ndarray, embedder: Embedder) -> Embedded:
        """As `embed`, from the embeddings of the clips `rows`."""
        attributes = {s.attribute: s.candidates for s in self.classification}
        prompts = sorted({prompt for sets in self.composition.values() for s in sets for prompt in s.captions})
        return Embedded(
            speech=speech,
            texts={name: embedder.embed_text(test_set.captions) for name, test_set in self.retrieval.items()},
            tags={name: embedder.embed_tags(tags) for name, tags in attributes.items()},
            ensembles={name: embedder.embed_tags(tags, True) for name, tags in attributes.items() if self._extras},
            prompts=dict(zip(prompts, embedder.embed_text(prompts), strict=True)),
        )

    def score(self, embedded: Embedded) -> Evaluation:
        """How a model does whose embeddings these are. Raises PsclapError for embeddings that are not finite."""

        def speech_of(rows: np.ndarray) -> np.ndarray:
            return embedded.speech[np.searchsorted(self.rows, rows)]

        outcomes = Outcomes()
        for name, test_set in self.retrieval.items():
            outcomes.retrieval[name] = _ranked(speech_of(test_set.rows), embedded.texts[name], test_set)
        for labels in self.classification:
            speech, name = speech_of(labels.rows), labels.attribute
            outcomes.classification[name] = classify(speech, embedded.tags[name], labels)
            if name in embedded.ensembles:
                outcomes.ensembles[name] = classify(speech, embedded.ensembles[name], labels)
        for k, sets in self.composition.items():
            outcomes.composition[k] = [_composed(speech_of(s.rows), embedded.prompts, s) for s in sets]
        return Evaluation(self, outcomes)

    def chance(self) -> dict[str, Any]:
        """What guessing scores, in the same form."""
        chance: dict[str, Any] = {
            "retrieval": {name: test_set.chance() for name, test_set in self.retrieval.items()},
            "classification": {s.attribute: {"UAR": 1 / len(s.candidates)} for s in self.classification},
        }
        if self.composition:
            chance["composition"] = {str(k): _mean_chance(sets) for k, sets in self.composition.items()}
        return chance

    def fingerprints(self) -> dict[str, str]:
        """The hash of every test set: "retrieval/CAPTION_SET", "classification/ATTRIBUTE", "composition/NUMBER"."""
        return {
            **{f"retrieval/{name}": self.clips.fingerprint(test_set) for name, test_set in self.retrieval.items()},
            **{f"classification/{s.attribute}": self.clips.fingerprint(s) for s in self.classification},
            **{f"composition/{k}": " ".join(map(self.clips.fingerprint, sets)) for k, sets in self.composition.items()},
        }


def _ranked(speech_ND: np.ndarray, text_MD: np.ndarray, test_set: RetrievalSet) -> dict[Direction, Ranked]:
    both = ranks_both_ways(speech_ND, text_MD, test_set.right)
    return {direction: Ranked.of(ranks) for direction, ranks in zip(DIRECTIONS, both, strict=True)}


def _composed(
    speech_ND: np.ndarray, prompts: Mapping[str, np.ndarray], of_set: CompositionSet
) -> dict[Direction, Ranked]:
    text_MD, right = np.stack([prompts[prompt] for prompt in of_set.captions]), of_set.by_direction()
    return {
        "audio_to_text": Ranked.of(ranks_of(speech_ND, text_MD, right["audio_to_text"])),
        "text_to_audio": Ranked.of(ranks_of(text_MD[of_set.asked], speech_ND, right["text_to_audio"])),
    }


def _mean_chance(sets: Sequence[RetrievalSet]) -> dict[str, dict[str, float]]:
    """R@1 of a random order, over the queries of all sets."""
    return {
        direction: {
            "R@1": float(
                np.average(
                    [of_set.chance()[direction]["R@1"] for of_set in sets],
                    weights=[len(of_set.by_direction()[direction]) for of_set in sets],
                )
            )
        }
        for direction in DIRECTIONS
    }
