"""Sound in and out: decode, mono, resample, crop, encode.

A wave is a float32 array of shape (num_samples,) in [-1, 1]. Durations are in seconds (`_s`), lengths in
samples (`num_samples`), rates in hertz (`_hz`); the name always says which.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from psclap.errors import AudioError

Wave = np.ndarray


def decode(source: bytes | str | Path | BinaryIO, start: int = 0, num_samples: int | None = None) -> tuple[Wave, int]:
    """Decodes a file or its bytes to a mono wave at the file's own rate; channels are averaged.

    Only `num_samples` frames from frame `start` are decoded (all where None). Returns (wave, sample_rate_hz).
    Raises AudioError where the file is missing, empty, unreadable, or holds a value that is not finite.
    """
    if isinstance(source, bytes):
        if not source:
            raise AudioError("empty", "the file has no bytes")
        source = io.BytesIO(source)
    elif isinstance(source, (str, Path)):
        source = _check_file(Path(source))
    try:
        with soundfile.SoundFile(source) as file:
            if start:
                file.seek(start)
            frames = file.read(-1 if num_samples is None else num_samples, dtype="float32", always_2d=True)
            sample_rate_hz = int(file.samplerate)
    except soundfile.SoundFileError as error:
        raise AudioError("unreadable", f"libsndfile cannot decode it ({_message(error)})") from error
    if not len(frames):
        raise AudioError("empty", "it decodes to no samples")
    if not np.isfinite(frames).all():
        raise AudioError("non-finite", "it holds NaN or infinite samples")
    return (frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1)), sample_rate_hz


def _message(error: soundfile.SoundFileError) -> str:
    """Libsndfile's own words, without the name of the file."""
    return str(getattr(error, "error_string", error)).rstrip(".")


def _check_file(path: Path) -> str:
    if not path.is_file():
        raise AudioError("missing", "there is no such file")
    if path.stat().st_size == 0:
        raise AudioError("empty", "the file has no bytes")
    return str(path)


def load(source: bytes | str | Path, sample_rate_hz: int) -> Wave:
    """Decodes a whole clip and resamples it to `sample_rate_hz`; errors as `decode`."""
    wave, own_rate_hz = decode(source)
    return resample(wave, own_rate_hz, sample_rate_hz)


def resample(wave: Wave, from_rate_hz: int, to_rate_hz: int) -> Wave:
    """Band-limited resampling (soxr, high quality); the wave itself where the rates are equal."""
    if from_rate_hz == to_rate_hz:
        return wave
    return soxr.resample(wave, from_rate_hz, to_rate_hz).astype(np.float32, copy=False)


def encode_flac(wave: Wave, sample_rate_hz: int) -> bytes:
    """16-bit FLAC bytes; values outside [-1, 1] are clipped. Equal waves give equal bytes."""
    buffer = io.BytesIO()
    write_flac(buffer, wave, sample_rate_hz)
    return buffer.getvalue()


def write_flac(target: Path | BinaryIO, wave: Wave, sample_rate_hz: int) -> None:
    """As `encode_flac`, to a file. By a path, libsndfile calls no Python code, in which a Ctrl-C would get lost."""
    soundfile.write(target, np.clip(wave, -1.0, 1.0), sample_rate_hz, format="FLAC", subtype="PCM_16")


def crop_start(num_samples: int, max_num_samples: int | None, rng: np.random.Generator) -> int:
    """The first sample of a random crop, uniform over every place where the crop fits; 0 for a short clip."""
    if max_num_samples is None or num_samples <= max_num_samples:
        return 0
    return int(rng.integers(num_samples - max_num_samples + 1))
