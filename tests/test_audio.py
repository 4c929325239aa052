import io

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chisquare

from psclap import audio
from psclap.errors import AudioError

FORMATS = [("wav", "PCM_16", 1e-4), ("wav", "FLOAT", 1e-6), ("flac", "PCM_16", 1e-4), ("ogg", "VORBIS", 0.05)]


def sine(frequency_hz: float, rate_hz: int, seconds: float = 0.5) -> np.ndarray:
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    return (0.4 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def peak_hz(wave: np.ndarray, rate_hz: int) -> float:
    return float(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax() * rate_hz / len(wave))


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8000, 22050, 48000])
@pytest.mark.parametrize(("suffix", "subtype", "tolerance"), FORMATS)
def test_a_mono_file_decodes_to_its_wave_at_its_own_rate(tmp_path, suffix, subtype, tolerance, rate_hz):
    wave, path = sine(440, rate_hz), tmp_path / f"clip.{suffix}"
    soundfile.write(path, wave, rate_hz, subtype=subtype)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        decoded, decoded_rate_hz = audio.decode(source)
        assert (decoded_rate_hz, decoded.dtype, decoded.shape) == (rate_hz, np.float32, wave.shape)
        np.testing.assert_allclose(decoded, wave, atol=tolerance)


@pytest.mark.parametrize(("suffix", "subtype", "tolerance"), FORMATS)
def test_channels_are_averaged(tmp_path, suffix, subtype, tolerance):
    left, right, path = sine(300, 16000), sine(700, 16000), tmp_path / f"clip.{suffix}"
    soundfile.write(path, np.stack([left, right], axis=1), 16000, subtype=subtype)
    np.testing.assert_allclose(audio.decode(path)[0], (left + right) / 2, atol=tolerance)


@pytest.mark.parametrize("from_hz", [8000, 22050, 44100])
@pytest.mark.parametrize("to_hz", [8000, 16000, 48000])
def test_resampling_keeps_pitch_level_and_duration(from_hz, to_hz):
    wave = sine(1000, from_hz)
    out = audio.resample(wave, from_hz, to_hz)
    assert out.dtype == np.float32
    assert abs(len(out) - len(wave) * to_hz / from_hz) <= 1
    assert peak_hz(out, to_hz) == pytest.approx(1000, abs=2.1)  # the FFT's resolution at 0.5 s
    assert np.abs(out).max() == pytest.approx(0.4, rel=0.02)


def test_resampling_removes_what_the_lower_rate_cannot_carry():
    out = audio.resample(sine(7000, 48000), 48000, 8000)
    assert np.abs(out[200:-200]).max() < 1e-3


def test_load_decodes_and_resamples(tmp_path):
    soundfile.write(tmp_path / "clip.wav", sine(500, 48000), 48000)
    wave = audio.load(tmp_path / "clip.wav", 16000)
    assert len(wave) == 8000
    assert peak_hz(wave, 16000) == pytest.approx(500, abs=2.1)


@given(start=st.integers(0, 9_999), num_samples=st.integers(1, 12_000))
def test_a_partial_decode_is_the_slice_of_the_whole(start, num_samples):
    flac = audio.encode_flac(noise(10_000), 16000)
    whole, part = audio.decode(flac)[0], audio.decode(flac, start, num_samples)[0]
    np.testing.assert_array_equal(part, whole[start : start + num_samples])


@given(samples=arrays(np.int16, st.integers(1, 500)))
def test_flac_keeps_every_16_bit_sample_and_is_deterministic(samples):
    wave = samples.astype(np.float32) / 32768
    flac = audio.encode_flac(wave, 16000)
    assert flac == audio.encode_flac(wave.copy(), 16000)
    np.testing.assert_array_equal(audio.decode(flac)[0] * 32768, samples)


def test_encoding_clips_what_lies_outside_one():
    decoded = audio.decode(audio.encode_flac(np.array([-3.0, -1.0, 0.0, 1.0, 3.0], np.float32), 8000))[0]
    np.testing.assert_array_equal(decoded * 32768, [-32768, -32768, 0, 32767, 32767])


def test_crop_start_is_uniform_over_every_place_that_fits():
    rng = np.random.default_rng(0)
    counts = np.bincount([audio.crop_start(109, 100, rng) for _ in range(5000)])
    assert len(counts) == 10
    assert chisquare(counts).pvalue > 1e-3


@given(num_samples=st.integers(0, 100), limit=st.none() | st.integers(1, 100), seed=st.integers(0, 99))
def test_a_crop_always_fits(num_samples, limit, seed):
    start = audio.crop_start(num_samples, limit, np.random.default_rng(seed))
    assert start == 0 if limit is None or num_samples <= limit else 0 <= start <= num_samples - limit


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (1, "unreadable"),
        (4, "unreadable"),
        (30, "unreadable"),
        (300, "truncated"),
        (0.5, "truncated"),
        (0.99, "truncated"),
    ],
)
def test_a_truncated_flac_is_refused(length, reason):
    flac = audio.encode_flac(noise(16000), 16000)
    kept = int(length * len(flac)) if length < 1 else length
    with pytest.raises(AudioError) as error:
        audio.decode(flac[:kept])
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [(None, "missing"), (b"", "empty"), (b"no sound at all" * 99, "unreadable"), (bytes(4096), "unreadable")],
)
def test_a_file_that_is_no_audio_is_refused_with_its_reason(tmp_path, data, reason):
    path = tmp_path / "clip.wav"
    if data is not None:
        path.write_bytes(data)
        with pytest.raises(AudioError, match=f"^{reason}: "):
            audio.decode(data)
    for source in (path, str(path)):
        with pytest.raises(AudioError, match=f"^{reason}: ") as error:
            audio.decode(source)
        assert error.value.reason == reason


def test_a_folder_is_a_missing_file(tmp_path):
    with pytest.raises(AudioError, match=r"^missing: there is no such file"):
        audio.decode(tmp_path)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_header_without_samples_is_empty(tmp_path, suffix):
    soundfile.write(tmp_path / f"clip.{suffix}", np.zeros(0, np.float32), 16000)
    with pytest.raises(AudioError) as error:
        audio.decode(tmp_path / f"clip.{suffix}")
    assert error.value.reason == "empty"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    wave = noise(1000)
    wave[500] = value
    soundfile.write(tmp_path / "clip.wav", wave, 16000, subtype="FLOAT")
    with pytest.raises(AudioError) as error:
        audio.decode(tmp_path / "clip.wav")
    assert error.value.reason == "non-finite"
    assert len(audio.decode(tmp_path / "clip.wav", 0, 500)[0]) == 500
