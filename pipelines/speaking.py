"""A registered Clip-TTS as an MLflow pyfunc. MLflow runs this file as it stands: models from code, no pickle.

Input: rows with `text` and, where they are not to be drawn by chance, `speaker` and `styles` (tags divided by commas).
Parameters: `pace`, `semitones`, `noise`, `seed` and `language`, see psclap/tts/say.py.
Output: `audio`, the base64 text of a FLAC file, its `sample_rate_hz`, who said it how, and the `vocoder`: Griffin-Lim,
whatever the model was measured through.
"""

from __future__ import annotations

import base64
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from psclap import audio
from psclap.errors import PsclapError
from psclap.tts.say import TextToSpeech

MAX_ROWS = 64
_log = logging.getLogger(__name__)


class SpeechModel(mlflow.pyfunc.PythonModel):
    """Says rows of text with a Clip-TTS, through Griffin-Lim."""

    def load_context(self, context: Any) -> None:
        """Loads the model."""
        self._speech = TextToSpeech(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row of sound for each row of text. Raises MlflowException, which says what was wrong with them."""
        try:
            if len(model_input) > MAX_ROWS:
                raise PsclapError(f"{len(model_input)} rows; send at most {MAX_ROWS} at a time")
            rows = [self._say(row, params or {}) for row in model_input.to_dict("records")]
        except PsclapError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        except Exception as error:  # MLflow would send its traceback to the client, as the client's fault
            _log.exception("a request failed")
            raise MlflowException("the model failed on this request; its server's log says why", INTERNAL_ERROR) from (
                error
            )
        return pd.DataFrame(rows, index=model_input.index)

    def _say(self, row: Mapping[Any, Any], params: dict[str, Any]) -> dict[str, Any]:
        speaker, styles = _text(row.get("speaker")), _text(row.get("styles"))
        asked = None if styles is None else [name.strip() for name in styles.split(",") if name.strip()]
        (drawn,) = self._speech.manners(1, params.get("seed", 0), speaker, asked)
        manner = dataclasses.replace(
            drawn,
            pace=params.get("pace", 1.0),
            semitones=params.get("semitones", 0.0),
            noise=params.get("noise", 0.0),
        )
        text = _text(row.get("text"))
        if text is None:
            raise PsclapError("a row has no text; give it some")
        (wave,) = self._speech.say(text, [manner], params.get("language") or None)
        flac = audio.encode_flac(wave, self._speech.sample_rate_hz)
        return {
            "audio": base64.b64encode(flac).decode(),
            "sample_rate_hz": self._speech.sample_rate_hz,
            "speaker": manner.speaker,
            "styles": ", ".join(manner.styles),
            "vocoder": self._speech.vocoder.name,
        }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


mlflow.models.set_model(SpeechModel())
