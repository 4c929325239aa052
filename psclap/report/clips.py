"""Clips as a page plays them: MP3 in data: URIs.

MP3, as every browser plays it (Safari learnt Ogg Opus late); 16 kHz, mono, 40 kbit/s: about 5 kB a second.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import soundfile

from psclap import audio
from psclap.decoding import Wave
from psclap.shards.index import ShardIndex

MAX_DURATION_S = 10.0
_SAMPLE_RATE_HZ = 16000
_MP3_LEVEL = 0.8  # 40 kbit/s. From 0.9 on frames have no room for LAME's header, and players add its padding.


@dataclass(frozen=True)
class Clip:
    """One clip of the index: what is said about it, and its sound."""

    key: str
    tags: tuple[str, ...]
    transcript: str
    duration_s: float  # of the whole clip
    played_s: float  # of what `uri` holds: its beginning
    uri: str


class PlayableClips:
    """The clips of an index as `Clip`s, each made once."""

    def __init__(self, index: ShardIndex):
        self._index = index
        self._made: dict[int, Clip] = {}

    def of(self, row: int) -> Clip:
        """One clip. Raises PsclapError where its shard is missing or damaged."""
        row = int(row)
        if row not in self._made:
            self._made[row] = self._make(row)
        return self._made[row]

    def _make(self, row: int) -> Clip:
        columns = ["key", "intrinsic_tags", "situational_tags", "transcript", "num_samples"]
        values = self._index.take([row], columns).to_pylist()[0]
        duration_s = values["num_samples"] / self._index.sample_rate_hz
        return Clip(
            key=values["key"],
            tags=tuple(values["intrinsic_tags"] + values["situational_tags"]),
            transcript=values["transcript"],
            duration_s=duration_s,
            played_s=min(duration_s, MAX_DURATION_S),
            uri=clip_uri(self._index, row, MAX_DURATION_S),
        )


def clip_uri(index: ShardIndex, row: int, max_duration_s: float) -> str:
    """At most the first `max_duration_s` of a clip as a data: URI; equal clips give equal URIs."""
    rate_hz = index.sample_rate_hz
    return wave_uri(index.read_clip(row, 0, round(max_duration_s * rate_hz)), rate_hz)


def wave_uri(wave: Wave, sample_rate_hz: int) -> str:
    """A wave as a data: URI; equal waves give equal URIs."""
    mp3 = encode_mp3(audio.resample(wave, sample_rate_hz, _SAMPLE_RATE_HZ))
    return f"data:audio/mpeg;base64,{base64.b64encode(mp3).decode()}"


def encode_mp3(wave: Wave) -> bytes:
    """MP3 bytes of a wave at 16 kHz; values outside [-1, 1] are clipped. Equal waves give equal bytes."""
    buffer = io.BytesIO()
    soundfile.write(
        buffer,
        np.clip(wave, -1.0, 1.0),
        _SAMPLE_RATE_HZ,
        format="MP3",
        bitrate_mode="CONSTANT",
        compression_level=_MP3_LEVEL,
    )
    return buffer.getvalue()
