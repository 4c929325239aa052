"""Distances of sounds whose difference is known; the fast warping against the slow, obvious one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from signals import pulses, whisper

from psclap.acoustics import track_pitch
from psclap.tts.evaluation.distances import (
    MCD_DB,
    Frames,
    compare,
    mel_cepstra,
    mel_cepstral_distortion,
    pitch_errors,
    warp,
)
from psclap.tts.evaluation.recordings import frames_of, log_mel_of
from psclap.tts.mel import LJSPEECH, MelConfig

MEL = MelConfig()


def slow_total(cost: np.ndarray) -> float:
    """The least total cost, cell by cell as the recursion is written."""
    total = np.full(cost.shape, np.inf)
    for t in range(cost.shape[0]):
        for u in range(cost.shape[1]):
            before = [total[t - dt, u - du] for dt, du in ((1, 0), (0, 1), (1, 1)) if t >= dt and u >= du]
            total[t, u] = cost[t, u] + min(before, default=0.0)
    return float(total[-1, -1])


@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 99), whole=st.booleans())
def test_warping_is_that_of_the_recursion(shape: tuple[int, int], seed: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 3, shape).astype(float) if whole else rng.random(shape)  # whole numbers tie
    path = warp(cost)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [shape[0] - 1, shape[1] - 1]
    assert {tuple(step) for step in np.diff(path, axis=0)} <= {(1, 0), (0, 1), (1, 1)}
    assert cost[tuple(path.T)].sum() == pytest.approx(slow_total(cost))


def test_cepstra_of_all_orders_are_the_spectrum_but_for_its_mean() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0, 1, (2, 20, 80))
    distance = MCD_DB * np.linalg.norm(mel_cepstra(ours, "e", 79) - mel_cepstra(theirs, "e", 79), axis=1)
    decibels = 20 / np.log(10) * (ours - theirs)
    assert distance == pytest.approx(decibels.std(axis=1))


def test_cepstra_do_not_depend_on_the_base_of_the_logarithm_or_the_level() -> None:
    mel = np.random.default_rng(0).uniform(0.01, 1, (5, 80))
    assert mel_cepstra(np.log10(mel), "10") == pytest.approx(mel_cepstra(np.log(mel), "e"))
    assert mel_cepstra(np.log(7 * mel), "e") == pytest.approx(mel_cepstra(np.log(mel), "e"))


def test_what_is_below_the_floor_does_not_count() -> None:
    rng = np.random.default_rng(0)
    silent, hiss = np.full((4, 80), -10.0), rng.uniform(-9, -5.5, (4, 80))
    assert mel_cepstral_distortion(mel_cepstra(silent, "10"), mel_cepstra(hiss, "10")) == 0


def test_a_sound_is_at_no_distance_from_itself_slowed_down() -> None:
    rng = np.random.default_rng(0)
    cepstra, f0_hz = rng.normal(size=(30, 24)), np.where(rng.random(30) > 0.5, 120.0, 0.0)
    slow = Frames(np.repeat(cepstra, 2, axis=0), np.repeat(f0_hz, 2))
    found = compare(Frames(cepstra, f0_hz), slow)
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("mel", [MEL, LJSPEECH], ids=["16 kHz", "22 kHz"])
def test_a_voice_a_semitone_higher_is_100_cents_off(mel: MelConfig) -> None:
    waves = [pulses(f0_hz, 1.0, mel.sample_rate_hz) for f0_hz in (120, 120 * 2 ** (1 / 12))]
    low, high = (frames_of(wave, log_mel_of(wave, mel), mel) for wave in waves)
    found = compare(low, high)
    assert found["f0_rmse_cents"] == pytest.approx(100, abs=5)
    assert found["f0_rmse_hz"] == pytest.approx(120 * (2 ** (1 / 12) - 1), abs=0.5)
    assert found["gross_pitch_error"] == 0
    assert found["voicing_error"] < 0.05


def test_pitch_is_that_of_the_frames_time() -> None:
    """A glide from 100 to 200 Hz: each frame has the pitch of its own moment."""
    wave = pulses(100 * 2 ** np.linspace(0, 1, 32000), 2.0)
    frames = frames_of(wave, log_mel_of(wave, MEL), MEL)
    times_s = np.arange(len(frames.f0_hz)) * 256 / 16000
    voiced = frames.f0_hz > 0
    assert voiced[5:-5].all()
    assert 12 * np.log2(frames.f0_hz[voiced] / (100 * 2 ** (times_s[voiced] / 2))) == pytest.approx(0, abs=0.3)


def test_a_whisper_has_errors_of_voicing_and_none_of_pitch() -> None:
    voice, breath = pulses(120), whisper()
    spoken, whispered = (frames_of(wave, log_mel_of(wave, MEL), MEL) for wave in (voice, breath))
    found = pitch_errors(spoken.f0_hz, np.zeros_like(whispered.f0_hz))
    assert found["voicing_error"] == pytest.approx((spoken.f0_hz > 0).mean())
    assert np.isnan([found["f0_rmse_hz"], found["f0_rmse_cents"], found["gross_pitch_error"]]).all()
    assert compare(spoken, whispered)["mcd_db"] > 5


def test_a_wave_too_short_for_a_pitch_has_none() -> None:
    for num_samples in (0, 1, 1599):
        assert len(track_pitch(whisper()[:num_samples], 16000).times_s) == 0
        assert not track_pitch(whisper()[:num_samples], 16000).at(np.arange(3.0)).any()
    frames = frames_of(whisper()[:100], log_mel_of(whisper()[:100], MEL), MEL)
    assert frames.cepstra.shape == (5, 24)
