"""Written text to the words that are said: numbers, dates, money and abbreviations spelt out, symbols tidied.

English and Mandarin by the grammars of WeTextProcessing (Apache-2.0; `wetext` runs them on kaldifst, and has them
inside: no network). In other languages espeak-ng reads numbers itself, over a hundred languages of them: measured
against num2words for 134 numbers in German, French, Spanish, Polish and seven more, it said the same words, often
with the better vowels (num2words writes "vierzehn" and "dreißig" into compounds that espeak-ng then misreads).
Roman numerals from II to XXXIX are read as numbers in English (espeak-ng says "roman eight" of VIII).
What neither knows: abbreviations in languages other than English ("z. B."), the German ordinals ("3. Mai").

What is dropped: double quotes, symbols that nobody says (emoji, copyright signs; the degree sign stays), control
and format characters. A dash between words becomes a comma, for the pause that it stands for.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from typing import Any

from psclap.errors import PsclapError
from psclap.text.espeak_reader import voice_of
from psclap.text.phonemes import check_sentence, short

_GRAMMARS = {"en": "en", "cmn": "zh", "zh": "zh"}
_CACHED_SENTENCES = 1 << 15

_KEPT = "°²³¼½¾"  # Unicode's compatibility form would make x2 of x²
_DROPPED = ("Cc", "Cf", "Cn", "Co", "Cs", "So")
_JOINERS = "\u200c\u200d"  # of Persian and Indic words; between emoji they are dropped
_QUOTES = str.maketrans({**dict.fromkeys('"“”„‟«»「」『』〝〞'), **dict.fromkeys("‘’‚‛`´", "'"), "⁄": "/"})

_ONES = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
_PAUSING_DASH = re.compile(r"\s*[—―]+\s*|\s+[-–−]+\s+|\s*--+\s*")
_JOINING_DASH = re.compile(r"[‐‑‒–−]")
_ROMAN = {tens + ones: 10 * len(tens) + value for tens in ("", "X", "XX", "XXX") for value, ones in enumerate(_ONES)}
_ROMAN_NUMERAL = re.compile(r"\b[IVX]{2,}\b")
_BEFORE_ENGLISH: tuple[tuple[re.Pattern[str], str], ...] = (
    # what the English grammar lacks, in words that it has
    (re.compile(r"(?:#|\bNo\.)\s*(?=\d)"), "number "),
    (re.compile(r"\b2000s\b"), "two thousands"),
    (re.compile(r"\b(1\d)00s\b"), r"\1 hundreds"),
    (re.compile(r"\b(1\d|20)10s\b"), r"\1 tens"),
    (re.compile(r"\b(1\d|20)([2-9]0)s\b"), r"\1 \2s"),
    (re.compile(r"(?<![$£€¥\d,.])1,(?=\d{3}(?![,.]?\d))0*"), "one thousand "),
    (re.compile(r"(?<=\d)(?=[¼½¾])"), " and "),
    *((re.compile(char), text) for char, text in {"¼": "1/4", "½": "1/2", "¾": "3/4", "²": "^2", "³": "^3"}.items()),
    (re.compile(r"[\\_|*~<>{}\[\]]+"), " "),
)


@lru_cache(_CACHED_SENTENCES)
def normalise(text: str, language: str) -> str:
    """A sentence as it is said, ready for `phonemize`. `language` is a name of espeak-ng's.

    Raises PsclapError for an unknown language, for a text that is too long or of which nothing can be said, and for
    one that the grammar cannot read.

    >>> normalise("Dr. Smith paid $5.50 on May 3, 2020 — “cheap”!", "en")
    'doctor Smith paid five point five dollars on May three, twenty twenty, cheap!'
    >>> normalise("我有3.5元。", "cmn")
    '我有三点五元。'
    >>> normalise("Das kostet 20 € 🙂", "de")
    'Das kostet 20 €'
    """
    voice_of(language)
    tidy = _tidy(text)
    check_sentence(tidy)
    grammar = _GRAMMARS.get(language.split("-")[0])
    if grammar is None:
        return tidy
    if grammar == "en":
        for pattern, words in _BEFORE_ENGLISH:
            tidy = pattern.sub(words, tidy)
        tidy = _ROMAN_NUMERAL.sub(lambda match: str(_ROMAN.get(match[0], match[0])), tidy)
    spoken = _by_grammar(" ".join(tidy.split()), grammar)
    # The grammar takes the full stop of "the U.S." for the abbreviation's alone.
    return spoken + tidy[-1] if tidy[-1] in ".?!" and spoken[-1].isalnum() else spoken


def _tidy(text: str) -> str:
    """One form of each character, quotes, dashes and spaces; without what nobody says."""
    composed = unicodedata.normalize("NFC", text)
    plain = "".join(char if char in _KEPT else unicodedata.normalize("NFKC", char) for char in composed)
    said = "".join(map(_said, plain))
    said = re.sub(rf"(?<!\w)[{_JOINERS}]+|[{_JOINERS}]+(?!\w)", "", said).translate(_QUOTES)
    return " ".join(_JOINING_DASH.sub("-", _PAUSING_DASH.sub(", ", said)).split())


def _said(char: str) -> str:
    if char.isspace():
        return " "
    if char in _KEPT or char in _JOINERS:
        return char
    is_selector = "\ufe00" <= char <= "\ufe0f" or "\U0001f3fb" <= char <= "\U0001f3ff"  # of an emoji's form, its skin
    return "" if is_selector or unicodedata.category(char) in _DROPPED else char


def _by_grammar(text: str, grammar: str) -> str:
    try:
        return _normalizer(grammar).normalize(text)
    except AssertionError as error:  # the grammar has no way through the text
        raise PsclapError(
            f"the text {short(text)} cannot be read aloud: a number or symbol in it is in no form that the grammar "
            "knows; write it in words"
        ) from error


@cache
def _normalizer(grammar: str) -> Any:
    from wetext import Normalizer  # a grammar takes a third of a second

    return Normalizer(lang=grammar, operator="tn")
