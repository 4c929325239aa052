"""How espeak-ng reads a text: its clauses, their words, the phonemes of each, with stress and tone.

By ctypes, as phonemizer wraps it: that package would bring twelve others, cuts a text at every full stop before
espeak-ng sees it ("3.14", "e.g."), and espeak-ng's IPA, which it passes on, writes the first and the fourth tone
of Mandarin alike (55 and 51, of both only the first digit is kept). Here espeak-ng finds the clauses itself, and
tones come from its ASCII names.
"""

from __future__ import annotations

import ctypes
import difflib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import espeakng_loader

from psclap.errors import PsclapError

_RETRIEVAL = 1  # AUDIO_OUTPUT_RETRIEVAL: no sound device
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: a bad data path is returned, not exit()ed on
_UTF8 = 1
_SEPARATOR = "\u241f"  # between phonemes; in no name of a phoneme, and no modifier letter, before which none is set
_ASCII_NAMES, _IPA_NAMES = (bits | ord(_SEPARATOR) << 8 for bits in (0, 2))
_TONAL = ("cmn", "hak", "my", "shn", "th", "vi", "yue", "zh")
_WITHOUT_DICTIONARY = ("fo", "kaa", "xex")  # listed by the wheel, which lacks their data: espeak-ng would crash
_LANGUAGE_SWITCH = re.compile(r"\([\w-]+\)")  # around a word read by another language's rules
_TONE = re.compile(r"\d+$")


@dataclass(frozen=True)
class Clause:
    """What espeak-ng says in one go: its words, of phonemes each, and the text that it read, punctuation included."""

    words: tuple[tuple[str, ...], ...]
    text: str


def languages() -> frozenset[str]:
    """The names of the languages that espeak-ng speaks, dialects included."""
    return frozenset(_reader(os.getpid()).voices)


def voice_of(language: str) -> str:
    """The name of the voice that speaks a language best. Raises PsclapError where espeak-ng does not speak it."""
    voices = _reader(os.getpid()).voices
    if language not in voices:
        near = difflib.get_close_matches(language, voices, n=3) or ["en", "cmn", "de"]
        raise PsclapError(
            f"language {language!r} is none that espeak-ng speaks; its names are such as {', '.join(map(repr, near))}"
        )
    return voices[language]


def read(text: str, language: str) -> tuple[Clause, ...]:
    """The clauses of a text, by any thread of any process. Raises PsclapError for an unknown language.

    espeak-ng 1.52 itself crashes on some nonsense in Indic scripts (found by random letters of Marathi and Sinhala);
    in 10,000 random texts of 19 languages, English, Mandarin and German among them, it never did.
    """
    return _reader(os.getpid()).read(text, language, voice_of(language))


@cache
def _reader(pid: int) -> _Reader:
    """One for each process: a forked child leaves alone what its parent's threads may be in the middle of."""
    return _Reader(pid)


class _VoiceStructure(ctypes.Structure):
    """The beginning of espeak_VOICE (speak_lib.h)."""

    _fields_ = (("name", ctypes.c_char_p), ("languages", ctypes.c_void_p), ("identifier", ctypes.c_char_p))


class _Reader:
    """A copy of the library of its own. Its state is global: `synthesise` forks, and initialises the usual one."""

    def __init__(self, pid: int) -> None:
        self._lock = threading.Lock()
        self._voice = ""
        file = os.memfd_create("espeak-ng")
        try:
            with open(file, "wb", closefd=False) as stream:
                stream.write(Path(espeakng_loader.get_library_path()).read_bytes())
            # The process id is part of the name, as the loader would take a name that it knows for the same library.
            self._library = ctypes.CDLL(f"/proc/{pid}/fd/{file}")
        finally:
            os.close(file)
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        data = espeakng_loader.get_data_path()
        if self._library.espeak_Initialize(_RETRIEVAL, 0, data.encode(), _DONT_EXIT) < 0:
            raise RuntimeError(f"espeak-ng did not start with the data in {data}")
        self.voices = self._voices()

    def read(self, text: str, language: str, voice: str) -> tuple[Clause, ...]:
        with self._lock:
            if voice != self._voice:
                if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
                    raise RuntimeError(f"espeak-ng lists the voice {voice!r}, but does not load it")
                self._voice = voice
            clauses = self._clauses(text, _IPA_NAMES)
            if language.split("-")[0] not in _TONAL:
                return tuple(Clause(_words(phonemes), part) for phonemes, part in clauses)
            named = [phonemes for phonemes, _ in self._clauses(text, _ASCII_NAMES)]
        return tuple(
            Clause(_words(_with_tones(phonemes, ascii_names)), part)
            for (phonemes, part), ascii_names in zip(clauses, named, strict=True)
        )

    def _clauses(self, text: str, names: int) -> list[tuple[str, str]]:
        """The phonemes of each clause as one string, and the part of the text that it is of."""
        data = text.encode()
        buffer = ctypes.create_string_buffer(data)
        start = ctypes.addressof(buffer)
        position = ctypes.c_void_p(start)
        clauses, begin = [], 0
        while position.value is not None:
            phonemes = self._library.espeak_TextToPhonemes(ctypes.byref(position), _UTF8, names)
            end = len(data) if position.value is None else _before_last(data, position.value - start)
            clauses.append((phonemes.decode(), data[begin:end].decode()))
            begin = end
        return clauses

    def _voices(self) -> dict[str, str]:
        """For each language the voice that speaks it best.

        A voice's languages lie one behind the other: a byte, the lower the better the voice is for it, the name, a
        zero; a zero in the byte's place ends them.
        """
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceStructure))
        found: dict[str, tuple[int, bytes]] = {}
        for voice in takewhile(bool, endless(self._library.espeak_ListVoices(None))):
            address, identifier = voice.contents.languages, voice.contents.identifier
            while place := ctypes.string_at(address, 1)[0]:
                name = ctypes.string_at(address + 1)
                found.setdefault(name.decode(), (place, identifier))
                found[name.decode()] = min(found[name.decode()], (place, identifier))
                address += len(name) + 2
        return {name: identifier.decode() for name, (_, identifier) in found.items() if name not in _WITHOUT_DICTIONARY}


def endless(pointer: Any) -> Iterator[Any]:
    """What a C pointer points to, one after the other."""
    return (pointer[number] for number in count())


def _before_last(data: bytes, position: int) -> int:
    """Where the character before a position of UTF-8 begins: espeak-ng has read one of the next clause."""
    position -= 1
    while data[position] & 0xC0 == 0x80:
        position -= 1
    return position


def _words(phonemes: str) -> tuple[tuple[str, ...], ...]:
    """Pauses have no name in IPA: they, and words of nothing else, are left out."""
    without_switches = _LANGUAGE_SWITCH.sub(_SEPARATOR, phonemes)
    words = (tuple(filter(None, word.split(_SEPARATOR))) for word in without_switches.split(" "))
    return tuple(word for word in words if word)


def _with_tones(phonemes: str, ascii_names: str) -> str:
    """The digits behind an ASCII name are the tone; IPA has its first digit alone, of a 3 the letter that looks so."""
    words = []
    for word, ascii_word in zip(phonemes.split(" "), ascii_names.split(" "), strict=True):
        pairs = zip(word.split(_SEPARATOR), ascii_word.split(_SEPARATOR), strict=True)
        words.append(_SEPARATOR.join(_with_tone(*pair) for pair in pairs))
    return " ".join(words)


def _with_tone(phoneme: str, ascii_name: str) -> str:
    tone = _TONE.search(ascii_name)
    if tone is None or phoneme[-1:] != tone[0][0].replace("3", "ɜ"):
        return phoneme
    return phoneme[:-1] + tone[0]
