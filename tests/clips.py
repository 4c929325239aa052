"""Small sounds and encoders for the tests of audio: libsndfile's by soundfile, FFmpeg's by PyAV."""

import io
import tempfile
from fractions import Fraction

import av
import numpy as np
import soundfile

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
SNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "wav-float": ("WAV", "FLOAT"),
    "wav-adpcm": ("WAV", "IMA_ADPCM"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
FFMPEG = {
    "m4a": ("ipod", "aac", {"movflags": "faststart"}),
    "alac": ("ipod", "alac", {"movflags": "faststart"}),
    "mp4-pcm": ("mov", "pcm_s16le", {"movflags": "faststart"}),
    "aac": ("adts", "aac", {}),
    "webm": ("webm", "libopus", {}),
    "mka": ("matroska", "libmp3lame", {}),
    "mka-flac": ("matroska", "flac", {}),
    "ogg-flac": ("ogg", "flac", {}),
    "wma": ("asf", "wmav2", {}),
    "mp3-no-xing": ("mp3", "libmp3lame", {"write_xing": "0"}),
}


def encoded(frames: np.ndarray, rate_hz: int, name: str) -> bytes:
    """The bytes of a file; frames: (num_samples,) or (num_samples, num_channels) float32."""
    frames = frames.reshape(len(frames), -1)
    if name in SNDFILE:
        buffer = io.BytesIO()
        format, subtype = SNDFILE[name]
        soundfile.write(buffer, frames, rate_hz, format=format, subtype=subtype)
        return buffer.getvalue()
    return _by_ffmpeg(frames, rate_hz, *FFMPEG[name])


def _by_ffmpeg(frames: np.ndarray, rate_hz: int, container: str, codec: str, options: dict[str, str]) -> bytes:
    layout = LAYOUTS[frames.shape[1]]
    with tempfile.NamedTemporaryFile() as file:  # a name, as `faststart` opens the file a second time
        with av.open(file.name, "w", format=container, options=options) as out:
            stream = out.add_stream(codec, rate=rate_hz, layout=layout)
            stream.bit_rate = 64_000 * frames.shape[1]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(frames.reshape(1, -1), np.float32), "flt", layout)
            frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), 0
            resampler = av.AudioResampler(stream.codec_context.format.name, layout, rate_hz)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(stream.encode(part))
            out.mux(stream.encode(None))
        return file.read()


def can_encode(name: str, rate_hz: int, num_channels: int) -> bool:
    """Whether the encoder (not the decoder) of a format takes the rate and the channels."""
    if name in ("opus", "webm"):
        return rate_hz in (8000, 16000, 48000)
    return num_channels <= 2 or name not in ("wav-adpcm", "mp3", "mka", "wma", "mp3-no-xing")
