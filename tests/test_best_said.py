"""The best of several candidates that a Clip-TTS says, where the embedder cannot hear all of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_model import save_small_model
from small_speech import SmallSpeech

from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.reward.rank import NO_EMBEDDING
from psclap.tts.best_of_n import best_of_n
from psclap.tts.say import Manner, TextToSpeech

STYLE = "a deep, slow voice"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(save_small_model(tmp_path_factory.mktemp("embedder") / "model"))


def test_what_is_too_short_comes_last_and_says_why(
    small_speech: SmallSpeech, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_speech.model("clip_tts")
    speech, text = TextToSpeech.of(model), small_speech.clips[0].row["transcript"]  # type: ignore[arg-type]
    manners = [Manner("voice-00", pace=pace) for pace in (4.0, 0.5, 1.0)]
    waves = [*speech.say(text, manners)]
    extractor = embedder.processor.feature_extractor
    monkeypatch.setattr(extractor, "min_duration_s", (len(waves[0]) + 1) / 16000)
    said = best_of_n(speech, embedder, text, STYLE, manners)
    expected = embedder.embed_audio(waves[1:], 16000) @ embedder.embed_text([STYLE])[0]
    assert said.scores[1:] == pytest.approx(expected, abs=1e-6)
    assert said.order == [1 + int(place) for place in np.argsort(-expected)] + [0]
    rows = json.loads(json.dumps(said.rows(), allow_nan=False))
    assert [row["score"] is None for row in rows] == [False, False, True]
    assert rows[2]["reject"].startswith("too short: ")
    monkeypatch.setattr(extractor, "min_duration_s", 60.0)
    with pytest.raises(PsclapError, match="was said 3 times, and none can be scored: too short"):
        best_of_n(speech, embedder, text, STYLE, manners)


def test_an_embedding_that_is_not_finite_is_no_score(small_speech: SmallSpeech, tmp_path: Path) -> None:
    broken = Embedder(save_small_model(tmp_path / "model"))
    broken.model.audio_projection.linear1.weight.data.fill_(float("nan"))
    speech = TextToSpeech.of(small_speech.model("clip_tts"))  # type: ignore[arg-type]
    with pytest.raises(PsclapError, match=f"none can be scored: {NO_EMBEDDING}"):
        best_of_n(speech, broken, small_speech.clips[0].row["transcript"], STYLE, [Manner("voice-00")])
