"""Audio files of every kind, whole and broken, through `audio.load` and `audio.decode`."""

import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
from collections import Counter
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from clips import FFMPEG, SNDFILE, can_encode, encoded

from psclap import audio, containers, decoding
from psclap.errors import AudioError
from psclap.storage import byte_range

RATES_HZ = (8000, 11025, 16000, 22050, 44100, 48000)
FORMATS = (*SNDFILE, *FFMPEG)
LOSSLESS = {"wav", "wav-float", "rf64", "w64", "aiff", "au", "caf", "flac", "alac", "mp4-pcm", "mka-flac", "ogg-flac"}
DELAYED = {"aac", "wma", "mp3-no-xing"}
"""Without a place for it in the file, the encoder's delay stays in the sound."""
SPEECH_FOLDER = Path(__file__).parent.parent / os.environ.get("PSCLAP_SPEECH_DATA", "../shared/data/speech")
CASES = [
    (name, rate_hz, channels)
    for name in FORMATS
    for rate_hz in RATES_HZ
    for channels in (1, 2, 6)
    if can_encode(name, rate_hz, channels)
]


def glide(rate_hz: int, seconds: float = 0.5) -> np.ndarray:
    """A tone that rises from 200 Hz: its place in time is plain to see."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.4 * np.sin(2 * np.pi * (200 + 900 * time_s) * time_s)).astype(np.float32)


def likeness(wave: np.ndarray, original: np.ndarray, max_lag: int) -> float:
    """The highest correlation of the original with the wave, which may come up to `max_lag` samples late or early."""
    size = len(wave) + len(original)
    products = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(original, size).conj(), size)
    lag = int(np.roll(products, max_lag)[: 2 * max_lag + 1].argmax()) - max_lag
    wave, original = wave[max(lag, 0) :], original[max(-lag, 0) :]
    length = min(len(wave), len(original))
    return float(np.corrcoef(wave[:length], original[:length])[0, 1])


def reason(source, **options) -> str:
    with pytest.raises(AudioError) as error:
        audio.load(source, 16000, **options)
    assert error.value.detail
    return error.value.reason


def channels_of(wave: np.ndarray, num_channels: int) -> np.ndarray:
    """Full, half, silent: channels whose mean is not one of them. The fourth of 5.1 carries no speech."""
    return np.stack([wave * gain for gain in (1.0, 0.5, 0.2, 0.0, 0.7, 0.3)[:num_channels]], axis=1)


@pytest.mark.parametrize(("name", "rate_hz", "num_channels"), CASES)
def test_every_format_rate_and_number_of_channels_decodes(name, rate_hz, num_channels):
    frames = channels_of(glide(rate_hz), num_channels)
    wave, original = audio.load(encoded(frames, rate_hz, name), rate_hz), frames.mean(axis=1)
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    if name in LOSSLESS:
        np.testing.assert_allclose(wave, original, atol=1e-4)
        return
    assert abs(len(wave) - len(original)) <= 2500  # two codec frames and a block of ADPCM
    assert likeness(wave, original, 2500 if name in DELAYED else 2) > 0.95
    middle = slice(len(original) // 4, len(original) // 2)
    assert wave[middle].std() == pytest.approx(original[middle].std(), rel=0.15)


@pytest.mark.parametrize("name", ["m4a", "mp4-pcm", "mka-flac", "wav", "flac"])
def test_eight_channels_decode(name):
    frames = np.stack([glide(16000)] * 8, axis=1)
    assert likeness(audio.load(encoded(frames, 16000, name), 16000), glide(16000), 2) > 0.99


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("start", "num_samples"), [(0, 500), (1234, 3000), (7000, 99_999), (3000, None)])
def test_a_partial_decode_is_the_slice_of_the_whole(name, start, num_samples):
    data = encoded(glide(16000), 16000, name)
    whole, part = audio.decode(data)[0], audio.decode(data, start, num_samples)[0]
    end = None if num_samples is None else start + num_samples
    np.testing.assert_allclose(part, whole[start:end], atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_small_blocks_give_the_same_wave(monkeypatch, name):
    data = encoded(np.stack([glide(16000), -glide(16000) / 2], axis=1), 16000, name)
    whole = audio.load(data, 16000)
    monkeypatch.setattr(decoding, "_BLOCK_VALUES", 1000)
    np.testing.assert_allclose(audio.load(data, 16000), whole, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_a_decode_that_starts_behind_the_end_is_empty(name):
    with pytest.raises(AudioError, match=r"^empty: "):
        audio.decode(encoded(glide(16000), 16000, name), 10**6, 100)


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "m4a"])
def test_every_kind_of_source_gives_the_same_wave(tmp_path, name):
    data = encoded(glide(22050), 22050, name)
    path, packed = tmp_path / "clip.raw", tmp_path / "clips.tar"  # the suffix says nothing
    path.write_bytes(data)
    packed.write_bytes(b"x" * 77 + data + b"y" * 55)
    wave = audio.load(data, 16000)
    sources = [path, str(path), f"file://{path}", byte_range(packed, 77, len(data)), io.BytesIO(data)]
    sources += [byte_range(f"file://{packed}", 77, len(data))]
    for source in sources:
        np.testing.assert_array_equal(audio.load(source, 16000), wave)
    with path.open("rb") as stream:
        np.testing.assert_array_equal(audio.load(stream, 16000), wave)
    assert reason(byte_range(packed, 77, len(data) + 56)) == "truncated"
    assert reason(byte_range(tmp_path / "none.tar", 0, 9)) == "missing"
    assert reason(f"file://{tmp_path}/none.wav") == "missing"


def test_bytes_that_are_no_audio_are_refused(tmp_path):
    (tmp_path / "empty.wav").touch()
    assert reason(tmp_path / "none.wav") == "missing"
    assert reason(tmp_path / "empty.wav") == reason(b"") == reason(io.BytesIO()) == "empty"
    assert reason(b"no sound at all" * 99) == reason(bytes(4096)) == "unreadable"


@pytest.mark.parametrize("playlist", ["#EXTM3U\n#EXTINF:1,\n{}\n", "ffconcat version 1.0\nfile {}\n"])
def test_a_playlist_opens_no_other_file(tmp_path, playlist):
    (tmp_path / "clip.wav").write_bytes(encoded(glide(16000), 16000, "wav"))
    assert reason(playlist.format(tmp_path / "clip.wav").encode()) == "unreadable"


@pytest.mark.parametrize("name", ["wav", "flac", "aiff", "au"])
def test_a_file_without_samples_is_empty(name):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(0, np.float32), 16000, format=name.upper())
    assert reason(buffer.getvalue()) == "empty"


def test_a_wav_without_samples_is_empty_though_other_chunks_follow():
    header = encoded(glide(16000), 16000, "wav")[:40]
    assert reason(header + bytes(4) + b"LIST" + struct.pack("<I", 4) + b"note") == "empty"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 3999, -1])
def test_values_that_are_not_finite_are_refused(value, place):
    wave = glide(16000)
    wave[place] = value
    assert reason(encoded(wave, 16000, "wav-float")) == "non-finite"


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in DELAYED])
def test_a_file_that_is_cut_off_is_truncated(name, kept):
    data = encoded(glide(16000, 3.0), 16000, name)
    assert len(audio.load(data, 16000)) >= 48_000
    assert reason(data[: round(kept * len(data))]) == "truncated"


@pytest.mark.parametrize("name", ["wav", "rf64", "w64", "aiff", "au", "caf", "flac", "m4a", "webm", "ogg", "opus"])
def test_one_missing_byte_is_noticed(name):
    data = encoded(glide(16000), 16000, name)
    assert reason(data[:-1]) == "truncated"


def test_an_ogg_whose_last_pages_are_gone_is_truncated():
    data = encoded(glide(16000, 20.0), 16000, "ogg")
    assert reason(data[: data.rindex(b"OggS")]) == "truncated"


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_wav_written_to_a_pipe_is_whole(size):
    """The length was left open: by ffmpeg all ones, by sox a little under 2 GiB, by others 0."""
    wave = glide(16000)
    data = bytearray(encoded(wave, 16000, "wav"))
    for place in (4, 40):
        data[place : place + 4] = struct.pack("<I", size)
    np.testing.assert_allclose(audio.load(bytes(data), 16000), wave, atol=1e-4)
    assert containers.data_size_is_open(io.BytesIO(data)) == (size == 0)


def with_length(flac: bytes, num_samples: int) -> bytes:
    """The FLAC with another total in STREAMINFO: 36 bits, the last before the 16 bytes of the MD5."""
    head, total, rest = flac[:21], int.from_bytes(flac[21:26], "big"), flac[26:]
    return head + (total >> 36 << 36 | num_samples).to_bytes(5, "big") + rest


def test_a_flac_written_to_a_pipe_is_whole():
    flac = encoded(glide(16000, 3.0), 16000, "flac")
    np.testing.assert_array_equal(audio.load(with_length(flac, 0), 16000), audio.load(flac, 16000))
    assert reason(with_length(flac, 48_001)) in ("truncated", "unreadable")
    assert reason(with_length(flac, 2**31)) == "too long"


@pytest.mark.parametrize("name", FORMATS)
def test_the_limit_of_the_duration_is_inside(name):
    data = encoded(glide(16000, 2.0), 16000, name)
    duration_s = len(audio.load(data, 16000)) / 16000
    assert len(audio.load(data, 16000, max_duration_s=duration_s)) == round(duration_s * 16000)
    assert reason(data, max_duration_s=1.5) == "too long"


def wav_header(rate_hz: int, num_channels: int) -> bytes:
    data = bytearray(encoded(glide(16000), 16000, "wav"))
    data[22:24], data[24:28] = struct.pack("<H", num_channels), struct.pack("<I", rate_hz)
    data[32:34] = struct.pack("<H", 2 * num_channels % 2**16)
    return bytes(data)


@cache
def hours_of_silence() -> bytes:
    return encoded(np.zeros(2 * 3600 * 8000, np.float32), 8000, "flac")


def hours_of_mp3() -> bytes:
    """A second of silence again and again, of no stated length."""
    return encoded(np.zeros(8000, np.float32), 8000, "mp3-no-xing")[45:] * 3700


BOMBS = {
    "1 Hz": (lambda: wav_header(1, 1), "unreadable"),
    "2 GHz": (lambda: wav_header(2_000_000_000, 1), "unreadable"),
    "65 channels": (lambda: wav_header(16000, 65), "unreadable"),
    "60,000 channels": (lambda: wav_header(16000, 60_000), "unreadable"),
    "2^31 samples": (lambda: with_length(encoded(glide(16000), 16000, "flac"), 2**31), "too long"),
    "2^36 samples": (lambda: with_length(encoded(glide(16000), 16000, "flac"), 2**36 - 1), "too long"),
    "2 h, declared": (lambda: hours_of_silence(), "too long"),
    "2 h, not declared": (lambda: with_length(hours_of_silence(), 0), "too long"),
    "2 h of MP3, not declared": (lambda: hours_of_mp3(), "too long"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("max_duration_s", [60.0, None])
def test_a_bomb_is_refused_in_little_memory(bomb, max_duration_s):
    make, expected = BOMBS[bomb]
    data = make()
    limit = 32e6 if max_duration_s or expected != "too long" or "not" not in bomb else 4.4 * 3600 * 16000
    tracemalloc.start()
    try:
        assert reason(data, max_duration_s=max_duration_s) == expected
        assert tracemalloc.get_traced_memory()[1] < limit + 2 * len(data)
    finally:
        tracemalloc.stop()


def test_a_part_of_a_file_longer_than_the_limit_decodes():
    data = hours_of_silence()
    assert len(audio.decode(data, 3700 * 8000, 500)[0]) == 500
    with pytest.raises(AudioError, match=r"^too long: .* the limit is 3600.000 s"):
        audio.decode(data)


def test_the_ceiling_without_a_limit_is_an_hour_and_its_samples_at_48_khz():
    assert decoding._max_num_samples(16000, None) == 3600 * 16000
    assert decoding._max_num_samples(384_000, None) == 3600 * 48_000


def run_corrupted(first: int, last: int) -> list[list]:
    script = Path(__file__).parent / "corrupted.py"
    command = [sys.executable, "-X", "faulthandler", str(script), str(first), str(last)]
    path = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path})
    lines = run.stdout.splitlines()
    assert run.returncode == 0, f"ended with {run.returncode} at {lines[-1:]}: {run.stderr[-2000:]}"
    assert "cffi" not in run.stderr
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("first", range(0, 1100, 275))
def test_corrupted_files_decode_or_are_refused(first):
    lines = run_corrupted(first, first + 275)
    outcomes = Counter(line[3] for line in lines if len(line) == 4)
    allowed = {"decoded", "empty", "unreadable", "non-finite", "truncated", "too long"}
    assert outcomes.total() == 275
    assert set(outcomes) <= allowed, [line for line in lines if len(line) == 4 and line[3] not in allowed]
    assert min(outcomes["decoded"], outcomes["unreadable"], outcomes["truncated"]) >= 15
    assert lines[-1][0] == "peak_bytes"
    assert lines[-1][1] < 300e6


def test_ffmpeg_is_loaded_only_for_the_files_that_need_it():
    code = "import sys; from psclap import audio; import numpy as np\n"
    code += "audio.decode(audio.encode_flac(np.ones(99), 8000)); print('av' in sys.modules)\n"
    code += "import contextlib\nwith contextlib.suppress(ValueError): audio.decode(bytes(4096))\n"
    code += "print('av' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]
    assert run.stderr == ""


def speech_clips() -> list[Path]:
    return [path for folder in sorted(SPEECH_FOLDER.glob("*")) for path in sorted(folder.glob("*.flac"))[:2]]


@pytest.mark.skipif(not speech_clips(), reason="no recordings; PSCLAP_SPEECH_DATA names their folder")
@pytest.mark.parametrize("name", ["m4a", "opus", "mp3", "ogg", "webm", "wma"])
def test_recorded_speech_survives_every_codec(name):
    for path in speech_clips():
        speech = audio.load(path, 16000, max_duration_s=60.0)
        wave = audio.load(encoded(speech, 16000, name), 16000)
        assert likeness(wave, speech, 2500 if name in DELAYED else 2) > 0.95, path.name


def test_stereo_of_libsndfile_and_of_ffmpeg_are_one_mono_wave():
    frames = np.stack([glide(16000), -0.5 * glide(16000)], axis=1)
    waves = [audio.load(encoded(frames, 16000, name), 16000) for name in ("wav", "flac", "mp4-pcm", "mka-flac")]
    for wave in waves:
        np.testing.assert_allclose(wave, 0.25 * glide(16000), atol=2 / 32768)


def test_soundfile_and_this_agree_on_full_scale():
    square = np.tile(np.array([1.0, -1.0], np.float32), 4000)
    for name in ("wav", "flac", "mp4-pcm", "mka-flac", "ogg-flac"):
        wave = audio.load(encoded(square, 16000, name), 16000)
        assert (wave.min(), wave.max()) == (-1.0, pytest.approx(1.0, abs=1 / 32768))
    assert soundfile.read(io.BytesIO(encoded(square, 16000, "wav")))[0].min() == -1.0


def test_a_stream_whose_rate_changes_is_refused():
    data = encoded(glide(16000), 16000, "aac") + encoded(glide(22050), 22050, "aac")
    with pytest.raises(AudioError, match=r"^unreadable: .*change from \(16000, .* to \(22050, "):
        audio.load(data, 16000)


def test_a_file_of_pictures_only_is_refused(tmp_path):
    with av.open(str(tmp_path / "film.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        out.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        out.mux(stream.encode(None))
    with pytest.raises(AudioError, match=r"^unreadable: .*no audio stream"):
        audio.load(tmp_path / "film.mp4", 16000)
