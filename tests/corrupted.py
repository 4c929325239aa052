"""Corrupted audio files for tests/test_decoding.py, which runs this as a program: a crash is then one failed test.

Prints one JSON line per file, [number, format, damage, outcome], each announced before it is decoded.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
from clips import FFMPEG, SNDFILE, encoded

from psclap import audio
from psclap.errors import AudioError

MAX_DURATION_S = 5.0
FORMATS = [*SNDFILE, *FFMPEG]


def cut_off(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: rng.integers(len(data))])


def flipped_bits(data: bytearray, rng: np.random.Generator) -> bytes:
    for place in rng.integers(len(data), size=rng.integers(1, 30)):
        data[place] ^= 1 << rng.integers(8)
    return bytes(data)


def flipped_header(data: bytearray, rng: np.random.Generator) -> bytes:
    for place in rng.integers(min(200, len(data)), size=rng.integers(1, 6)):
        data[place] ^= 1 << rng.integers(8)
    return bytes(data)


def huge_field(data: bytearray, rng: np.random.Generator) -> bytes:
    width = int(rng.choice([2, 4, 8]))
    place = int(rng.integers(min(300, len(data) - 8)))
    data[place : place + width] = bytes([rng.choice([0xFF, 0x7F])]) + b"\xff" * (width - 1)
    return bytes(data)


def zeroed_run(data: bytearray, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 2000))
    data[start : start + length] = bytes(len(data[start : start + length]))
    return bytes(data)


def random_run(data: bytearray, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 2000))
    data[start : start + length] = rng.bytes(len(data[start : start + length]))
    return bytes(data)


def missing_run(data: bytearray, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(data)))
    return bytes(data[:start] + data[start + int(rng.integers(1, 2000)) :])


def twice(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data + data[rng.integers(len(data)) :])


def head_then_garbage(data: bytearray, rng: np.random.Generator) -> bytes:
    kept = int(rng.choice([4, 12, 40, 100, 400]))
    return bytes(data[:kept]) + rng.bytes(int(rng.integers(1, 5000)))


def other_head(data: bytearray, rng: np.random.Generator) -> bytes:
    head = CLIPS[FORMATS[rng.integers(len(FORMATS))]][: int(rng.choice([4, 12, 44, 200]))]
    return head + bytes(data[len(head) :])


def garbage(data: bytearray, rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(0, 5000)))


DAMAGES = [cut_off, flipped_bits, flipped_header, huge_field, zeroed_run, random_run]
DAMAGES += [missing_run, twice, head_then_garbage, other_head, garbage]


def clips() -> dict[str, bytes]:
    time_s = np.arange(8000) / 16000
    wave = (0.4 * np.sin(2 * np.pi * (200 + 900 * time_s) * time_s)).astype(np.float32)
    return {name: encoded(wave, 16000, name) for name in FORMATS}


def file(number: int) -> tuple[str, str, bytes]:
    """(format, damage, bytes) of the file of a number; the number decides everything."""
    name, damage = FORMATS[number % len(FORMATS)], DAMAGES[number // len(FORMATS) % len(DAMAGES)]
    return name, damage.__name__, damage(bytearray(CLIPS[name]), np.random.default_rng(number))


def outcome(data: bytes) -> str:
    try:
        wave = audio.load(data, 16000, max_duration_s=MAX_DURATION_S)
    except AudioError as error:
        return error.reason
    sound = wave.dtype == np.float32 and wave.ndim == 1 and 0 < len(wave) <= MAX_DURATION_S * 16000 + 1
    return "decoded" if sound and np.isfinite(wave).all() else "unsound"


if __name__ == "__main__":
    CLIPS = clips()
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        name, damage, data = file(number)
        print(json.dumps([number, name, damage]), flush=True)
        try:
            print(json.dumps([number, name, damage, outcome(data)]), flush=True)
        except Exception as error:
            print(json.dumps([number, name, damage, f"raised {error!r}"]), flush=True)
    # The peak of this program alone; `resource` would count that of the one that started it.
    status = Path("/proc/self/status").read_text()
    print(json.dumps(["peak_bytes", 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])]))
