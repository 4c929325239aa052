"""What a model can say and in which voices: names to numbers, from the training's clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psclap.errors import PsclapError
from psclap.shards.index import ShardIndex
from psclap.text.phonemes import PUNCTUATION
from psclap.text.symbols import symbols_of

PADDING = 0
_MAX_STYLE_SETS = 1000  # no more are worth a choice
_BETWEEN_TAGS = "\x1f"


@dataclass(frozen=True)
class Vocabulary:
    """Symbol number k is `symbols[k - 1]`; 0 is padding. Speakers and styles are numbered from 0.

    Word boundaries are no symbols of the model: they take no time of their own, and every symbol has a frame at least.
    """

    symbols: Sequence[str]
    speakers: Sequence[str]
    styles: Sequence[str]
    style_sets: Sequence[Sequence[str]] = ((),)
    languages: Sequence[str] = field(default=("en",))

    @classmethod
    def of_train(cls, index: ShardIndex, rows: np.ndarray) -> Vocabulary:
        """That of some rows of the index, by their phonemes."""
        table = index.take(rows, ["language", "speaker", "situational_tags"])
        languages, speakers = (sorted(pc.unique(table[name]).to_pylist()) for name in ("language", "speaker"))
        styles = _together(table["situational_tags"])
        every_style = sorted({tag for tags in styles for tag in tags})
        return cls(_symbols(index, rows), speakers, every_style, styles[:_MAX_STYLE_SETS], languages)

    @classmethod
    def of_config(cls, config: Any) -> Vocabulary:
        """That of a model's configuration."""
        return cls(
            config.symbols,
            getattr(config, "speakers", ()),
            getattr(config, "styles", ()),
            getattr(config, "style_sets", ((),)),
            config.languages,
        )

    def within(self, symbols: Sequence[str]) -> Vocabulary:
        """The same with the symbols of another model. Raises PsclapError for those that it does not have."""
        if more := sorted(set(self.symbols) - set(symbols)):
            raise PsclapError(
                f"start_from: the train clips have the phonemes {' '.join(more)}, which the model to start from does "
                "not know; train that anew on this data, or take the clips out"
            )
        return replace(self, symbols=symbols)

    @cached_property
    def _number_of_symbol(self) -> dict[str, int]:
        return {symbol: number for number, symbol in enumerate(self.symbols, start=1)}

    @cached_property
    def _number_of_speaker(self) -> dict[str, int]:
        return {speaker: number for number, speaker in enumerate(self.speakers)}

    def say(self, text: str, language: str) -> tuple[tuple[str, ...], np.ndarray]:
        """As `encode`, of a text that was typed in. Raises PsclapError for one that cannot be said, too."""
        try:
            return self.encode(symbols_of(text, language))
        except PsclapError as error:
            raise PsclapError(f"{text!r} cannot be said: {error}") from error

    def can_say(self, text: str, language: str) -> bool:
        """Whether `say` would not raise."""
        try:
            return self.can_encode(symbols_of(text, language))
        except PsclapError:
            return False

    def encode(self, phonemes: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
        """The symbols among the phonemes of a clip, or of `symbols_of`, and (L,) their numbers.

        Punctuation that no training clip had is left out: it has no sound of its own. Raises PsclapError for a
        phoneme that was never heard in training.
        """
        known = self._number_of_symbol
        if unheard := [symbol for symbol in phonemes if symbol not in known and symbol not in PUNCTUATION]:
            raise PsclapError(
                f"it has the phonemes {' '.join(dict.fromkeys(unheard))}, which no training clip had: the model "
                f"cannot say them (it speaks {', '.join(self.languages)}); put it otherwise"
            )
        symbols = tuple(symbol for symbol in phonemes if symbol in known)
        return symbols, np.array([known[symbol] for symbol in symbols])

    def can_encode(self, phonemes: Iterable[str]) -> bool:
        """Whether `encode` would not raise."""
        return all(symbol in self._number_of_symbol or symbol in PUNCTUATION for symbol in phonemes)

    def knows(self, speaker: str) -> bool:
        """Whether `speaker` would not raise."""
        return speaker in self._number_of_speaker

    def speaker(self, name: str) -> int:
        """The number of a speaker. Raises PsclapError for one that the model was not trained on."""
        if not self.knows(name):
            raise PsclapError(f"speaker {name!r} is none of the model's: {_some(self.speakers)}")
        return self._number_of_speaker[name]

    def style(self, tags: Iterable[str]) -> np.ndarray:
        """(S,) float32: 1 for each style that is among `tags`; other tags say nothing to the model."""
        chosen = set(tags)
        return np.array([style in chosen for style in self.styles] or [False], np.float32)

    def check_styles(self, tags: Iterable[str]) -> None:
        """Raises PsclapError for a tag that the model was not trained on."""
        if unknown := [tag for tag in tags if tag not in self.styles]:
            raise PsclapError(f"styles {unknown} are none of the model's: {_some(self.styles)}")


def _symbols(index: ShardIndex, rows: np.ndarray) -> list[str]:
    """The different phonemes of some clips, sorted."""
    chosen, first, found = np.zeros(len(index), bool), 0, set[str]()
    chosen[rows] = True
    for lists in index.phonemes():
        of_part = slice(first, first + len(lists))
        symbols, is_chosen = lists.flatten(), np.repeat(chosen[of_part], index.num_phonemes[of_part])
        counts = np.bincount(np.from_dlpack(symbols.indices)[is_chosen], minlength=len(symbols.dictionary))
        found.update(symbols.dictionary.filter(pa.array(counts > 0)).to_pylist())
        first += len(lists)
    return sorted(found)


def _together(styles: pa.ChunkedArray) -> list[list[str]]:
    """The styles that clips have together, the most frequent first."""
    counts: Counter[tuple[str, ...]] = Counter()
    for entry in pc.value_counts(pc.binary_join(styles, _BETWEEN_TAGS)).to_pylist():
        counts[tuple(sorted(filter(None, entry["values"].split(_BETWEEN_TAGS))))] += entry["counts"]
    return [[*of_clip] for of_clip, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20]) or "it has none"
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
