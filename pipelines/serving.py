"""The registered model as an MLflow pyfunc. MLflow runs this file as it stands: models from code, no pickle.

Input: rows with `audio` (a path, or the base64 text of a file's bytes) and, or, `text`. With the parameter
task "score" the output is each row's cosine of audio and text; with "embed", its embedding (of the audio
where there is one, else of the text).
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from psclap.embedding import Embedder
from psclap.errors import PsclapError

TASKS = ("score", "embed")


class StyleModel(mlflow.pyfunc.PythonModel):
    """Scores or embeds rows with a ParaSpeechCLAP model."""

    def load_context(self, context: Any) -> None:
        self.embedder = Embedder(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        task = (params or {}).get("task", "score")
        if task not in TASKS:
            raise PsclapError(f"task {task!r} must be one of {', '.join(TASKS)}")
        audio, text = self._column(model_input, "audio"), self._column(model_input, "text")
        if task == "score":
            if not (audio.notna() & text.notna()).all():
                raise PsclapError("task 'score' needs audio and text in every row; use task 'embed' for one of them")
            scores = (self._embed_audio(audio) * self.embedder.embed_text(text)).sum(1)
            return pd.DataFrame({"score": scores.astype(float)}, index=model_input.index)
        if (audio.isna() & text.isna()).any():
            raise PsclapError("task 'embed' needs audio or text in every row")
        embeddings = np.empty((len(model_input), self.embedder.dim), np.float32)
        has_audio = audio.notna().to_numpy()
        embeddings[has_audio] = self._embed_audio(audio[has_audio])
        embeddings[~has_audio] = self.embedder.embed_text(text[~has_audio])
        return pd.DataFrame({"embedding": list(embeddings)}, index=model_input.index)

    def _column(self, rows: pd.DataFrame, name: str) -> pd.Series:
        return rows[name] if name in rows else pd.Series([None] * len(rows), index=rows.index)

    def _embed_audio(self, column: pd.Series) -> np.ndarray:
        return self.embedder.embed_files([_audio_source(value) for value in column])


def _audio_source(value: str) -> Path | bytes:
    if len(value) < 4096 and Path(value).suffix:  # base64 text has no dot
        return Path(value)
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise PsclapError(f"audio {value[:40]!r} is neither a path nor base64") from error


mlflow.models.set_model(StyleModel())
