"""`python -m pipelines.vocoder`: its file, and what it predicts with a Clip-TTS; test_train_on_ray trains one."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_speech import SmallSpeech
from tuned_vocoder import clip_tts, tracking, vocoder_params
from typer.testing import CliRunner

from pipelines.vocoder import app, load_vocoder_params, train_vocoder, tuned
from psclap.errors import ConfigError, PsclapError
from psclap.tts.clip_tts import Voice
from psclap.tts.mel import SPEECHT5, MelSpectrogram
from psclap.tts.predicted_mels import write_predicted_mels
from psclap.tts.vocabulary import Vocabulary
from psclap.tts.vocoder_recipe import VocoderRecipe
from psclap.tts.vocoder_settings import VocoderConfig

DOCS = Path(__file__).parent.parent / "docs" / "vocoder.md"


@pytest.fixture
def documented(tmp_path: Path) -> Path:
    """The file that the documentation shows."""
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    path = tmp_path / "vocoder.yaml"
    path.write_text(text)
    return path


def test_the_documented_file_is_the_published_configuration(documented: Path) -> None:
    params = load_vocoder_params(documented)
    assert params.vocoder == VocoderConfig()
    assert (params.train.segment_length, params.train.mel_weight, params.train.feature_weight) == (8192, 45, 2)


def test_every_broken_key_of_the_file_is_named(documented: Path, tmp_path: Path) -> None:
    mapping = yaml.safe_load(documented.read_text())
    mapping["vocoder"]["mel"]["hop"] = 256
    mapping["train"]["segment_lenght"] = mapping["train"].pop("segment_length")
    documented.write_text(yaml.safe_dump(mapping))
    with pytest.raises(ConfigError, match=r"(?s)vocoder\.mel\.hop: unknown.*train\.segment_lenght: unknown key"):
        load_vocoder_params(documented)
    with pytest.raises(ConfigError, match="cannot read"):
        load_vocoder_params(tmp_path / "nowhere.yaml")


def test_the_command_has_its_options() -> None:
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert all(option in said for option in ("--config", "--shards", "--output", "--tune-to", "--storage"))


def test_predicted_mels_are_the_models_in_the_clips_own_time(small_speech: SmallSpeech, tmp_path: Path) -> None:
    model, index = clip_tts(small_speech), small_speech.index
    write_predicted_mels(model, index, tmp_path / "mels")
    rows = [*index.rows_of("train"), *index.rows_of("val")]
    assert {path.stem for path in (tmp_path / "mels").iterdir()} == {index.row(int(row))["key"] for row in rows}

    row = index.row(int(rows[1]))
    mel = MelSpectrogram(SPEECHT5)(torch.from_numpy(index.read_clip(int(rows[1]))))
    vocabulary = Vocabulary.of_config(model.config)
    symbols = torch.from_numpy(vocabulary.encode(row["phonemes"])[1])[None]
    lengths = torch.tensor([symbols.shape[1]])
    durations = model.align(symbols, lengths, mel[None], torch.tensor([len(mel)]))
    styles = torch.from_numpy(vocabulary.style(row["situational_tags"]))[None]
    voice = Voice(torch.tensor([vocabulary.speaker(row["speaker"])]), styles)
    alone = model.speak(symbols, lengths, voice, durations_BL=durations).mel[0]
    written = np.load(tmp_path / "mels" / f"{row['key']}.npy")
    assert written.dtype == np.float16
    np.testing.assert_allclose(written, alone, atol=5e-3)
    assert len(written) == len(mel)


def test_a_vocoder_is_tuned_to_the_clips_that_the_model_can_say(
    small_speech: SmallSpeech, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, index, params = clip_tts(small_speech), small_speech.index, vocoder_params()
    symbols = model.config.symbols
    model.config.symbols = [symbol for symbol in symbols if symbol != "ɡ"]
    write_predicted_mels(model, index, tmp_path)
    keys = {index.row(int(row))["key"]: index.row(int(row))["phonemes"] for row in index.rows_of("train")}
    sayable = {key for key, phonemes in keys.items() if "ɡ" not in phonemes}
    assert {path.stem for path in tmp_path.iterdir()} & {*keys} == sayable
    assert len(sayable) == 2
    recipe = VocoderRecipe(params.vocoder, replace(params.train, predicted_mels=str(tmp_path)))
    stream = recipe.stream(index, seed=0)
    recipe.check(index, stream)
    assert {index.row(int(row))["key"] for row in stream.rows} == sayable
    assert capsys.readouterr().out.splitlines() == [
        "train: 2 of 4 clips are left out: 2 of phonemes that no training clip had",
        f"train: 2 of 4 clips are left out: 2 without mels in {tmp_path}",
    ]

    model.config.symbols = [symbol for symbol in symbols if symbol != "ɜː"]  # of the only clip of val
    with pytest.raises(PsclapError, match=r"can say no val clip of .*: 1 of 1 clips are left out: 1 of phonemes"):
        write_predicted_mels(model, index, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_model_that_a_vocoder_cannot_be_tuned_to_is_refused(small_speech: SmallSpeech, tmp_path: Path) -> None:
    clip_tts(small_speech).save_pretrained(tmp_path / "clip_tts")
    small_speech.model("speech_clip").save_pretrained(tmp_path / "speech_clip")
    shards, storage = small_speech.index.location, tmp_path / "runs"
    for params, model, message in (
        (vocoder_params(), "speech_clip", "is a SpeechClipModel, which makes no mels"),
        (vocoder_params(mel=replace(SPEECHT5, log="e", floor=1e-5)), "clip_tts", "another log, floor than vocoder.mel"),
    ):
        with pytest.raises(PsclapError, match=message):
            train_vocoder(params, shards, tmp_path / "new", storage, tracking(tmp_path), str(tmp_path / model))
    assert not storage.exists()


def test_the_mels_of_a_model_are_predicted_once(small_speech: SmallSpeech, tmp_path: Path) -> None:
    clip_tts(small_speech).save_pretrained(tmp_path / "clip_tts")
    arguments = (vocoder_params(), str(tmp_path / "clip_tts"), small_speech.index.location, tmp_path / "runs")
    folder = Path(str(tuned(*arguments).predicted_mels))
    (path, *_) = folder.iterdir()
    path.unlink()
    assert tuned(*arguments).predicted_mels == str(folder)
    assert not path.exists()
