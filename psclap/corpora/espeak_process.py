"""A program that speaks one text after the other, each in a process forked for it: `espeak_process.py LIBRARY`.

`psclap.corpora.espeak` starts it by its path, without site packages: a fork costs by the memory that its parent has
touched, and this one has next to none. It takes a line of JSON for each text on standard input: `home` (a data folder
of espeak-ng), `voice`, `text`, `rate_wpm`, `volume_percent`, `pitch_range_percent`, `options`. It answers on standard
output with a line of JSON, `{"bytes": N, "marks": [[name, sample], ...]}` or `{"error": "..."}`, and N bytes of 16-bit
samples. It ends when its input does, so none outlives who started it.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

SAMPLE_RATE_HZ = 22050
PHONEME_EVENTS = 1 | 2  # espeakINITIALIZE_PHONEME_EVENTS, and _PHONEME_IPA for their names
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to our callback before espeak_Synth returns
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: a bad data path is returned, not exit()ed on
_LIST_TERMINATED, _PHONEME = 0, 7  # espeak_EVENT_TYPE
_UTF8 = 1
_PARAMETERS = {1: "rate_wpm", 2: "volume_percent", 4: "pitch_range_percent"}  # espeak_PARAMETER
_SEED = 1


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


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too; its input ends when it is to end
    library = ctypes.CDLL(sys.argv[1])
    for line in sys.stdin.buffer:
        child = os.fork()
        if not child:
            _answer(library, json.loads(line))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            _write({"error": f"its process ended with {os.waitstatus_to_exitcode(status)}"})


def _answer(library: ctypes.CDLL, job: dict[str, Any]) -> None:
    """In one write at the end: a child that dies before has said nothing."""
    try:
        samples, marks = spoken(library, job)
    except RuntimeError as error:
        _write({"error": str(error)})
    else:
        _write({"bytes": len(samples), "marks": marks}, samples)


def spoken(library: ctypes.CDLL, job: dict[str, Any]) -> tuple[bytes, list[tuple[str, int]]]:
    """The samples and marks of a text, in a process that has said nothing yet. Raises RuntimeError."""
    started = library.espeak_Initialize(_SYNCHRONOUS, 0, job["home"].encode(), _DONT_EXIT | job["options"])
    if started != SAMPLE_RATE_HZ:
        raise RuntimeError(f"espeak-ng did not start with the data in {job['home']}")
    if library.espeak_SetVoiceByName(job["voice"].encode()) != 0:
        raise RuntimeError(f"espeak-ng has no voice {job['voice']!r}")
    # Initialising seeds both generators from the clock.
    library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
    ctypes.CDLL(None).srand(_SEED)
    for number, name in _PARAMETERS.items():
        library.espeak_SetParameter(number, job[name], 0)
    chunks: list[bytes] = []
    marks: list[tuple[str, int]] = []

    def keep(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        number = 0
        while events[number].type != _LIST_TERMINATED:
            if events[number].type == _PHONEME:
                marks.append((events[number].id.string.decode(errors="ignore"), events[number].sample))
            number += 1
        return 0

    callback = _CALLBACK(keep)
    library.espeak_SetSynthCallback(callback)
    text = job["text"].encode()
    library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8, None, None)
    return b"".join(chunks), marks


def _write(answer: dict[str, Any], samples: bytes = b"") -> None:
    data = memoryview(json.dumps(answer).encode() + b"\n" + samples)
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
