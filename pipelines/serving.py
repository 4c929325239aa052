"""The registered model as an MLflow pyfunc. MLflow runs this file as it stands: models from code, no pickle.

Input: rows with `audio` (a path that ends in .EXTENSION, a URL, or the base64 text of a file's bytes) and, or,
`text`. The parameter `task` says what comes out:

- "score": `score`, the cosine of each row's audio and text;
- "embed": `embedding` of the audio where there is one, else of the text;
- "classify": `tag`, the nearest to the audio of the parameter `candidates` (tags, or attributes such as "texture"),
  and `scores`, the cosine of each of them; with `ensemble` true over all wordings of a tag.

What a server takes and how much of it is set by the environment, PSCLAP_SERVING_*: see psclap/serving.py. A request
that breaks a rule is answered by 400 and a message; what is our fault by 500, with the traceback in the server's log.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.serving import Limits, Service

TASKS = ("score", "embed", "classify")
_log = logging.getLogger(__name__)


class StyleModel(mlflow.pyfunc.PythonModel):
    """Scores, embeds or classifies rows with a ParaSpeechCLAP model."""

    def load_context(self, context: Any) -> None:
        """Loads the model. Raises PsclapError for limits in the environment that are none."""
        limits = Limits.of()
        self._service = Service(Embedder(context.artifacts["model"], batch_s=limits.batch_s), limits)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row of output for each row of input. Raises MlflowException, which says what was wrong with them."""
        try:
            columns = self._answer(model_input, params or {})
        except PsclapError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        except Exception as error:  # MLflow would send its traceback to the client, as the client's fault
            _log.exception("a request failed")
            raise MlflowException("the model failed on this request; its server's log says why", INTERNAL_ERROR) from (
                error
            )
        return pd.DataFrame(columns, index=model_input.index)

    def _answer(self, rows: pd.DataFrame, params: dict[str, Any]) -> dict[str, list[Any]]:
        task, candidates = params.get("task", "score"), params.get("candidates") or []
        ensemble = bool(params.get("ensemble", False))
        audios, texts = _column(rows, "audio"), _column(rows, "text")
        if task not in TASKS:
            raise PsclapError(f"task {task!r} must be one of {', '.join(TASKS)}")
        if task == "classify":
            found = self._service.classify(audios, texts, candidates, ensemble)
            return {"tag": [each.tag for each in found], "scores": [dict(each.scores) for each in found]}
        if candidates or ensemble:
            raise PsclapError(f"candidates and ensemble belong to task 'classify', not to {task!r}; leave them out")
        if task == "embed":
            return {"embedding": list(self._service.embed(audios, texts))}
        return {"score": self._service.score(audios, texts).astype(float).tolist()}


def _column(rows: pd.DataFrame, name: str) -> list[Any]:
    if name not in rows:
        return [None] * len(rows)
    return [None if _is_missing(value) else value for value in rows[name]]


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


mlflow.models.set_model(StyleModel())
