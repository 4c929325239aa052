"""Synthesisers on held-out clips: what a perfect one gets, what a worse one loses, and what the files say."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_speech import MEL, Altered, Echo, SmallSpeech, write_speech_page

from psclap.errors import PsclapError
from psclap.tts.evaluation.evaluate import evaluate, systems
from psclap.tts.evaluation.means import means
from psclap.tts.evaluation.models import ClipTTS, untrained
from psclap.tts.evaluation.recordings import average_mel, held_out, log_mel_of
from psclap.tts.evaluation.results import headline, summary
from psclap.tts.evaluation.retrieval import text_mel_retrieval
from psclap.tts.evaluation.run import evaluate_matcher, evaluate_synthesiser
from psclap.tts.mel import LJSPEECH
from psclap.tts.vocoder import load_vocoder


@pytest.fixture(scope="module")
def speech(small_speech: SmallSpeech) -> SmallSpeech:
    return small_speech


@pytest.fixture(scope="module")
def evaluated(speech: SmallSpeech, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("reports") / "echo"
    return folder, write_speech_page(folder, speech)


def test_a_perfect_model_gets_what_copy_synthesis_gets(evaluated: tuple) -> None:
    found = evaluated[1]["systems"]
    assert found["model"] == found["copy_synthesis"]
    assert found["model"]["mel_mcd_db"] == 0
    assert found["model"]["mcd_db"] > 0.1  # the vocoder's part
    assert (found["model"]["length_ratio"], found["model"]["length_error"]) == (1, 0)


def test_what_knows_no_text_is_further_off(evaluated: tuple) -> None:
    found = evaluated[1]["systems"]
    for name in ("mean_mel", "untrained"):
        assert found[name]["mcd_db"] > 3 * found["model"]["mcd_db"]
        assert found[name]["mel_mcd_db"] > 3
    assert found["mean_mel"]["length_ratio"] == 1
    assert found["mean_mel"]["voicing_error"] > found["model"]["voicing_error"]


def test_known_durations_are_right_to_a_frame(evaluated: tuple, speech: SmallSpeech) -> None:
    found = evaluated[1]["durations"]
    hop_ms = 1000 * MEL.hop_length / MEL.sample_rate_hz
    assert found["predicted"]["mean_ms"] < hop_ms / 2
    assert found["predicted"]["within_20_ms"] == 1
    assert found["predicted"]["duration_ms"] < hop_ms / 2
    assert found["even"]["mean_ms"] > 3 * hop_ms
    of_clips = sum(len(timeline.phones().symbols) for timeline in speech.known.values())
    assert (found["predicted"]["matched"], found["predicted"]["unmatched_known"]) == (of_clips, 0)


def test_intervals_hold_the_means(evaluated: tuple) -> None:
    for scores in evaluated[1]["systems"].values():
        for name, (low, high) in scores["intervals"].items():
            assert low - 1e-9 <= scores[name] <= high + 1e-9
    assert evaluated[1]["about"]["unit"] == "clip"  # two speakers are too few to draw from


def test_a_louder_or_slower_voice(speech: SmallSpeech) -> None:
    clips, average = speech.clips[:2], average_mel(speech.index, MEL)
    echo = Echo(speech)
    louder = evaluate(clips, systems(Altered(echo, lambda mel: mel + 0.1), average), MEL, speech.vocoder)
    slower = evaluate(clips, systems(Altered(echo, lambda mel: mel.repeat(2, 0)), average), MEL, speech.vocoder)
    for spoken, ratio in ((louder, 1), (slower, 2)):
        rows = [row for row in spoken.rows if row["system"] == "model"]
        assert [row["length_ratio"] for row in rows] == [ratio, ratio]
        assert max(row["mel_mcd_db"] for row in rows) < 0.5


def test_whispers_have_no_pitch_to_compare(speech: SmallSpeech) -> None:
    """Clips without pitch in either sound are left out of the means of F0, and counted."""
    rows = evaluate(speech.clips, systems(Echo(speech), average_mel(speech.index, MEL)), MEL, speech.vocoder).rows
    found = summary(rows, {clip.key: clip.key for clip in speech.clips}, resamples=100)
    whispered = sum("whispered" in clip.row["situational_tags"] for clip in speech.clips)
    assert whispered > 0
    assert found["model"]["clips_voiced"] == len(speech.clips) - whispered
    assert found["mean_mel"]["clips_voiced"] == 0
    assert not {"f0_rmse_hz", "f0_rmse_cents", "gross_pitch_error"} & found["mean_mel"].keys()
    of_model = [row["f0_rmse_cents"] for row in rows if row["system"] == "model"]
    assert found["model"]["f0_rmse_cents"] == pytest.approx(np.nanmean(of_model))


@pytest.mark.parametrize(
    "change",
    [lambda mel: mel * np.nan, lambda mel: mel[:0], lambda mel: mel[:, :40], lambda mel: mel[None]],
    ids=["not finite", "no frame", "half the bands", "a batch"],
)
def test_what_is_no_speech_is_refused(speech: SmallSpeech, change: object) -> None:
    broken = Altered(Echo(speech), change)
    with pytest.raises(PsclapError, match=r"model says '.*' \(demo-tts-test-.* finite"):
        evaluate(speech.clips[:1], systems(broken, np.zeros(80, np.float32)), MEL, speech.vocoder)


def test_files_are_the_results(evaluated: tuple, speech: SmallSpeech) -> None:
    folder, results = evaluated
    assert json.loads((folder / "evaluation.json").read_text()) == results
    with open(folder / "clips.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * len(speech.clips)
    of_model = [float(row["mcd_db"]) for row in rows if row["system"] == "model"]
    assert np.mean(of_model) == pytest.approx(results["systems"]["model"]["mcd_db"], abs=1e-5)
    pitched = [row for row in rows if row["system"] == "model" and row["f0_rmse_cents"]]
    assert len(pitched) == results["systems"]["model"]["clips_voiced"] < len(speech.clips)
    assert sorted(path.name for path in folder.iterdir()) == ["clips.csv", "evaluation.json", "report.html"]


def test_headline_has_each_number_with_its_interval(evaluated: tuple) -> None:
    found = headline(evaluated[1])
    model, scores = found["model"], evaluated[1]["systems"]["model"]
    low, high = scores["intervals"]["mcd_db"]
    assert [model[f"mcd_db{end}"] for end in ("", "_low", "_high")] == [
        round(value, 4) for value in (scores["mcd_db"], low, high)
    ]
    assert found["durations"]["even"]["mean_ms"] == round(evaluated[1]["durations"]["even"]["mean_ms"], 4)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_same_arguments_same_bytes(evaluated: tuple, speech: SmallSpeech, tmp_path: Path) -> None:
    write_speech_page(tmp_path / "again", speech)
    for path in evaluated[0].iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_speech_clip_retrieves_and_aligns(speech: SmallSpeech, tmp_path: Path) -> None:
    matcher = speech.speech_clip
    results = evaluate_matcher(
        tmp_path / "report", "a matcher", speech.index, matcher, known=speech.known, resamples=100
    )
    rows, mels = [clip.row for clip in speech.clips], [clip.log_mel for clip in speech.clips]
    text_ND, mel_ND = matcher.embed(rows, mels)
    texts = [row["transcript"] for row in rows]
    assert results["retrieval"] == text_mel_retrieval(text_ND, mel_ND, texts, resamples=100)
    assert (
        0
        < results["alignment"]["predicted"]["matched"]
        <= sum(len(matcher.align(row, mel)[0]) for row, mel in zip(rows, mels, strict=True))
    )
    for row, mel, text_D, mel_D in zip(rows, mels, text_ND, mel_ND, strict=True):
        symbols, frames = matcher.align(row, mel)
        assert (len(symbols), sum(frames)) == (len(frames), len(mel))
        alone = matcher.embed([row], [mel])
        assert (alone[0][0], alone[1][0]) == (pytest.approx(text_D, abs=1e-5), pytest.approx(mel_D, abs=1e-5))
    assert "Mel spectrogram to text" in (tmp_path / "report" / "report.html").read_text()


def test_clip_tts_says_what_its_durations_say(speech: SmallSpeech) -> None:
    model = speech.clip_tts
    for clip in speech.clips[:2]:
        symbols, frames = model.durations(clip.row)
        assert model.speak(clip.row).shape == (sum(frames), 80)
        assert " " not in symbols
    with pytest.raises(PsclapError, match="speaker 'nobody' is none of the model's"):
        model.speak({**speech.clips[0].row, "speaker": "nobody"})


def test_untrained_is_the_same_model_with_other_weights(speech: SmallSpeech) -> None:
    model = speech.model("clip_tts")
    model.set_mel_statistics(torch.full((80,), -3.0), torch.full((80,), 2.0))
    fresh, again = untrained(model, seed=1), untrained(model, seed=1)
    assert fresh.config.to_dict() == model.config.to_dict()
    assert torch.equal(fresh.mel_mean, model.mel_mean)
    assert not torch.equal(fresh.decoder.linear.weight, model.decoder.linear.weight)
    assert torch.equal(fresh.decoder.linear.weight, again.decoder.linear.weight)
    assert ClipTTS(fresh).speak(speech.clips[0].row).shape[1] == 80


def test_the_doors(speech: SmallSpeech, tmp_path: Path) -> None:
    with pytest.raises(PsclapError, match="the vocoder griffin-lim was loaded for mels of the definition"):
        evaluate_synthesiser(tmp_path / "r", "x", speech.index, Echo(speech), load_vocoder("griffin-lim", LJSPEECH))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    with pytest.raises(PsclapError, match="files that are no report"):
        evaluate_synthesiser(tmp_path / "own", "x", speech.index, Echo(speech), speech.vocoder)
    with pytest.raises(PsclapError, match="99 resamples are too few"):
        evaluate_matcher(tmp_path / "r", "x", speech.index, speech.speech_clip, resamples=99)
    assert not (tmp_path / "r").exists()


def test_held_out_clips_are_spread_over_the_split(speech: SmallSpeech) -> None:
    rows = speech.index.rows_of("test")
    assert held_out(speech.index, "test", 3, MEL)[0].tolist() == rows[[0, 4, 7]].tolist()
    assert held_out(speech.index, "test", 100, MEL)[0].tolist() == rows.tolist()
    first = speech.clips[0].row["transcript"]
    kept, left_out = held_out(
        speech.index, "test", 100, MEL, lambda row: row["transcript"] != first and row["language"] == "en"
    )
    assert (len(kept) + left_out, left_out >= 1) == (len(rows), True)
    with pytest.raises(PsclapError, match="can say none of them"):
        held_out(speech.index, "test", 100, MEL, lambda row: False)


def test_held_out_clips_that_cannot_be_aligned_are_left_out_and_counted(speech: SmallSpeech) -> None:
    """With a hop this long, some have fewer frames than phonemes."""
    rows, hop = speech.index.rows_of("test"), 1400
    mel = replace(MEL, hop_length=hop, window_length=2048, fft_length=2048)
    fits = 1 + speech.index.num_samples[rows] // hop >= [len(clip.row["phonemes"]) for clip in speech.clips]
    assert 0 < fits.sum() < len(rows)
    kept, left_out = held_out(speech.index, "test", 100, mel)
    assert (kept.tolist(), left_out) == (rows[fits].tolist(), len(rows) - fits.sum())


def test_the_average_is_of_all_frames(speech: SmallSpeech) -> None:
    mels = [log_mel_of(speech.index.read_clip(int(row)), MEL) for row in speech.index.rows_of("train")]
    assert average_mel(speech.index, MEL) == pytest.approx(np.concatenate(mels).mean(0), abs=1e-4)


def test_texts_that_are_said_twice_are_right_for_each_other() -> None:
    texts = ["a", "b", "a", "c"]
    embeddings = np.eye(4)
    swapped = embeddings[[2, 1, 0, 3]]  # each a finds the other one's sound
    found = text_mel_retrieval(embeddings, swapped, texts, resamples=100)
    for direction in ("text_to_mel", "mel_to_text"):
        assert found[direction]["R@1"] == 1
        assert found["chance"][direction]["R@1"] == pytest.approx((2 / 4 + 1 / 4 + 2 / 4 + 1 / 4) / 4)
    assert "intervals" not in text_mel_retrieval(embeddings, swapped, texts, resamples=0)["text_to_mel"]


def test_scale_and_ties_of_embeddings() -> None:
    rng = np.random.default_rng(0)
    text_ND, mel_ND = rng.normal(size=(2, 12, 5))
    texts = list(map(str, range(12)))
    plain = text_mel_retrieval(text_ND, mel_ND, texts, resamples=0)
    assert text_mel_retrieval(1e-3 * text_ND, 1e5 * mel_ND, texts, resamples=0) == plain
    collapsed = text_mel_retrieval(np.ones((12, 5)), np.ones((12, 5)), texts, resamples=0)
    assert collapsed["text_to_mel"]["R@1"] == pytest.approx(collapsed["chance"]["text_to_mel"]["R@1"])


@pytest.mark.parametrize(
    ("arrays", "texts", "said"),
    [
        ((np.eye(2), np.eye(2)), ["a", "a"], "1 different texts"),
        ((np.eye(2), np.eye(3)), ["a", "b"], r"shape \(2, 2\) and \(3, 3\)"),
        ((np.eye(2), np.eye(2)), ["a", "b", "c"], "for 3 texts"),
        ((np.full((2, 2), np.nan), np.eye(2)), ["a", "b"], "not finite"),
    ],
)
def test_the_doors_of_retrieval(arrays: tuple, texts: list[str], said: str) -> None:
    with pytest.raises(PsclapError, match=said):
        text_mel_retrieval(*arrays, texts)


def test_means_leave_out_what_is_not_there() -> None:
    values = {"x": np.array([1.0, np.nan, 3.0, 5.0]), "y": np.array([np.nan, np.nan, 2.0, np.nan])}
    found = means(values, np.array([0, 1, 2, 2]), resamples=200)
    assert (found["x"], found["y"], found["intervals"]["y"]) == (3, 2, [2, 2])
    assert found["intervals"]["x"][0] < 3 < found["intervals"]["x"][1]
    assert means({"z": np.full(2, np.nan)}, np.arange(2)) == {"intervals": {}}
