"""The page about synthesised speech, without a browser: what is in the file."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from setuptools.config.pyprojecttoml import read_configuration
from small_report import HOSTILE, Parsed
from small_speech import MEL, SmallSpeech, write_speech_page

from psclap import audio
from psclap.report.clips import MAX_DURATION_S
from psclap.tts.evaluation.evaluate import Sound
from psclap.tts.evaluation.recordings import log_mel_of
from psclap.tts.evaluation.run import evaluate_matcher
from psclap.tts.mel import LJSPEECH
from psclap.tts.report.figures import RANGE_DB, draw_alignment, loudest_db, spectrogram_uri
from psclap.tts.report.page import Example, write_html

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def speech(small_speech: SmallSpeech) -> SmallSpeech:
    return small_speech


@pytest.fixture(scope="module")
def page(speech: SmallSpeech, tmp_path_factory: pytest.TempPathFactory) -> tuple[Parsed, dict]:
    folder = tmp_path_factory.mktemp("reports") / "echo"
    results = write_speech_page(folder, speech)
    return Parsed((folder / "report.html").read_text(encoding="utf-8")), results


def test_sounds_are_the_recording_and_what_was_made_of_it(page: tuple, speech: SmallSpeech) -> None:
    sounds = {sound["aria-label"]: sound for sound in page[0].all("audio")}
    assert len(sounds) == 6 * 4
    for clip in (speech.clips[0], speech.clips[-1]):
        recorded, echoed = (
            audio.decode(base64.b64decode(sounds[f"{clip.key}, {name}"]["src"].split(",")[1]))[0]
            for name in ("recording", "this model")
        )
        assert len(recorded) == len(clip.wave)
        assert np.corrcoef(recorded, clip.wave)[0, 1] > 0.97
        assert len(echoed) == len(clip.log_mel) * MEL.hop_length
        assert not np.array_equal(echoed[: len(recorded)], recorded)
    assert not any("mean mel" in name for name in sounds)


def test_nothing_is_outside_the_file(page: tuple) -> None:
    named = [
        value
        for _, attributes in page[0].elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href", "background")
    ]
    assert len(named) > 40
    assert all(value.startswith(("data:audio/mpeg;base64,", "data:image/png;base64,", "#")) for value in named)
    assert not page[0].all("link")
    (policy,) = [meta["content"] for meta in page[0].all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; media-src data:; img-src data:; style-src")
    assert all(picture["alt"] for picture in page[0].all("img"))


def test_numbers_of_the_results_are_shown(page: tuple) -> None:
    parsed, results = page
    for name, shown in (("copy_synthesis", "recording, through the vocoder"), ("model", "this model")):
        scores = results["systems"][name]
        low, high = scores["intervals"]["mcd_db"]
        assert f"{shown} {scores['mcd_db']:.2f} {low:.2f}–{high:.2f}" in parsed.text
    durations = results["durations"]
    assert f"{durations['predicted']['matched']} phones compared" in parsed.text
    assert f"all equally long {durations['even']['mean_ms']:.1f}" in parsed.text
    assert "griffin-lim" in parsed.text


def test_what_was_not_measured_has_no_section(page: tuple, speech: SmallSpeech, tmp_path: Path) -> None:
    links = {link["href"] for link in page[0].all("a")}
    assert links == {"#speech", "#alignment", "#listen"}
    evaluate_matcher(tmp_path / "bare", "x", speech.index, speech.speech_clip, resamples=100)
    bare = Parsed((tmp_path / "bare" / "report.html").read_text(encoding="utf-8"))
    assert {link["href"] for link in bare.all("a")} == {"#retrieval"}
    assert not bare.all("audio")
    ids = [attributes["id"] for _, attributes in page[0].elements if "id" in attributes]
    assert {f"#{name}" for name in ids} == links


def test_alignments_are_drawn_where_they_are(speech: SmallSpeech, tmp_path: Path) -> None:
    evaluate_matcher(tmp_path / "r", "x", speech.index, speech.speech_clip, known=speech.known, resamples=100)
    parsed = Parsed((tmp_path / "r" / "report.html").read_text(encoding="utf-8"))
    assert len(parsed.all("svg")) == 6
    clip = speech.clips[0]
    known, predicted = speech.known[clip.key], speech.known[clip.key].phones().evenly()
    drawing = draw_alignment(clip.log_mel, MEL, predicted, known)
    for timeline, phones in ((known, drawing.known), (predicted, drawing.predicted)):
        assert [phone.name for phone in phones] == list(timeline.phones().symbols)
        share = np.array([phone.start for phone in phones]) / drawing.width
        assert share == pytest.approx(timeline.phones().starts_s / (len(clip.log_mel) * 256 / 16000), abs=1e-3)
    lines = parsed.all("line")
    above = [line["x1"] for line in lines if line["y1"] == "20"]  # where what is known is drawn
    assert [str(phone.start) for phone in drawing.known] == above[: len(drawing.known)]
    assert len(lines) == 2 * len(above)  # the same phones, in this corpus


def test_a_spectrogram_is_a_pixel_a_cell(speech: SmallSpeech) -> None:
    log_mel = speech.clips[0].log_mel
    top_db = loudest_db(log_mel, MEL)
    picture = pixels(spectrogram_uri(log_mel, MEL, top_db))
    assert picture.shape[:2] == (80, len(log_mel))
    loudest = np.unravel_index(log_mel.argmax(), log_mel.shape)
    assert picture[79 - loudest[1], loudest[0]].sum() == pytest.approx(picture.sum(-1).max())  # low bands below
    # The same levels by the other logarithm, and no colour for what is beyond the range.
    assert np.array_equal(pixels(spectrogram_uri(log_mel * np.log(10), LJSPEECH, top_db)), picture)
    quiet = pixels(spectrogram_uri(np.full((3, 80), (top_db - RANGE_DB) / 20 - 1), MEL, top_db))
    assert (quiet == quiet[0, 0]).all()


def pixels(uri: str) -> np.ndarray:
    return imread(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_texts_are_escaped(speech: SmallSpeech, page: tuple, tmp_path: Path) -> None:
    """What a clip says, who says it and what it is called are free text."""
    clip = speech.clips[0]
    examples = [
        Example(replace(clip, row={**clip.row, "key": text, "speaker": text, "transcript": text}), {})
        for text in HOSTILE
    ]
    write_html(tmp_path / "page.html", "an <echo> & more", MEL, page[1], examples)
    found = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(found.all("script")) == 1
    assert len(found.all("img")) == len(HOSTILE)
    assert not found.all("svg")
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    for text in HOSTILE:
        assert found.text.count(" ".join(text.split())) >= 3
    assert "an <echo> & more" in found.text


def test_of_long_sounds_the_beginning_is_shown(speech: SmallSpeech, page: tuple, tmp_path: Path) -> None:
    clip, seconds = speech.clips[0], MAX_DURATION_S + 2
    wave = np.resize(clip.wave, round(seconds * MEL.sample_rate_hz))
    long = replace(clip, wave=wave, log_mel=log_mel_of(wave, MEL))
    brief = Sound(clip.log_mel, clip.wave)
    write_html(tmp_path / "page.html", "x", MEL, page[1], [Example(long, {"model": brief})])
    found = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    sounds, pictures = found.all("audio"), found.all("img")
    assert len(audio.decode(base64.b64decode(sounds[0]["src"].split(",")[1]))[0]) == MAX_DURATION_S * 16000
    assert "12.0 s, first 10" in found.text
    assert [pixels(picture["src"]).shape[1] for picture in pictures] == [
        MEL.frames(round(MAX_DURATION_S * MEL.sample_rate_hz)),
        len(clip.log_mel),
    ]
    widths = [float(picture["style"].removeprefix("width:").removesuffix("%")) for picture in pictures]
    assert widths == pytest.approx([100, 100 * len(clip.wave) / (MAX_DURATION_S * 16000)], abs=0.01)


def test_templates_are_in_the_package() -> None:
    named = read_configuration(ROOT / "pyproject.toml")["tool"]["setuptools"]["package-data"]["psclap"]
    packaged = {path for pattern in named for path in (ROOT / "psclap").glob(pattern)}
    assert {*(ROOT / "psclap/tts/report/templates").iterdir()} <= packaged
