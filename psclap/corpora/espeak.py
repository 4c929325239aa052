"""espeak-ng as a library: own voices in, 16-bit speech out, byte-identical on every run.

espeak-ng keeps state between utterances, so a repeat inside one process differs even in length. Every
utterance is therefore synthesised in a process of its own, forked for it, with the generators of breath and
flutter seeded: about 10 ms each, independent of order and of the number of processes.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import espeakng_loader
import numpy as np

from psclap.errors import PsclapError
from psclap.parallel import process_map
from psclap.text import espeak_reader
from psclap.text.espeak_reader import endless

SAMPLE_RATE_HZ = 22050
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to our callback before espeak_Synth returns
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: a bad data path is returned, not exit()ed on
_PHONEME_EVENTS = 1 | 2  # espeakINITIALIZE_PHONEME_EVENTS, and _PHONEME_IPA for their names
_LIST_TERMINATED, _PHONEME = 0, 7  # espeak_EVENT_TYPE
_UTF8 = 1
_RATE, _VOLUME, _RANGE = 1, 2, 4  # espeak_PARAMETER
_MAX_HOME_LENGTH = 150  # espeak-ng cuts longer data paths off
_SEED = 1
_SHARED_DATA = ("intonations", "lang", "phondata", "phonindex", "phontab")

_STRESS = "ˈˌ"


class _EventName(ctypes.Union):
    _fields_ = (("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """espeak_EVENT (speak_lib.h); `sample` counts from the beginning of the text."""

    _fields_ = (
        *(("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int)),
        *(("length", ctypes.c_int), ("audio_position_ms", ctypes.c_int), ("sample", ctypes.c_int)),
        *(("user_data", ctypes.c_void_p), ("id", _EventName)),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_Mark = tuple[str, int]
"""The name of a phoneme's event, and the sample at which it begins; a pause has no name."""


@dataclass(frozen=True)
class Voice:
    """A voice variant: the name it is chosen by, and the lines of an espeak-ng `!v` file."""

    name: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """One utterance to synthesise. Rate in words a minute; volume and pitch range in espeak-ng's percent."""

    text: str
    voice: str
    rate_wpm: int = 175
    volume_percent: int = 100
    pitch_range_percent: int = 50


class TimedPhoneme(NamedTuple):
    """A phoneme as `phonemize` names it, and when it is said."""

    symbol: str
    start_s: float
    end_s: float


def synthesise(
    voices: Iterable[Voice], requests: Iterable[Request], processes: int | None = None, language: str = "en"
) -> Iterator[np.ndarray]:
    """Yields an int16 wave at SAMPLE_RATE_HZ for each request, in order.

    Raises PsclapError for a language that espeak-ng does not speak, for a voice that is not among `voices`, and for a
    text that gives no sound.
    """
    for _, wave, _ in _spoken(voices, requests, processes, language, options=0):
        yield wave


def synthesise_timed(
    voices: Iterable[Voice], requests: Iterable[Request], processes: int | None = None, language: str = "en"
) -> Iterator[tuple[np.ndarray, tuple[TimedPhoneme, ...]]]:
    """Yields the same wave, and its phonemes with their times, as espeak-ng itself places them.

    What lies between two phonemes is a pause. Two phonemes of one sound have one time: an English /l/ behind a vowel
    is in espeak-ng the end of that vowel, and lasts 0 s. Raises PsclapError as `synthesise` does.
    """
    for request, wave, marks in _spoken(voices, requests, processes, language, _PHONEME_EVENTS):
        yield wave, _timed(request, language, marks, len(wave))


def _spoken(
    voices: Iterable[Voice], requests: Iterable[Request], processes: int | None, language: str, options: int
) -> Iterator[tuple[Request, np.ndarray, list[_Mark]]]:
    voices, requests, spoken_by = list(voices), list(requests), espeak_reader.voice_of(language)
    names = {voice.name for voice in voices}
    for request in requests:
        # espeak-ng itself would fall back to its default voice without a word.
        if request.voice not in names:
            raise PsclapError(f"espeak: no voice {request.voice!r}; defined voices: {sorted(names)}")
    with tempfile.TemporaryDirectory(prefix="espeak-") as folder:
        for voice in voices:
            _write_data_home(Path(folder) / voice.name, voice, _dictionaries(spoken_by))
        jobs = [(f"{folder}/{request.voice}", spoken_by, request, options) for request in requests]
        for request, (wave, marks) in zip(requests, process_map(_in_own_process, jobs, processes), strict=True):
            if not wave.any():
                raise PsclapError(f"espeak: no sound came of the text {request.text!r}; give it words")
            yield request, wave, marks


def _timed(request: Request, language: str, marks: Sequence[_Mark], num_samples: int) -> tuple[TimedPhoneme, ...]:
    """The phonemes under the names of the reader, which have the tone."""
    spans = _spans(marks, num_samples)
    clauses = espeak_reader.read(request.text, language)
    symbols = [symbol for clause in clauses for word in clause.words for symbol in word]
    if len(symbols) != len(spans) or not all(map(_is_named, symbols, spans)):
        raise PsclapError(
            f"espeak: the phonemes said of {request.text!r}, {[name for name, _, _ in spans]}, are not those that are "
            f"read from it, {symbols}; leave this text out where times are needed"
        )
    return tuple(
        TimedPhoneme(symbol, start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ)
        for symbol, (_, start, end) in zip(symbols, spans, strict=True)
    )


def _spans(marks: Sequence[_Mark], num_samples: int) -> list[tuple[str, int, int]]:
    """Each phoneme from its event to the next one, of whatever kind: name, first sample, the one behind the last."""
    ends = [sample for _, sample in marks[1:]] + [num_samples]
    spans: list[tuple[str, int, int]] = []
    for (name, start), end in zip(marks, ends, strict=True):
        if spans and "\u02b0" <= name[:1] <= "\u036f" and name[0] not in _STRESS:
            spans[-1] = (spans[-1][0] + name, spans[-1][1], end)  # a modifier letter, such as that of palatalisation
        elif name and not name.startswith("("):  # no pause, and no switch to another language's rules
            spans.append((name, start, end))
    return spans


def _is_named(symbol: str, span: tuple[str, int, int]) -> bool:
    """Whether an event's name is the symbol, but for its stress and its tone, which events may lack."""
    return symbol.lstrip(_STRESS).startswith(span[0].lstrip(_STRESS))


def _write_data_home(home: Path, voice: Voice, dictionaries: Iterable[str]) -> None:
    """espeak-ng's own data by links, with this one voice as its only variant (it lists at most 350)."""
    if len(str(home)) > _MAX_HOME_LENGTH:
        raise PsclapError(
            f"espeak: the temporary folder {home} is longer than the {_MAX_HOME_LENGTH} characters that "
            "espeak-ng reads; set TMPDIR to a shorter path"
        )
    variants = home / "voices" / "!v"
    variants.mkdir(parents=True)
    for name in (*_SHARED_DATA, *dictionaries):
        (home / name).symlink_to(Path(espeakng_loader.get_data_path()) / name)
    (variants / voice.name).write_text("\n".join(["language variant", f"name {voice.name}", *voice.lines, ""]))


def _dictionaries(spoken_by: str) -> set[str]:
    """The voice's own, by its file or else by its name, and English, by whose rules others read some words."""
    description = Path(espeakng_loader.get_data_path()) / "lang" / spoken_by
    named = re.search(r"^dictionary\s+(\S+)", description.read_text(), re.MULTILINE)
    return {f"{named[1] if named else Path(spoken_by).name.split('-')[0]}_dict", "en_dict"}


def _in_own_process(job: tuple[str, str, Request, int]) -> tuple[np.ndarray, list[_Mark]]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_synthesise_one, args=(sender, *job))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"the espeak-ng process of {job[2]!r} died; its message is above") from None
    finally:
        child.join()


def _synthesise_one(sender: Connection, home: str, spoken_by: str, request: Request, options: int) -> None:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    if library.espeak_Initialize(_SYNCHRONOUS, 0, home.encode(), _DONT_EXIT | options) != SAMPLE_RATE_HZ:
        raise RuntimeError(f"espeak-ng did not start with the data in {home}")
    if library.espeak_SetVoiceByName(f"{spoken_by}+{request.voice}".encode()) != 0:
        raise RuntimeError(f"espeak-ng has no voice {spoken_by!r}")
    # Initialising seeds both generators from the clock.
    library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
    ctypes.CDLL(None).srand(_SEED)
    library.espeak_SetParameter(_RATE, request.rate_wpm, 0)
    library.espeak_SetParameter(_VOLUME, request.volume_percent, 0)
    library.espeak_SetParameter(_RANGE, request.pitch_range_percent, 0)

    chunks: list[np.ndarray] = [np.empty(0, np.int16)]
    marks: list[_Mark] = []

    def keep(samples, count, events):  # type: ignore[no-untyped-def]
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        for event in takewhile(lambda event: event.type != _LIST_TERMINATED, endless(events)):
            if event.type == _PHONEME:
                marks.append((event.id.string.decode(errors="ignore"), event.sample))
        return 0

    callback = _CALLBACK(keep)
    library.espeak_SetSynthCallback(callback)
    text = request.text.encode()
    library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8, None, None)
    sender.send((np.concatenate(chunks), marks))
