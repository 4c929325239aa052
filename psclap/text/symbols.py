"""A written text as what a model of speech reads."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

from psclap.text.normalise import normalise
from psclap.text.phonemes import WORD_BOUNDARY, phonemize

_RULES = 1  # of this package: a change of what is said of any text changes it


@cache
def rules() -> tuple[str, ...]:
    """What the symbols of a text depend on, besides the text: our rules, the grammars' version, and espeak-ng's."""
    return (str(_RULES), *(version(package) for package in ("wetext", "espeakng-loader")))


def symbols_of(text: str, language: str) -> tuple[str, ...]:
    """The symbols of a text as it is written, one at least, without word boundaries.

    Those take no time of their own, and each symbol of a model has a frame at least. `language` is a name of
    espeak-ng's. Raises PsclapError where the text cannot be said.

    >>> symbols_of("2 cats.", "en")
    ('t', 'ˈuː', 'k', 'ˈa', 't', 's', '.')
    """
    return tuple(symbol for symbol in phonemize(normalise(text, language), language) if symbol != WORD_BOUNDARY)
