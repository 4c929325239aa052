"""Sound in and out: decode, mono, resample, crop, encode.

A wave is a float32 array of shape (num_samples,) in [-1, 1]. Durations are in seconds (`_s`), lengths in
samples (`num_samples`), rates in hertz (`_hz`); the name always says which.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from psclap import containers, decoding, storage
from psclap.decoding import Wave
from psclap.errors import AudioError, PsclapError

# flac -2: 1 to 3 % larger than the default -5, decoded a tenth faster and encoded a third faster.
_FLAC_LEVEL = 0.25
_WRITTEN_KINDS = (".wav", ".flac", ".ogg", ".mp3")


def decode(source: bytes | str | Path | BinaryIO, start: int = 0, num_samples: int | None = None) -> tuple[Wave, int]:
    """Decodes a file or its bytes to a mono wave at the file's own rate; channels are averaged.

    Only `num_samples` samples from sample `start` are decoded (all where None). Returns (wave, sample_rate_hz).
    Raises AudioError where the file is missing, empty, unreadable, or holds a value that is not finite. A file
    that is cut off gives what is left of it where its format allows; `load` refuses that.
    """
    with _opened(source) as stream:
        if num_samples is None:
            return decoding.decode_whole(stream, start, strict=False)
        return decoding.decode_part(stream, start, num_samples)


def decode_flac(flac: bytes, start: int, num_samples: int) -> Wave:
    """(num_samples,) from sample `start` on of FLAC that `encode_flac` made; only these frames are decoded.

    What foreign files need `decode` for is left out: this is what every training clip passes. Raises AudioError
    "unreadable" and "truncated" for bytes that have been damaged since.
    """
    try:
        with soundfile.SoundFile(_Bytes(flac)) as file:
            if start:
                file.seek(start)
            wave = file.read(num_samples, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise AudioError("unreadable", f"libsndfile cannot decode it ({error.error_string.rstrip('.')})") from error
    if wave.shape != (num_samples,):
        raise AudioError("truncated", f"{len(wave)} of {num_samples} samples from sample {start} on are there")
    return wave


def load(source: bytes | str | Path | BinaryIO, sample_rate_hz: int, *, max_duration_s: float | None = None) -> Wave:
    """Decodes a whole clip to a mono wave at `sample_rate_hz`, for files whose origin is not known to be sound.

    `source` is a path, a URL, a reference with a byte range (psclap/storage.py), the bytes, or a binary file read
    from where it stands. AAC in MP4 comes without its encoder's delay, but up to one codec frame (64 ms at 16 kHz)
    of padding may follow it; AAC without a container (.aac) and MP3 without a Xing header keep the delay, and WMA
    loses up to a frame at either end.
    Raises AudioError with the reason "missing", "empty", "unreadable", "non-finite", "truncated" (the file holds
    less than it declares) or "too long" (`max_duration_s`; where None, an hour, psclap/decoding.py), and PsclapError
    where a remote source cannot be read: an outage is no fault of the clip.
    """
    blocks = [*load_blocks(source, sample_rate_hz, max_duration_s=max_duration_s)]
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def load_blocks(
    source: bytes | str | Path | BinaryIO, sample_rate_hz: int, *, max_duration_s: float | None = None
) -> Iterator[Wave]:
    """Yields the parts of the wave that `load` returns, as they are decoded: of hours, a little at a time.

    Raises as `load`, where the file ends too soon after its last part.
    """
    with _opened(source) as stream:
        containers.check_whole(stream)
        with decoding.opened_whole(stream, max_duration_s=max_duration_s, strict=True) as (own_rate_hz, blocks):
            yield from _resampled(blocks, own_rate_hz, sample_rate_hz)


def _resampled(blocks: Iterator[Wave], from_rate_hz: int, to_rate_hz: int) -> Iterator[Wave]:
    """The parts of what `resample` makes of the whole, sample for sample."""
    if from_rate_hz == to_rate_hz:
        yield from blocks
        return
    resampler = soxr.ResampleStream(from_rate_hz, to_rate_hz, 1, dtype="float32")
    for block in blocks:
        yield decoding.check_finite(resampler.resample_chunk(block))
    yield decoding.check_finite(resampler.resample_chunk(np.empty(0, np.float32), last=True))


@contextmanager
def _opened(source: bytes | str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """The source as a binary stream that can seek. Raises AudioError "missing" and "empty"."""
    if isinstance(source, (str, Path)):
        location, _, length = storage.parse_reference(source)
        if length is None and not storage.is_remote(location):
            with _open_file(Path(location)) as stream:
                yield stream
            return
        source = _read(source)
    data = bytes(source) if isinstance(source, (bytes, bytearray, memoryview)) else _read_stream(source)
    if not data:
        raise AudioError("empty", "the file has no bytes; fetch it again")
    yield _Bytes(data)


def _read_stream(source: BinaryIO) -> bytes:
    data = source.read() if hasattr(source, "read") else source
    if not isinstance(data, bytes):
        raise AudioError("unreadable", f"{type(source).__name__} is neither a path, bytes nor a file opened as binary")
    return data


class _Bytes(io.BytesIO):
    """Libsndfile seeks before the start in some broken files, and cffi would print what a callback raises."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return super().seek(max(offset, 0) if whence == io.SEEK_SET else offset, whence)


def _open_file(path: Path) -> io.FileIO:
    if not path.is_file():
        raise AudioError("missing", "there is no such file; check its path")
    if path.stat().st_size == 0:
        raise AudioError("empty", "the file has no bytes; fetch it again")
    try:
        return io.FileIO(path)
    except OSError as error:
        raise AudioError("unreadable", f"it cannot be opened ({error.strerror}); check its permissions") from error


def _read(reference: str | Path) -> bytes:
    location, offset, length = storage.parse_reference(reference)
    if length is not None and Path(location).is_file() and Path(location).stat().st_size < offset + length:
        raise AudioError("truncated", f"{location} ends before byte {offset + length}; fetch it again")
    try:
        return storage.read(reference)
    except FileNotFoundError as error:
        raise AudioError("missing", "there is no such file; check its path") from error


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
    soundfile.write(
        target, np.clip(wave, -1.0, 1.0), sample_rate_hz, format="FLAC", subtype="PCM_16", compression_level=_FLAC_LEVEL
    )


def write(path: Path, wave: Wave, sample_rate_hz: int) -> None:
    """Writes a 16-bit file of the kind that its name says, such as out.wav; values outside [-1, 1] are clipped.

    Raises as `check_written_kind`, and PsclapError where it cannot be written.
    """
    check_written_kind(path)
    try:
        if path.suffix.lower() == ".flac":
            write_flac(path, wave, sample_rate_hz)
        else:
            soundfile.write(path, np.clip(wave, -1.0, 1.0), sample_rate_hz)
    except (OSError, soundfile.LibsndfileError) as error:
        raise PsclapError(f"{path} cannot be written ({error}); name a file in a folder that is yours") from error


def check_written_kind(path: Path) -> None:
    """Raises PsclapError for a name of a kind that `write` does not make."""
    if path.suffix.lower() not in _WRITTEN_KINDS:
        raise PsclapError(f"{path}: give a name that ends in one of {', '.join(_WRITTEN_KINDS)}")


def crop_start(num_samples: int, max_num_samples: int | None, rng: np.random.Generator) -> int:
    """The first sample of a random crop, uniform over every place where the crop fits; 0 for a short clip."""
    if max_num_samples is None or num_samples <= max_num_samples:
        return 0
    return int(rng.integers(num_samples - max_num_samples + 1))
