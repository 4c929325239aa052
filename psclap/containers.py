"""Does an audio file hold all that it promises? Read from its container, without decoding.

libsndfile reads a file that is cut off as a shorter one and FFmpeg mostly does too, so the promise is checked here:
the length of the chunk of samples in WAV, RF64, W64, AIFF, AU and CAF, of the boxes of MP4, of the segment of
Matroska and in the Xing header of MP3, and the end-of-stream flag of Ogg. Formats that state a length in samples or
seconds (FLAC, the Xing header, MP4, Matroska) are checked after decoding too. AAC without a container, WMA and MP3
without a Xing header promise nothing.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from psclap.errors import AudioError

_MAX_CHUNKS = 1000
_MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
_OGG_END_OF_STREAM = 0x04
_EBML, _MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_MAX_XING_OFFSET = 2048  # within the first frame, which padding may precede
_XING_HAS_FRAMES, _XING_HAS_BYTES = 0x01, 0x02
# What ffmpeg, sox and arecord write where they cannot come back to fill in the length: 0, or 2 GiB less a little
# and more. A file of that length is too long for a clip anyway.
_OPEN_END_32 = 0x7FFFF000
_OPEN_END_64 = 1 << 62


@dataclass(frozen=True)
class _Layout:
    """How a family of containers writes its chunks: an identifier, a size, a body, padding."""

    magic: bytes
    header_bytes: int
    data_id: bytes
    size_format: str
    id_bytes: int = 4
    align: int = 2
    size_counts_head: bool = False

    @property
    def head_bytes(self) -> int:
        return self.id_bytes + struct.calcsize(self.size_format)

    @property
    def open_end(self) -> int:
        return _OPEN_END_32 if self.size_format.endswith("I") else _OPEN_END_64


_LAYOUTS = (
    _Layout(b"RIFF", 12, b"data", "<I"),
    _Layout(b"RIFX", 12, b"data", ">I"),
    _Layout(b"RF64", 12, b"data", "<I"),
    _Layout(b"FORM", 12, b"SSND", ">I"),
    _Layout(b"caff", 8, b"data", ">q", align=1),
    _Layout(b"riff", 40, b"data", "<q", id_bytes=16, align=8, size_counts_head=True),
)


def check_whole(stream: BinaryIO) -> None:
    """Raises AudioError("truncated") where the container promises more than the file holds.

    A length that its writer left open (a stream to a pipe) promises nothing, nor does a format not named above.
    """
    num_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    magic, kind = stream.read(4), stream.read(4)
    stream.seek(4)
    if magic == b"OggS":
        _check_ogg(stream, num_bytes)
    elif magic == b".snd":
        _check_au(stream, num_bytes)
    elif magic == _EBML:
        _check_matroska(stream, num_bytes)
    elif magic[:3] == b"ID3" or magic[:1] == b"\xff":
        flags, start, size = _xing(stream)
        if flags & _XING_HAS_BYTES:
            _check_end("MP3 stream", start, size, num_bytes)
    elif kind == b"ftyp":
        _check_boxes(stream, num_bytes)
    else:
        for layout in _LAYOUTS:
            if magic == layout.magic:
                _check_chunks(stream, layout, num_bytes)
    stream.seek(0)


def data_size_is_open(stream: BinaryIO) -> bool:
    """Whether this is a WAV whose data chunk says 0 bytes although samples follow, not just further chunks."""
    position = stream.tell()
    num_bytes = stream.seek(0, io.SEEK_END)
    chunks = list(_chunks(stream, _LAYOUTS[0], num_bytes)) if _starts_with(stream, b"RIFF") else []
    stream.seek(position)
    sizes = [size for name, _, size in chunks if name == b"data"]
    ends = [start + size + size % 2 for _, start, size in chunks]
    return sizes[:1] == [0] and ends[-1] != num_bytes


def mp3_states_length(stream: BinaryIO) -> bool:
    """Whether the first frame of an MP3 counts its frames (a Xing or Info header); else its length is a guess."""
    position = stream.tell()
    flags, _, _ = _xing(stream)
    stream.seek(position)
    return bool(flags & _XING_HAS_FRAMES)


def _xing(stream: BinaryIO) -> tuple[int, int, int]:
    """(flags, start of its frame, bytes from there to the end of the last) of an MP3's Xing header; flags 0: none."""
    stream.seek(0)
    head = stream.read(10)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:  # its size has 7 bits per byte
        start = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    stream.seek(start)
    frame = stream.read(_MAX_XING_OFFSET)
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    sync = frame.rfind(b"\xff", 0, max(place, 0))
    if sync < 0 or len(frame) < place + 16:
        return 0, 0, 0
    flags = frame[place + 7]
    size_place = place + (12 if flags & _XING_HAS_FRAMES else 8)
    return flags, start + sync, int.from_bytes(frame[size_place : size_place + 4], "big")


def _starts_with(stream: BinaryIO, magic: bytes) -> bool:
    stream.seek(0)
    return stream.read(len(magic)) == magic


def _check_chunks(stream: BinaryIO, layout: _Layout, num_bytes: int) -> None:
    large_size = None
    for name, start, size in _chunks(stream, layout, num_bytes):
        if name == b"ds64":  # RF64: the sizes that 32 bits cannot hold; the data's follows the file's
            stream.seek(start)
            large_size = int.from_bytes(stream.read(16)[8:], "little")
        elif name == layout.data_id:
            if size == 0xFFFFFFFF and large_size is not None:
                size = large_size
            elif size >= layout.open_end:
                return
            _check_end("chunk of samples", start, size, num_bytes)
            return


def _chunks(stream: BinaryIO, layout: _Layout, num_bytes: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of the body, bytes of the body) of each chunk whose head is there."""
    position = layout.header_bytes
    for _ in range(_MAX_CHUNKS):
        if position + layout.head_bytes > num_bytes:
            return
        stream.seek(position)
        head = stream.read(layout.head_bytes)
        size = struct.unpack(layout.size_format, head[layout.id_bytes :])[0]
        if layout.size_counts_head:
            size -= layout.head_bytes
        if size < 0:
            return
        start = position + layout.head_bytes
        yield head[:4], start, size
        position = start + size + -size % layout.align


def _check_au(stream: BinaryIO, num_bytes: int) -> None:
    head = stream.read(8)
    if len(head) == 8:
        start, size = struct.unpack(">II", head)
        if size < _OPEN_END_32:
            _check_end("chunk of samples", start, size, num_bytes)


def _check_boxes(stream: BinaryIO, num_bytes: int) -> None:
    """MP4's boxes (ISO/IEC 14496-12, section 4.2); a size of 0 means to the end of the file, 1 a size of 64 bits."""
    position = 0
    for _ in range(_MAX_CHUNKS):
        stream.seek(position)
        head = stream.read(16)
        if len(head) < 8:
            return
        size = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4], "big")
        if size < 8:
            return
        _check_end("MP4 box", position, size, num_bytes)
        position += size


def _check_matroska(stream: BinaryIO, num_bytes: int) -> None:
    """The segment follows the EBML header (RFC 8794, section 4); a size of ones only was left open."""
    stream.seek(4)
    header_bytes = _ebml_size(stream)
    if header_bytes is not None:
        stream.seek(header_bytes, io.SEEK_CUR)
        if stream.read(4) == _MATROSKA_SEGMENT and (size := _ebml_size(stream)) is not None:
            _check_end("Matroska segment", stream.tell(), size, num_bytes)


def _ebml_size(stream: BinaryIO) -> int | None:
    """A number whose leading zero bits tell how many bytes follow; None for none there, or a size left open."""
    first = stream.read(1)
    if not first or not first[0]:
        return None
    num_more = 8 - first[0].bit_length()
    value = int.from_bytes(first + stream.read(num_more), "big") - (1 << 7 * (num_more + 1))
    return None if value == (1 << 7 * (num_more + 1)) - 1 else value


def _check_ogg(stream: BinaryIO, num_bytes: int) -> None:
    """The last page has to be whole and flagged as the last (RFC 3533, section 6)."""
    tail_start = max(0, num_bytes - 2 * _MAX_OGG_PAGE_BYTES)
    stream.seek(tail_start)
    tail = stream.read()
    place = tail.rfind(b"OggS\0")
    page = tail[place:] if place >= 0 else b""
    if len(page) < 27 or len(page) < 27 + page[26]:
        raise AudioError("truncated", "its last Ogg page is cut off; fetch the file again")
    _check_end("last Ogg page", tail_start + place, 27 + page[26] + sum(page[27 : 27 + page[26]]), num_bytes)
    if not page[5] & _OGG_END_OF_STREAM:
        raise AudioError("truncated", "its last Ogg page lacks the end-of-stream flag; fetch the file again")


def _check_end(what: str, start: int, size: int, num_bytes: int) -> None:
    if start + size > num_bytes:
        raise AudioError(
            "truncated", f"its {what} has {size} bytes, the file holds {max(num_bytes - start, 0)}; fetch it again"
        )
