"""Speech-Clip and Clip-TTS through the training loop: resume to the bit, what they learn, what is refused; the loop."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARDING, SPEECH_SHARDING, shard
from small_model import save_small_model
from small_training import Recorder, at, losses, run
from speech_tasks import train_config
from typer.testing import CliRunner

from psclap import audio
from psclap.cli import app
from psclap.config import ConfigError, load_params
from psclap.corpora.demo_tts import DemoTts
from psclap.embedding import Embedder
from psclap.errors import CheckpointError, PsclapError
from psclap.evaluation.reward.demonstration import calibrated_judge
from psclap.loop_config import CheckpointConfig, SamplingConfig
from psclap.schema import Caption, Utterance
from psclap.shards.index import ShardIndex
from psclap.training.loop import check_training
from psclap.training.spec import Training
from psclap.tts.build import load
from psclap.tts.demonstration import demonstrate, plan
from psclap.tts.evaluation.recordings import held_out
from psclap.tts.mel import MelConfig
from psclap.tts.recipe import SpeechRecipe
from psclap.tts.say import Manner, TextToSpeech
from psclap.tts_config import SpeechModelConfig

MEL = MelConfig(hop_length=320, floor=1e-5)
SIZES = SpeechModelConfig(
    hidden_size=32, num_blocks=1, conv_size=48, conv_kernels=(5, 1), dropout=0.1, duration_dropout=0.1, aligner_size=16
)
CORPUS = DemoTts(speakers=2, train_clips=24, val_clips=4, test_clips=2)


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("tts-corpus")
    return [replace(one, audio=str(folder / one.audio)) for one in CORPUS.utterances(folder, processes=2)]


@pytest.fixture(scope="module")
def shards(utterances: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tts-shards")
    shard(utterances, folder, SPEECH_SHARDING)
    return folder


def training(shards: Path, objective: str, start: Path | None = None, **changes: Any) -> Training:
    settings: dict[str, Any] = {"max_steps": 6, "validate_every": 2, "log_every": 1, "global_batch_size": 8, **changes}
    settings = {"sampling": SamplingConfig(max_batch_s=14.0, batch_multiple=2), "warmup_steps": 2, **settings}
    config = train_config(objective, **settings)
    if start is not None:
        config = replace(config, start_from="speech_clip")
    recipe = SpeechRecipe(SIZES, MEL, config, None if start is None else str(start))
    return Training(shards, recipe, seed=7, checkpoints=CheckpointConfig())


@pytest.fixture(scope="module")
def speech_clip(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """A folder of a Speech-Clip's checkpoints, and what its training told."""
    folder = tmp_path_factory.mktemp("speech-clip")
    return folder, run(training(shards, "speech_clip", max_steps=60, validate_every=20), folder)


@pytest.fixture(scope="module")
def clip_tts(
    shards: Path, speech_clip: tuple[Path, Recorder], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Recorder]:
    folder = tmp_path_factory.mktemp("clip-tts")
    start = at(speech_clip[0], 60)
    return folder, run(training(shards, "clip_tts", start, max_steps=40, validate_every=20), folder)


def test_speech_clip_learns(speech_clip: tuple[Path, Recorder]) -> None:
    recorder = speech_clip[1]
    told = losses(recorder)
    assert np.mean(told[-10:]) < 0.6 * np.mean(told[:10])
    last = recorder.logged[-1][1]
    assert {"val/MRR", "val/R@1", "val/text_to_mel/MRR"} <= set(last)


def test_clip_tts_learns(clip_tts: tuple[Path, Recorder], shards: Path, tmp_path: Path) -> None:
    told = [metrics["loss/mel"] for _, metrics in clip_tts[1].logged if "loss/mel" in metrics]
    assert np.mean(told[-5:]) < 0.9 * np.mean(told[:5])
    assert clip_tts[1].logged[-1][1].keys() == {"val/mel_mae", "val/duration_mae"}


@pytest.mark.parametrize("objective", ["speech_clip", "clip_tts"])
def test_a_resumed_training_ends_with_the_same_bits(objective: str, shards: Path, tmp_path: Path) -> None:
    whole = run(training(shards, objective), tmp_path / "whole")
    resumed = run(training(shards, objective), tmp_path / "resumed", resume_from=at(tmp_path / "whole", 2))
    assert losses(resumed) == losses(whole)[2:]
    for name in ("model.safetensors", "trainer.safetensors"):
        assert (at(tmp_path / "resumed", 6) / name).read_bytes() == (at(tmp_path / "whole", 6) / name).read_bytes()


def test_batches_hold_to_the_budget(shards: Path) -> None:
    index = ShardIndex(shards)
    recipe = training(shards, "clip_tts").recipe
    stream = recipe.stream(index, 0)
    plan = stream.plan(0)
    seconds = index.num_samples[stream.rows] / index.sample_rate_hz
    sizes = {len(plan.examples(step)) for step in range(len(plan))}
    assert all(size % 2 == 0 for size in sizes)
    assert len(sizes) > 1
    assert all(
        len(numbers) * seconds[numbers].max() <= 14.001
        for numbers in (plan.examples(step) for step in range(len(plan)))
    )


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(training: Training) -> None:
    check_training(training, training.open_index(), workers=1)


def test_what_cannot_be_trained_is_refused_before_it_starts(
    shards: Path, speech_clip: tuple[Path, Recorder], tmp_path: Path
) -> None:
    good = training(shards, "clip_tts")
    refused(good)
    other_rate = replace(good.recipe, mel=MelConfig(sample_rate_hz=22050))
    with pytest.raises(PsclapError, match="clips of 16000 Hz and the section mel is defined for 22050 Hz"):
        refused(replace(good, recipe=other_rate))
    too_short = replace(good.recipe, train=replace(good.train, max_clip_s=0.2))
    with pytest.raises(PsclapError, match=r"no train clip with a transcript of at most 0\.2 s"):
        refused(replace(good, recipe=too_short))
    larger = replace(good.recipe, model=replace(SIZES, hidden_size=64), start=str(at(speech_clip[0], 60)))
    with pytest.raises(PsclapError, match="start_from: "):
        refused(replace(good, recipe=larger))
    nothing = replace(good.recipe, start=str(tmp_path))
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        refused(replace(good, recipe=nothing))
    odd = replace(good.recipe, train=replace(good.train, sampling=SamplingConfig(max_batch_s=14.0, batch_multiple=1)))
    with pytest.raises(PsclapError, match=r"sampling\.batch_multiple 1 must be divisible by the 2 workers"):
        check_training(replace(good, recipe=odd), good.open_index(), workers=2)


def test_clips_that_cannot_be_used_are_left_out_and_told(
    utterances: list[Utterance], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = ([one for one in utterances if one.split == split] for split in ("train", "val"))
    train[0] = replace(train[0], transcript="antidisestablishmentarianism, " * 12)
    train[1] = replace(train[1], transcript=" ", captions=(Caption("combined", "A voice."),))
    val[0] = replace(val[0], transcript="Loch, genre.")
    shard([*train, *val], tmp_path, SPEECH_SHARDING, processes=1)
    for objective in ("speech_clip", "clip_tts"):
        refused(training(tmp_path, objective, max_steps=1))
        assert capsys.readouterr().out.splitlines() == [
            "train: 2 of 24 clips are left out: 1 without a transcript, 1 too short for what they say",
            "val: 1 of 4 clips are left out: 1 of phonemes that no training clip had",
        ]
    (told,) = losses(run(training(tmp_path, "clip_tts", max_steps=1), tmp_path / "store"))
    assert np.isfinite(told)


def test_shards_without_phonemes_are_refused(utterances: list[Utterance], tmp_path: Path) -> None:
    shard(utterances[:4], tmp_path, SHARDING, processes=1)
    with pytest.raises(PsclapError, match=r"have no phonemes: set shard\.phonemes to true and make the shards again"):
        refused(training(tmp_path, "speech_clip"))
    with pytest.raises(PsclapError, match="have no phonemes"):
        held_out(ShardIndex(tmp_path), "train", 10, MEL)


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="best_metric 'val/MRR' is not measured for clip_tts; choose val/mel_mae"):
        train_config("clip_tts", best_metric="val/MRR")
    with pytest.raises(ConfigError, match="alignment_weight 0 needs the aligner of a speech_clip"):
        train_config("clip_tts", alignment_weight=0.0)
    with pytest.raises(ConfigError, match="class_balance, distinct_captions and mixing_corpora are of captions"):
        train_config("clip_tts", sampling=SamplingConfig(distinct_captions=True))
    with pytest.raises(ConfigError, match=r"shard\.phonemes must be true"):
        replace(load_params("params.yaml").voices["cast"], shard=SHARDING)
    with pytest.raises(ConfigError, match="conv_kernels"):
        replace(SIZES, conv_kernels=(4, 1))
    with pytest.raises(ConfigError, match="hidden_size 30"):
        replace(SIZES, hidden_size=30)


# --- speaking, and choosing ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech(clip_tts: tuple[Path, Recorder]) -> TextToSpeech:
    return TextToSpeech(at(clip_tts[0], 40))


def test_what_is_said_is_a_function_of_its_manner(speech: TextToSpeech) -> None:
    manners = speech.manners(4, seed=3)
    assert speech.manners(2, seed=3) == manners[:2]
    assert len({manner.pace for manner in manners}) == 4
    first = [*speech.say("The grey cat waited.", manners)]
    again = [*speech.say("The grey cat waited.", manners[2:])]
    for one, other in zip(first[2:], again, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)
    assert {manner.speaker for manner in speech.manners(8, speaker="voice-01")} == {"voice-01"}


def test_punctuation_that_was_never_heard_is_left_out(speech: TextToSpeech) -> None:
    known = speech.vocabulary
    assert "?" not in known.symbols
    assert known.say("The grey cat, waited?", "en")[0] == known.say("The grey cat waited", "en")[0]
    assert known.can_say("The grey cat waited!", "en")
    assert not known.can_say("Loch, genre.", "en")


def test_pace_and_pitch(speech: TextToSpeech) -> None:
    by = Manner(speech.vocabulary.speakers[0])
    plain, slow, high = speech.say("The grey cat waited.", [by, replace(by, pace=0.5), replace(by, semitones=12.0)])
    assert len(slow) == pytest.approx(2 * len(plain), rel=0.1)
    assert len(high) == pytest.approx(len(plain), rel=0.1)

    def centroid(wave: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(wave)) ** 2
        return float((power * np.arange(len(power))).sum() / power.sum() / len(power))

    assert centroid(high) > 1.3 * centroid(plain)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda speech: speech.manners(0), "ask for one at least"),
        (lambda speech: speech.manners(1, speaker="nobody"), "speaker 'nobody' is none of the model's: voice-00"),
        (lambda speech: speech.manners(1, styles=["drunk"]), r"styles \['drunk'\] are none of the model's"),
        (lambda speech: [*speech.say("Hallo.", [Manner("voice-00")], "de")], "it speaks en"),
        (lambda speech: [*speech.say("", [Manner("voice-00")])], "no letter and no digit|empty"),
        (lambda speech: [*speech.say("Loch, genre.", [Manner("voice-00")])], "which no training clip had"),
        (lambda speech: Manner("voice-00", pace=0.0), r"pace 0 must lie in"),
        (lambda speech: Manner("voice-00", semitones=float("nan")), r"semitones nan must lie in"),
        (lambda speech: Manner("voice-00", noise=float("nan")), r"noise nan must lie in"),
        (lambda speech: Manner("voice-00", seed=-1), "seed -1 must be 0 or more"),
        (lambda speech: speech.manners(1, seed=-1), "seed -1 must be 0 or more"),
        (
            lambda speech: [*speech.say("The grey cat. " * 70, [Manner("voice-00")])],
            "divide it, and say its parts",
        ),
    ],
)
def test_what_cannot_be_said_is_refused(ask: Callable[[TextToSpeech], Any], said: str, speech: TextToSpeech) -> None:
    with pytest.raises(PsclapError, match=said):
        ask(speech)


def test_a_speech_clip_cannot_speak(speech_clip: tuple[Path, Recorder]) -> None:
    assert load(at(speech_clip[0], 60)).config.model_type == "speech_clip"
    with pytest.raises(CheckpointError, match="SpeechClipModel, which cannot speak"):
        TextToSpeech(at(speech_clip[0], 60))


def test_say_writes_the_best_and_the_scores(clip_tts: tuple[Path, Recorder], tmp_path: Path) -> None:
    out, mini_model = tmp_path / "new" / "out.wav", save_small_model(tmp_path / "model")
    arguments = ["say", "The grey cat waited.", "-o", str(out), "--tts", str(at(clip_tts[0], 40))]
    result = CliRunner().invoke(
        app,
        [
            *arguments,
            "--style",
            "a deep, slow voice",
            "-n",
            "5",
            "--model",
            str(mini_model),
            "--keep",
            str(tmp_path / "all"),
        ],
    )
    assert result.exit_code == 0, result.output
    told = json.loads(out.with_suffix(".json").read_text())
    scores = [row["score"] for row in told["ranked"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == len({row["candidate"] for row in told["ranked"]}) == 5
    best = told["ranked"][0]["candidate"]
    assert f"candidate {best}" in result.output
    assert (tmp_path / "all" / f"{best:02d}.wav").read_bytes() == out.read_bytes()
    wave, rate_hz = audio.decode(out)
    assert rate_hz == 16000
    assert np.abs(wave).max() > 0.01
    alone = CliRunner().invoke(app, [*arguments[:-3], str(tmp_path / "one.flac"), *arguments[-2:], "-n", "1"])
    assert alone.exit_code == 0, alone.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-n", "3"], "of several candidates the best is chosen by --style"),
        (["-n", "1", "-o", "out.xyz"], "give a name that ends in one of"),
        (["-n", "1", "-o", "/proc/out.wav"], "/proc/out.wav cannot be written"),
    ],
)
def test_say_refuses(more: list[str], said: str, clip_tts: tuple[Path, Recorder]) -> None:
    arguments = ["say", "The cat.", "-o", "out.wav", "--tts", str(at(clip_tts[0], 40)), *more]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert said in str(result.exception)


def test_mels_of_training_have_mean_zero_and_deviation_one(clip_tts: tuple[Path, Recorder], shards: Path) -> None:
    model = load(at(clip_tts[0], 40))
    index = ShardIndex(shards)
    from psclap.tts.mel import MelSpectrogram

    clips = [torch.from_numpy(index.read_clip(int(row))) for row in index.rows_of("train")]
    frames = model.normalise(torch.cat([MelSpectrogram(MEL)(clip) for clip in clips]))
    torch.testing.assert_close(frames.mean(0), torch.zeros(80), atol=1e-3, rtol=0)
    torch.testing.assert_close(frames.std(0, correction=0), torch.ones(80), atol=1e-3, rtol=0)


def test_the_loop_on_the_demo(clip_tts: tuple[Path, Recorder], mini_shards: Path, tmp_path: Path) -> None:
    """Every candidate is said, scored and judged; the oracle is the best of what was said, the first is chance."""
    speech = TextToSpeech(at(clip_tts[0], 40))
    judge = calibrated_judge(mini_shards, 96, seed=0)
    embedder = Embedder(save_small_model(tmp_path / "model"))
    result = demonstrate(CORPUS, speech, embedder, judge, 4, 3, 0, tmp_path / "selection", {"name": "small"})
    assert result["prompts"] == 4
    by_setting = result["as_set"]["recall"]
    assert set(by_setting) == {1, 2}
    assert by_setting[1]["random"]["mean"] == pytest.approx(by_setting[1]["selected"]["mean"])
    assert by_setting[2]["random"]["mean"] <= by_setting[2]["oracle"]["mean"] <= 1
    planned = plan(CORPUS, speech, 4, 3, 0)
    for prompt, manners in planned:
        whispers = any("whispered" in manner.styles for manner in manners)
        assert not whispers or "phonation" in prompt.asked
        for line, manner in zip(prompt.lines, manners, strict=True):
            assert line.style["gender"] in CORPUS.speaker_tags()[manner.speaker]
            assert set(manner.styles) <= set(line.style.values())
    written = [*(tmp_path / "selection").rglob("*.flac")]
    assert len(written) == 4
