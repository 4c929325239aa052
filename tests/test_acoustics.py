"""The measures of a voice on signals of known pitch, level and rate; the judge on real espeak-ng utterances."""

from pathlib import Path

import numpy as np
import pytest
from signals import RATE_HZ, pulses, whisper

from psclap.acoustics import Measures, count_syllables, measure
from psclap.corpora.demo import STYLES, Demo, Line
from psclap.corpora.demo_text import SENTENCES
from psclap.errors import AudioError, PsclapError
from psclap.evaluation.reward.demonstration import calibrated_judge
from psclap.evaluation.reward.judge import QUESTIONS, AcousticJudge, Features, features, listen


@pytest.mark.parametrize("f0_hz", [75, 120, 220, 400])
@pytest.mark.parametrize("rate_hz", [16000, 44100])
def test_a_pulse_train_has_its_pitch(f0_hz: float, rate_hz: int) -> None:
    found = measure(pulses(f0_hz, rate_hz=rate_hz), rate_hz)
    assert found.f0_hz == pytest.approx(f0_hz, rel=0.01)
    assert found.f0_low_hz == pytest.approx(f0_hz, rel=0.02)
    assert found.f0_spread_st < 0.2
    assert found.voiced_share > 0.9


def test_a_glide_has_its_spread() -> None:
    """From 100 to 200 Hz evenly on a log scale: 12 semitones, half of them between the quartiles."""
    found = measure(pulses(100 * 2 ** np.linspace(0, 1, 2 * RATE_HZ), 2.0), RATE_HZ)
    assert found.f0_spread_st == pytest.approx(6, abs=0.5)
    assert found.f0_hz == pytest.approx(100 * 2**0.5, rel=0.03)


def test_noise_is_a_whisper() -> None:
    found = measure(whisper(), RATE_HZ)
    assert found.voiced_share < 0.1
    unheard = measure(np.concatenate([whisper(0.5, 0.2), np.zeros(8000, np.float32)]), RATE_HZ)
    assert unheard.voiced_share < 0.1


def test_without_a_voiced_frame_the_measures_of_a_voice_are_absent() -> None:
    hiss = np.diff(whisper(level=0.05), 3)  # of high frequencies, where no pitch lies
    found = measure(hiss, RATE_HZ)
    assert found.voiced_share == 0
    assert np.isnan([found.f0_hz, found.f0_spread_st, found.hnr_db, *found.bands_db]).all()


def test_noise_in_a_voice_lowers_its_harmonicity() -> None:
    clean = pulses(150)
    ratios = [measure(clean + whisper(level=level), RATE_HZ).hnr_db for level in (0.0, 0.02, 0.05)]
    assert ratios[0] > ratios[1] + 3 > ratios[2] + 6


@pytest.mark.parametrize("decibels", [-6.0, -20.0])
def test_a_gain_moves_the_level_and_nothing_else(decibels: float) -> None:
    voice = pulses(120)
    loud, soft = measure(voice, RATE_HZ), measure((voice * 10 ** (decibels / 20)).astype(np.float32), RATE_HZ)
    assert soft.loudness_lufs - loud.loudness_lufs == pytest.approx(decibels, abs=0.01)
    assert soft.f0_hz == pytest.approx(loud.f0_hz, rel=1e-3)
    assert soft.tilt_db == pytest.approx(loud.tilt_db, abs=0.01)
    assert soft.bands_db == pytest.approx(loud.bands_db, abs=0.01)


def test_speech_is_measured_without_the_silence_around_it() -> None:
    silence = np.zeros(RATE_HZ, np.float32)
    assert measure(np.concatenate([silence, pulses(120, 1.5), silence]), RATE_HZ).speech_s == pytest.approx(
        1.5, abs=0.08
    )


def test_the_rate_is_that_of_the_syllables() -> None:
    words = "banana " * 4
    slow, fast = (listen(pulses(120, seconds), RATE_HZ, words)["log_rate"] for seconds in (4.0, 2.0))
    assert np.exp(slow) == pytest.approx(12 / 4, rel=0.05)
    assert np.exp(fast) == pytest.approx(12 / 2, rel=0.05)
    assert count_syllables("") == 0


def test_a_brighter_sound_has_more_above_1_khz() -> None:
    low, high = (
        (0.3 * np.sin(2 * np.pi * hz * np.arange(RATE_HZ) / RATE_HZ)).astype(np.float32) + whisper(level=1e-3)
        for hz in (300, 2200)
    )
    assert measure(low, RATE_HZ).tilt_db < -20
    assert measure(high, RATE_HZ).tilt_db > 20


def test_the_door_of_measure() -> None:
    with pytest.raises(AudioError, match="too short"):
        measure(whisper(0.05), RATE_HZ)
    with pytest.raises(AudioError, match="silent"):
        measure(np.zeros(RATE_HZ, np.float32), RATE_HZ)
    with pytest.raises(PsclapError, match="need 16000 or more"):
        measure(whisper(), 8000)


@pytest.fixture(scope="module")
def spoken() -> list[tuple[Features, Line]]:
    """What the judge hears of real utterances in any style, every fifth of them whispered."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(120):
        style = {name: str(rng.choice(values)) for name, values in STYLES.items()}
        style["phonation"] = "whispered" if number % 5 == 4 else "enunciated"
        lines.append(Line(SENTENCES["test"][number % 35], style))
    waves = Demo().say(lines, processes=2)
    return [(listen(wave, 22050, line.text), line) for wave, line in zip(waves, lines, strict=True)]


def columns(spoken: list[tuple[Features, Line]]) -> tuple[list[Features], list[list[str]]]:
    return [heard for heard, _ in spoken], [list(line.style.values()) for _, line in spoken]


def test_the_judge_hears_real_utterances(spoken: list[tuple[Features, Line]]) -> None:
    judge = AcousticJudge.calibrate(*columns(spoken[::2]))
    accuracy = judge.accuracy(*columns(spoken[1::2]))
    assert set(accuracy) == set(STYLES)
    assert accuracy["phonation"] == 1
    for name in ("rate", "volume", "gender", "intonation"):
        assert accuracy[name] > 0.7, accuracy


def test_the_accuracy_is_the_mean_over_the_values_of_the_share_judged_right(
    spoken: list[tuple[Features, Line]],
) -> None:
    judge = AcousticJudge.calibrate(*columns(spoken[:60]))
    right: dict[str, list[bool]] = {}
    for heard, line in spoken[60:]:
        right.setdefault(line.style["rate"], []).append(judge.judge(heard)["rate"] == line.style["rate"])
    expected = np.mean([np.mean(of_value) for of_value in right.values()])
    assert judge.accuracy(*columns(spoken[60:]))["rate"] == pytest.approx(expected)


def test_pitch_is_not_heard_in_a_whisper(spoken: list[tuple[Features, Line]]) -> None:
    judge = AcousticJudge.calibrate(*columns(spoken))
    of_voice = {name for question in QUESTIONS if question.of_voice for name in question.attributes}
    for heard, line in spoken:
        judged = judge.judge(heard)
        assert bool(of_voice & set(judged)) == (line.style["phonation"] == "enunciated")


def test_the_judge_is_the_plain_gaussian_rule() -> None:
    """One measure, two classes of unlike spread: the boundary lies where the densities cross."""
    rng = np.random.default_rng(0)
    rates = np.concatenate([rng.normal(1.0, 0.1, 4000), rng.normal(1.6, 0.3, 4000)])
    clips = [{**_silent_features(), "log_rate": float(rate)} for rate in rates]
    judge = AcousticJudge.calibrate(clips, [["slow"]] * 4000 + [["fast"]] * 4000)
    grid = np.linspace(0.5, 2.5, 401)
    answers = [judge.judge({**_silent_features(), "log_rate": float(rate)})["rate"] for rate in grid]
    spread = rates.std()
    densities = [
        -((grid - mean) ** 2) / (2 * variance) - np.log(variance) / 2
        for mean, variance in ((1.0, 0.1**2 + 0.05 * spread**2), (1.6, 0.3**2 + 0.05 * spread**2))
    ]
    expected = np.where(densities[0] > densities[1], "slow", "fast")
    assert (np.array(answers) == expected).mean() > 0.98


def _silent_features() -> dict[str, float]:
    nothing = Measures(*[float("nan")] * 9, bands_db=(float("nan"),) * 15)
    return features(nothing, "")


def test_a_judge_needs_two_values_of_an_attribute(spoken: list[tuple[Features, Line]]) -> None:
    with pytest.raises(PsclapError, match="no attribute has two values"):
        AcousticJudge.calibrate([spoken[0][0]] * 4, [["loud"]] * 4)


def test_the_judge_is_calibrated_on_train_and_measured_on_test(mini_shards: Path, tmp_path: Path) -> None:
    kept = tmp_path / "runs" / "heard.npz"
    found = calibrated_judge(mini_shards, 96, seed=0, kept=kept)
    assert found.accuracy["phonation"] > 0.9
    assert found.accuracy["rate"] > 0.7
    assert found.accuracy == calibrated_judge(mini_shards, 96, seed=0, kept=kept).accuracy
    with np.load(kept) as file:
        values = dict(file)
    values["heard"][:, values["names"] == "log_rate"] = np.nan
    np.savez(kept, **values)  # what was heard is read: now as if nobody could hear a rate
    assert calibrated_judge(mini_shards, 96, seed=0, kept=kept).accuracy.keys() == found.accuracy.keys() - {"rate"}
    kept.write_bytes(b"damaged")
    assert calibrated_judge(mini_shards, 96, seed=0, kept=kept).accuracy == found.accuracy
    assert np.load(kept)["heard"].shape == values["heard"].shape
