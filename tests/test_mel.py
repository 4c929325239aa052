"""The mel definition against transformers' functions, which are those of the published vocoders."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from transformers import SpeechT5FeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from psclap.errors import AudioError, ConfigError
from psclap.tts.mel import ESPNET_LJSPEECH, LJSPEECH, SPEECHT5, MelConfig, MelSpectrogram, mel_filters


def sound(num_samples: int, rate_hz: int = 16000, seed: int = 0) -> np.ndarray:
    """A voice-like wave: harmonics that fade, a breath of noise, and silence."""
    rng = np.random.default_rng(seed)
    times_s = np.arange(num_samples) / rate_hz
    wave = sum(np.sin(2 * np.pi * 130 * n * times_s + n) / n for n in range(1, 30))
    wave = 0.1 * wave * np.exp(-times_s) + 0.01 * rng.standard_normal(num_samples)
    wave[num_samples // 2 : num_samples // 2 + 3000] = 0
    return wave.astype(np.float32)


@pytest.mark.parametrize(
    "config",
    [SPEECHT5, LJSPEECH, ESPNET_LJSPEECH, MelConfig(fft_length=2048, window_length=800, num_mel_bins=128, min_hz=0)],
)
def test_the_filters_are_those_of_transformers(config: MelConfig) -> None:
    theirs = mel_filter_bank(
        num_frequency_bins=config.fft_length // 2 + 1,
        num_mel_filters=config.num_mel_bins,
        min_frequency=config.min_hz,
        max_frequency=config.max_hz,
        sampling_rate=config.sample_rate_hz,
        norm="slaney",
        mel_scale="slaney",
    )
    np.testing.assert_allclose(mel_filters(config), theirs, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("num_samples", [16000, 12345, 513])
def test_the_default_is_what_speecht5s_vocoder_takes(num_samples: int) -> None:
    wave = sound(num_samples)
    theirs = SpeechT5FeatureExtractor()(audio_target=wave, sampling_rate=16000)["input_values"][0]
    ours = MelSpectrogram(SPEECHT5)(torch.from_numpy(wave))
    assert ours.dtype == torch.float32
    assert ours.shape == (SPEECHT5.frames(num_samples), 80)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    if num_samples == 16000:
        assert ours.min() == SPEECHT5.log_floor == -10


def test_the_definition_of_hifigans_authors() -> None:
    """Padded by (fft - hop) / 2 on either side, natural logarithm, floor 1e-5."""
    wave = sound(22050, 22050)
    ours = MelSpectrogram(LJSPEECH)(torch.from_numpy(wave))
    filters = mel_filter_bank(513, 80, 0.0, 8000.0, 22050, norm="slaney", mel_scale="slaney")
    padded = np.pad(wave, 384, mode="reflect")
    window = window_function(1024, "hann_window")
    magnitude = spectrogram(padded, window, 1024, 256, center=False, power=1.0)
    np.testing.assert_allclose(ours, np.log(np.maximum(1e-5, filters.T @ magnitude)).T, atol=1e-4)
    assert len(ours) == LJSPEECH.frames(22050) == 22050 // 256


def test_a_window_shorter_than_the_transform_lies_in_its_middle() -> None:
    config = MelConfig(fft_length=1024, window_length=800, hop_length=200, padding="zero")
    wave = torch.from_numpy(sound(8000))
    spectrum = torch.stft(
        wave, 1024, 200, 800, torch.hann_window(800), center=True, pad_mode="constant", return_complex=True
    )
    torch.testing.assert_close(MelSpectrogram(config).magnitude(wave), spectrum.abs().T, rtol=1e-4, atol=1e-5)


def test_a_batch_gives_what_each_wave_gives() -> None:
    waves = torch.from_numpy(np.stack([sound(9000, seed=seed) for seed in range(3)]))
    mel = MelSpectrogram(SPEECHT5)
    torch.testing.assert_close(mel(waves), torch.stack([mel(wave) for wave in waves]))


@pytest.mark.parametrize("config", [SPEECHT5, LJSPEECH])
def test_the_gradient_is_the_slope(config: MelConfig) -> None:
    """Against differences, in a direction; and finite where the wave is silent."""
    wave = torch.from_numpy(sound(4096)).requires_grad_()
    mel, direction = MelSpectrogram(config), torch.from_numpy(sound(4096, seed=1)) * 1e-3

    def loudness(wave: torch.Tensor) -> torch.Tensor:
        return (mel(wave).double() * torch.linspace(1, 2, 80)).sum()

    (gradient,) = torch.autograd.grad(loudness(wave), wave)
    slope = (loudness(wave.detach() + direction) - loudness(wave.detach() - direction)) / 2
    assert float(slope) == pytest.approx(float(gradient @ direction), rel=0.02)
    silence = torch.zeros(4096, requires_grad=True)
    (of_silence,) = torch.autograd.grad(loudness(silence), silence)
    assert of_silence.isfinite().all()


def test_autocast_and_inference_mode_leave_no_trace() -> None:
    config = MelConfig(min_hz=81)  # of its own, so that its tables are first made here
    wave = torch.from_numpy(sound(4096))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        first = MelSpectrogram(config)(wave)
    with_gradient = MelSpectrogram(config)(wave.clone().requires_grad_())
    with_gradient.sum().backward()
    torch.testing.assert_close(with_gradient.detach(), first.clone(), rtol=0, atol=0)


def test_it_travels_to_other_processes() -> None:
    wave = torch.from_numpy(sound(2000))
    mel = MelSpectrogram(LJSPEECH)
    assert torch.equal(pickle.loads(pickle.dumps(mel))(wave), mel(wave))


def test_a_definition_survives_json_and_refuses_what_is_wrong() -> None:
    assert MelConfig.from_dict(LJSPEECH.to_dict()) == LJSPEECH
    with pytest.raises(ConfigError, match=r"mel\.hop_lenght: unknown key.*did you mean 'hop_length'"):
        MelConfig.from_dict({"hop_lenght": 256})
    with pytest.raises(ConfigError, match=r"mel\.log: '2' must be one of e, 10"):
        MelConfig.from_dict({"log": "2"})
    with pytest.raises(ConfigError, match=r"floor: 0 must be greater than 0"):
        MelSpectrogram(dataclasses.replace(SPEECHT5, floor=0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_hz": 8001.0}, "max_hz 8001.0.*half of sample_rate_hz 16000"),
        ({"hop_length": 2000}, "hop_length 2000.*none may be above the next"),
        ({"centred_on": "hop_middle", "hop_length": 255}, "must be even"),
    ],
)
def test_numbers_that_do_not_go_together_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MelConfig(**values)  # type: ignore[arg-type]


def test_an_empty_mel_bin_and_a_wave_too_short_to_mirror_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_mel_bins 400: \d+ of them hold no frequency"):
        MelSpectrogram(MelConfig(num_mel_bins=400))
    with pytest.raises(AudioError, match="too short: 512 samples"):
        MelSpectrogram(SPEECHT5)(torch.zeros(512))
    zero_padded = MelSpectrogram(MelConfig(padding="zero"))
    assert zero_padded(torch.zeros(0)).shape == (1, 80)
