"""espeak-ng as a library: own voices in, 16-bit speech out, byte-identical on every run.

espeak-ng keeps state between utterances, so a repeat inside one process differs even in length. Every
utterance is therefore synthesised in a process of its own, forked for it, with the generators of breath and
flutter seeded: about 10 ms each, independent of order and of the number of processes.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import espeakng_loader
import numpy as np

from psclap.errors import PsclapError
from psclap.parallel import process_map

SAMPLE_RATE_HZ = 22050
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to our callback before espeak_Synth returns
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: a bad data path is returned, not exit()ed on
_UTF8 = 1
_RATE, _VOLUME, _RANGE = 1, 2, 4  # espeak_PARAMETER
_MAX_HOME_LENGTH = 150  # espeak-ng cuts longer data paths off
_SEED = 1
_SHARED_DATA = ("intonations", "lang", "phondata", "phonindex", "phontab")

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


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


def synthesise(
    voices: Iterable[Voice], requests: Iterable[Request], processes: int | None = None, language: str = "en"
) -> Iterator[np.ndarray]:
    """Yields an int16 wave at SAMPLE_RATE_HZ for each request, in order.

    Raises PsclapError for a voice that is not among `voices`, and for a text that gives no sound.
    """
    voices, requests = list(voices), list(requests)
    names = {voice.name for voice in voices}
    for request in requests:
        # espeak-ng itself would fall back to its default voice without a word.
        if request.voice not in names:
            raise PsclapError(f"espeak: no voice {request.voice!r}; defined voices: {sorted(names)}")
    with tempfile.TemporaryDirectory(prefix="espeak-") as folder:
        for voice in voices:
            _write_data_home(Path(folder) / voice.name, voice, language)
        jobs = [(f"{folder}/{request.voice}", language, request) for request in requests]
        for request, wave in zip(requests, process_map(_in_own_process, jobs, processes), strict=True):
            if not wave.any():
                raise PsclapError(f"espeak: no sound came of the text {request.text!r}; give it words")
            yield wave


def _write_data_home(home: Path, voice: Voice, language: str) -> None:
    """espeak-ng's own data by links, with this one voice as its only variant (it lists at most 350)."""
    if len(str(home)) > _MAX_HOME_LENGTH:
        raise PsclapError(
            f"espeak: the temporary folder {home} is longer than the {_MAX_HOME_LENGTH} characters that "
            "espeak-ng reads; set TMPDIR to a shorter path"
        )
    variants = home / "voices" / "!v"
    variants.mkdir(parents=True)
    for name in (*_SHARED_DATA, f"{language}_dict"):
        (home / name).symlink_to(Path(espeakng_loader.get_data_path()) / name)
    (variants / voice.name).write_text("\n".join(["language variant", f"name {voice.name}", *voice.lines, ""]))


def _in_own_process(job: tuple[str, str, Request]) -> np.ndarray:
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


def _synthesise_one(sender: Connection, home: str, language: str, request: Request) -> None:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    if library.espeak_Initialize(_SYNCHRONOUS, 0, home.encode(), _DONT_EXIT) != SAMPLE_RATE_HZ:
        raise RuntimeError(f"espeak-ng did not start with the data in {home}")
    if library.espeak_SetVoiceByName(f"{language}+{request.voice}".encode()) != 0:
        raise RuntimeError(f"espeak-ng has no language {language!r}")
    # Initialising seeds both generators from the clock.
    library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
    ctypes.CDLL(None).srand(_SEED)
    library.espeak_SetParameter(_RATE, request.rate_wpm, 0)
    library.espeak_SetParameter(_VOLUME, request.volume_percent, 0)
    library.espeak_SetParameter(_RANGE, request.pitch_range_percent, 0)

    chunks: list[np.ndarray] = [np.empty(0, np.int16)]

    def keep(samples, count, _events):  # type: ignore[no-untyped-def]
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    callback = _CALLBACK(keep)
    library.espeak_SetSynthCallback(callback)
    text = request.text.encode()
    library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8, None, None)
    sender.send(np.concatenate(chunks))
