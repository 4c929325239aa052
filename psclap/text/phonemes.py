"""Text to phonemes: symbols of espeak-ng, for English, Mandarin and whatever else it speaks.

A symbol is one phoneme of espeak-ng in IPA; diphthongs, affricates and length marks belong to it, as do the stress
in front of a vowel ("ˈæ") and the tone behind it ("i214", in Mandarin the five tones 55, 35, 214, 51 and 11). Words
are divided by " ", and where espeak-ng ends a clause its punctuation is a symbol of its own. espeak-ng is called by
ctypes (psclap/text/espeak_reader.py says why not by phonemizer): about 0.25 ms a sentence.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from psclap.errors import PsclapError
from psclap.text import espeak_reader

WORD_BOUNDARY = " "
PUNCTUATION = (",", ".", "?", "!", ";", ":", "…", "—")
MAX_CHARACTERS = 1000

_CACHED_SENTENCES = 1 << 15
_MARKS = dict.fromkeys(",،，、﹐", ",") | dict.fromkeys(".。．｡।॥።", ".") | dict.fromkeys("?？؟", "?")
_MARKS |= dict.fromkeys("!！", "!") | dict.fromkeys(";；؛", ";") | dict.fromkeys(":：", ":")
_MARKS |= {"…": "…"} | dict.fromkeys("—–-", "—")
_STRONG = ("?", "!", "…")

_EVERYWHERE = ("LATIN", "MODIFIER", "FEMININE", "MASCULINE", "MICRO")
_SCRIPTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("am", "ti"), ("ETHIOPIC",)),
    **dict.fromkeys(("ar", "fa", "ku", "sd", "ug", "ur"), ("ARABIC",)),
    **dict.fromkeys(("as", "bn", "bpy"), ("BENGALI",)),
    **dict.fromkeys(("ba", "be", "bg", "bs", "cv", "hbs", "hr", "kaa", "kk", "ky"), ("CYRILLIC",)),
    **dict.fromkeys(("mk", "nog", "ru", "sr", "tk", "tt", "uk", "uz"), ("CYRILLIC",)),
    **dict.fromkeys(("cmn", "yue", "zh"), ("CJK", "IDEOGRAPHIC", "BOPOMOFO")),
    **dict.fromkeys(("hi", "kok", "mr", "ne"), ("DEVANAGARI",)),
    **dict.fromkeys(("el", "grc"), ("GREEK",)),
    **dict.fromkeys(("hy", "hyw"), ("ARMENIAN",)),
    **dict.fromkeys(("my", "shn"), ("MYANMAR",)),
    **{"chr": ("CHEROKEE",), "en-shaw": ("SHAVIAN",), "gu": ("GUJARATI",), "he": ("HEBREW",), "ka": ("GEORGIAN",)},
    **{"ja": ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"), "kn": ("KANNADA",), "ko": ("HANGUL",)},
    **{"ml": ("MALAYALAM",), "or": ("ORIYA",), "pa": ("GURMUKHI",), "si": ("SINHALA",), "ta": ("TAMIL",)},
    **{"te": ("TELUGU",), "th": ("THAI",)},
}
"""What a language's letters are called in Unicode, besides the Latin ones, which espeak-ng reads in all of them."""


@lru_cache(_CACHED_SENTENCES)
def phonemize(text: str, language: str) -> tuple[str, ...]:
    """The symbols of a sentence in order; the same in every process and thread.

    Raises PsclapError for a language that espeak-ng does not speak, for an empty or overlong text, and for one
    that it cannot say: without any letter or digit, or with letters that are none of the language's.

    >>> phonemize("Well, she has 2 cats.", "en")
    ('w', 'ˈɛ', 'l', ',', ' ', 'ʃ', 'iː', ' ', 'h', 'ɐ', 'z', ' ', 't', 'ˈuː', ' ', 'k', 'ˈa', 't', 's', '.')
    >>> phonemize("你好！", "cmn")
    ('n', 'i214', 'χ', 'ˈɑu214', '!')
    """
    espeak_reader.voice_of(language)
    text = " ".join(unicodedata.normalize("NFC", text).split())
    check_sentence(text)
    _check_letters(text, language)
    symbols: list[str] = []
    for clause in espeak_reader.read(text, language):
        for word in clause.words:
            symbols += [WORD_BOUNDARY, *word] if symbols else word
        mark = _mark(clause.text)
        if mark and symbols and symbols[-1] not in PUNCTUATION:
            symbols.append(mark)
    if not symbols:
        raise PsclapError(f"espeak-ng has nothing to say for {short(text)} in {language!r}; give it words")
    return tuple(symbols)


def check_sentence(text: str) -> None:
    """Raises PsclapError for a text without any letter or digit, and for one too long to be a sentence."""
    if len(text) > MAX_CHARACTERS:
        raise PsclapError(
            f"a text of {len(text)} characters, {short(text)}, is no sentence; divide it into parts of at most "
            f"{MAX_CHARACTERS}"
        )
    if not any(unicodedata.category(char)[0] in "LN" for char in text):
        raise PsclapError(f"the text {short(text)} has no letter and no digit, so nothing can be said; give it words")


def _check_letters(text: str, language: str) -> None:
    allowed = _EVERYWHERE + _SCRIPTS.get(language, _SCRIPTS.get(language.split("-")[0], ()))
    for char in text:
        category, name = unicodedata.category(char), unicodedata.name(char, "unnamed")
        if category in ("Cc", "Cs", "Co", "Cn"):
            raise PsclapError(f"the text {short(text)} has the character {char!r}, which cannot be said; take it out")
        if category[0] == "L" and name.split()[0] not in allowed:
            raise PsclapError(
                f"the text {short(text)} has {char!r} ({name}), no letter of the language {language!r}: espeak-ng "
                "would spell it out; transcribe it, or set the text's own language"
            )


def _mark(text: str) -> str | None:
    """The punctuation that ends a clause: of several marks a question, an exclamation or an ellipsis, or the last."""
    tail = text.replace("...", "…").rstrip()
    marks = []
    while tail and not tail[-1].isalnum():
        if tail[-1] in _MARKS:
            marks.append(_MARKS[tail[-1]])
        tail = tail[:-1]
    return next((mark for mark in _STRONG if mark in marks), marks[0] if marks else None)


def short(text: str) -> str:
    """A text as messages quote it."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
