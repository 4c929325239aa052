"""Files to mono waves by libsndfile, and by FFmpeg (PyAV) for MP3 and the containers that libsndfile does not know.

Files are not to be trusted. They are decoded in blocks, so that no memory is taken on a header's word and the limit
of a duration holds for what comes out, not only for what was promised. FFmpeg sees bytes only, never a name or a
URL, and only the containers listed here (a playlist would make it open other files).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import soundfile

from psclap import containers
from psclap.errors import AudioError

Wave = np.ndarray

MIN_SAMPLE_RATE_HZ = 1_000
MAX_SAMPLE_RATE_HZ = 384_000
MAX_CHANNELS = 64
MAX_DURATION_S = 3600.0
"""Without a limit of the caller's: an hour, and not more samples than an hour at 48 kHz has (0.7 GB)."""
MAX_NUM_SAMPLES = 3600 * 48_000

_BLOCK_VALUES = 1 << 20
_UNKNOWN_LENGTH = 0x7FFF_FFFF_FFFF_FFFF  # libsndfile, of a FLAC written to a pipe
_FORMAT_NOT_RECOGNISED, _LOST_SYNC = 1, 158  # of libsndfile's errors
_LEFT_TO_FFMPEG = {_FORMAT_NOT_RECOGNISED, 4, 18, 161}  # and encodings it does not know; Ogg FLAC of other writers
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg,aac,asf,flv,mpegts,flac,mp3,wav,w64,aiff,caf,au,ac3,eac3,amr,wv,tta,ape"
)
_FFMPEG_TOLERANCE_S = 0.25  # a container's duration counts priming and padding: some codec frames


@dataclass(frozen=True)
class _Track:
    """An open file. `declared_num_samples` is the container's promise, None where it makes none."""

    sample_rate_hz: int
    blocks: Iterator[Wave]
    declared_num_samples: int | None
    tolerance_num_samples: int = 0


def decode_part(stream: BinaryIO, start: int, num_samples: int) -> tuple[Wave, int]:
    """Decodes at most `num_samples` samples from `start`; returns (wave, sample_rate_hz)."""
    with _open(stream, start, num_samples) as track:
        blocks = []
        for block in track.blocks:
            blocks.append(block[:num_samples])
            num_samples -= len(blocks[-1])
            if num_samples <= 0:
                break
        return _joined(blocks), track.sample_rate_hz


def decode_whole(
    stream: BinaryIO, start: int = 0, max_duration_s: float | None = None, *, strict: bool
) -> tuple[Wave, int]:
    """Decodes from sample `start` to the end; returns (wave, sample_rate_hz). Raises as `opened_whole`."""
    with opened_whole(stream, start, max_duration_s, strict=strict) as (sample_rate_hz, blocks):
        return _joined([*blocks]), sample_rate_hz


@contextmanager
def opened_whole(
    stream: BinaryIO, start: int = 0, max_duration_s: float | None = None, *, strict: bool
) -> Iterator[tuple[int, Iterator[Wave]]]:
    """The sample rate in hertz, and the blocks of the wave from sample `start` to the end, decoded when asked for.

    Raises AudioError("too long") beyond `max_duration_s` (MAX_DURATION_S and MAX_NUM_SAMPLES where None), by what the
    file declares or by what it decodes to, "empty" and "non-finite", and, where `strict`, "truncated" for less than it
    declares; what only the end of the file shows, at the end of the blocks.
    """
    with _open(stream, start) as track:
        limit = _max_num_samples(track.sample_rate_hz, max_duration_s)
        if track.declared_num_samples is not None:
            declared = track.declared_num_samples - start - track.tolerance_num_samples
            _check_length(declared, limit, track.sample_rate_hz)
        yield track.sample_rate_hz, _checked_blocks(track, start, limit, strict)


def _checked_blocks(track: _Track, start: int, limit: float, strict: bool) -> Iterator[Wave]:
    num_samples, declared = 0, track.declared_num_samples
    for block in track.blocks:
        num_samples += len(block)
        _check_length(num_samples, limit, track.sample_rate_hz)
        yield check_finite(block)
    if not num_samples:
        raise _empty()
    if strict and declared is not None and start + num_samples < declared - track.tolerance_num_samples:
        raise AudioError("truncated", f"it declares {declared} samples and holds {num_samples}; fetch it again")


def check_finite(wave: Wave) -> Wave:
    """The wave itself; raises AudioError("non-finite") for a NaN or an infinity in it."""
    if not np.isfinite(wave).all():
        raise AudioError("non-finite", "it holds NaN or infinite samples; write it again")
    return wave


def _max_num_samples(sample_rate_hz: int, max_duration_s: float | None) -> float:
    if max_duration_s is None:
        return min(MAX_DURATION_S * sample_rate_hz, MAX_NUM_SAMPLES)
    return max_duration_s * sample_rate_hz + 0.5  # a duration computed from samples gives these samples again


def _check_length(num_samples: int, limit: float, sample_rate_hz: int) -> None:
    if num_samples > limit:
        raise AudioError(
            "too long",
            f"it has {num_samples / sample_rate_hz:.3f} s or more, the limit is {limit / sample_rate_hz:.3f} s; "
            "cut it or raise the limit",
        )


def _joined(blocks: list[Wave]) -> Wave:
    if not sum(map(len, blocks)):
        raise _empty()
    return check_finite(blocks[0] if len(blocks) == 1 else np.concatenate(blocks))


def _mean(frames: np.ndarray) -> Wave:
    """The mono wave of (num_samples, num_channels). What overflows is found by `check_finite`."""
    if frames.shape[1] == 1:
        return frames[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):
        return frames.mean(axis=1, dtype=np.float32)


def _check_header(sample_rate_hz: int, num_channels: int) -> None:
    if not MIN_SAMPLE_RATE_HZ <= sample_rate_hz <= MAX_SAMPLE_RATE_HZ:
        rule = f"from {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz"
        raise AudioError("unreadable", f"its sample rate is {sample_rate_hz} Hz, expected {rule}; mend its header")
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise AudioError("unreadable", f"it has {num_channels} channels, expected 1 to {MAX_CHANNELS}; mix it down")


@contextmanager
def _open(stream: BinaryIO, start: int, num_samples: int = _BLOCK_VALUES) -> Iterator[_Track]:
    """The track from sample `start`, in blocks of at most `num_samples`; what a decoder raises is an AudioError."""
    try:
        # By its descriptor, a file is read without calling Python; and neither way does libsndfile see its name,
        # from whose suffix it would guess.
        file = soundfile.SoundFile(stream.fileno() if isinstance(stream, io.FileIO) else stream, closefd=False)
    except soundfile.LibsndfileError as error:
        if error.code not in _LEFT_TO_FFMPEG:
            raise _unreadable("libsndfile", error.error_string) from error
        file = None
    if file is not None:
        with file:
            if _is_decoded_well(stream, file):
                _check_header(file.samplerate, file.channels)
                blocks = _sndfile_blocks(stream, file, start, num_samples)
                yield _Track(int(file.samplerate), blocks, file.frames)
                return
    stream.seek(0)
    with _ffmpeg_track(stream, start) as track:
        yield track


def _empty() -> AudioError:
    return AudioError("empty", "it decodes to no samples; fetch it again or leave it out")


def _unreadable(decoder: str, message: str) -> AudioError:
    return AudioError(
        "unreadable", f"{decoder} cannot decode it ({message.rstrip('.')}); fetch it again or convert it to FLAC"
    )


def _is_decoded_well(stream: BinaryIO, file: soundfile.SoundFile) -> bool:
    """Whether libsndfile decodes it to its end and in blocks; FFmpeg does the rest.

    The end of a FLAC or a WAV that was written to a pipe libsndfile does not find, that of an MP3 it guesses. And
    after every block soundfile seeks to where it is, which in an MP3 garbles the next samples.
    """
    if file.subtype.startswith("MPEG") or file.frames == _UNKNOWN_LENGTH:
        return False
    return file.frames > 0 or not containers.data_size_is_open(stream)


def _sndfile_blocks(stream: BinaryIO, file: soundfile.SoundFile, start: int, num_samples: int) -> Iterator[Wave]:
    position, block_size = min(start, file.frames), max(1, min(num_samples, _BLOCK_VALUES // file.channels))
    try:
        if position:
            _seek(file, position)
        # A read at the end costs a seek in libsndfile, so the end is counted.
        while position < file.frames and len(frames := file.read(block_size, dtype="float32", always_2d=True)):
            yield _mean(frames)
            position += len(frames)
    except soundfile.LibsndfileError as error:
        if error.code == _LOST_SYNC and stream.tell() == stream.seek(0, io.SEEK_END):
            raise AudioError("truncated", "its FLAC stream ends before its end; fetch it again") from error
        raise _unreadable("libsndfile", error.error_string) from error


def _seek(file: soundfile.SoundFile, start: int) -> None:
    """To the exact sample: lossy codecs depend on what came before, so there all of it is decoded."""
    if file.format == "FLAC" or file.subtype.startswith("PCM"):
        file.seek(start)
        return
    block_size = _BLOCK_VALUES // file.channels
    while start > 0 and (num_read := len(file.read(min(block_size, start), always_2d=True))):
        start -= num_read


@contextmanager
def _ffmpeg_track(stream: BinaryIO, start: int) -> Iterator[_Track]:
    import av  # only the files that libsndfile does not know need it

    try:
        with av.open(stream, options={"format_whitelist": _CONTAINERS}, metadata_errors="replace") as container:
            audio = next(iter(container.streams.audio), None)
            if audio is None or audio.codec_context is None:
                raise _unreadable("FFmpeg", "no audio stream of a known codec")
            frames = container.decode(audio)
            first = next(frames, None)
            if first is None:
                raise _empty()
            rate_hz = first.sample_rate
            _check_header(rate_hz, first.layout.nb_channels)
            declared = _declared_duration_s(stream, container, audio)
            yield _Track(
                rate_hz,
                _from(start, _ffmpeg_blocks(first, frames, av.AudioResampler("flt"))),
                None if declared is None else round(declared * rate_hz),
                round(_FFMPEG_TOLERANCE_S * rate_hz),
            )
    except av.FFmpegError as error:
        raise _unreadable("FFmpeg", error.strerror or type(error).__name__) from error


def _declared_duration_s(stream: BinaryIO, container: Any, audio: Any) -> float | None:
    """What MP4, Matroska and a Xing header say; any other duration is FFmpeg's guess.

    Matroska states that of its longest stream, so only with one stream it is the sound's.
    """
    name = container.format.name
    if audio.duration is not None and ("mp4" in name or (name == "mp3" and containers.mp3_states_length(stream))):
        return float(audio.duration * audio.time_base)
    if "matroska" in name and container.duration is not None and len(container.streams) == 1:
        return container.duration / 1_000_000
    return None


def _ffmpeg_blocks(first: Any, rest: Iterator[Any], packer: Any) -> Iterator[Wave]:
    frame = first
    while frame is not None:
        if _shape(frame) != _shape(first):
            change = f"from {_shape(first)} to {_shape(frame)}"
            raise _unreadable("FFmpeg", f"its rate, channels or format change {change}; write it again with one")
        # PyAV reads past the end of a planar frame of 8 channels and more (a segmentation fault), so its samples are
        # interleaved first; that scales integers to [-1, 1] too.
        for packed in packer.resample(frame):
            yield _mean(packed.to_ndarray().reshape(-1, frame.layout.nb_channels))
        frame = next(rest, None)


def _shape(frame: Any) -> tuple[int, str, str]:
    return frame.sample_rate, frame.layout.name, frame.format.name


def _from(start: int, blocks: Iterator[Wave]) -> Iterator[Wave]:
    for block in blocks:
        yield block[start:]
        start = max(0, start - len(block))
