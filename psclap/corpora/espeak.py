"""espeak-ng as a library: own voices in, 16-bit speech out, byte-identical on every run.

espeak-ng keeps state between utterances, so a repeat inside one process differs even in length. Every
utterance is therefore synthesised in a process of its own, forked for it from a small one (`espeak_process`), with
the generators of breath and flutter seeded: independent of order and of the number of processes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple

import espeakng_loader
import numpy as np

from psclap.corpora import espeak_process
from psclap.corpora.espeak_process import PHONEME_EVENTS, SAMPLE_RATE_HZ
from psclap.errors import PsclapError
from psclap.parallel import available_cpus
from psclap.text import espeak_reader

_MAX_HOME_LENGTH = 150  # espeak-ng cuts longer data paths off
_SHARED_DATA = ("intonations", "lang", "phondata", "phonindex", "phontab")

_STRESS = "ˈˌ"

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
    for request, wave, marks in _spoken(voices, requests, processes, language, PHONEME_EVENTS):
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
        jobs = [
            {**asdict(request), "home": f"{folder}/{request.voice}", "voice": f"{spoken_by}+{request.voice}"}
            for request in requests
        ]
        answers = _answers([{**job, "options": options} for job in jobs], processes or available_cpus())
        for request, (wave, marks) in zip(requests, answers, strict=True):
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


def _answers(jobs: Sequence[dict[str, Any]], processes: int) -> Iterator[tuple[np.ndarray, list[_Mark]]]:
    """What is said for each job, in order, by that many speakers at a time."""
    free: SimpleQueue[_Speaker] = SimpleQueue()

    def say(job: dict[str, Any]) -> tuple[np.ndarray, list[_Mark]]:
        speaker = free.get()
        try:
            return speaker.say(job)
        finally:
            free.put(speaker)

    with ExitStack() as stack:
        for _ in range(min(processes, len(jobs))):
            free.put(stack.enter_context(_Speaker()))
        pool = ThreadPoolExecutor(max(1, processes))
        stack.callback(pool.shutdown, cancel_futures=True)
        yield from pool.map(say, jobs)


class _Speaker:
    """The program `espeak_process`; leaving the `with` block ends it."""

    def __enter__(self) -> _Speaker:
        command = [sys.executable, "-I", "-S", espeak_process.__file__, espeakng_loader.get_library_path()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def say(self, job: dict[str, Any]) -> tuple[np.ndarray, list[_Mark]]:
        """Raises RuntimeError for what is not said."""
        told, said = self._process.stdin, self._process.stdout
        assert told
        assert said
        try:
            told.write(json.dumps(job).encode() + b"\n")
            told.flush()
            answer = json.loads(said.readline() or '{"error": "its process was killed"}')
        except BrokenPipeError:
            answer = {"error": "its process was killed"}
        if "error" in answer:
            raise RuntimeError(f"espeak-ng: {job['text']!r} was not said: {answer['error']}")
        return np.frombuffer(said.read(answer["bytes"]), np.int16), [(name, at) for name, at in answer["marks"]]

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._process.communicate()
