"""Finding clips by description in a folder of embeddings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from psclap.errors import PsclapError

SUMMARY_NAME = "_summary.json"


@dataclass(frozen=True)
class EmbeddedCorpus:
    """Clips with their embeddings, (N, D), L2-normalised, and the model that made them."""

    table: pa.Table
    embeddings: np.ndarray
    model: str

    @classmethod
    def load(cls, folder: Path | str) -> EmbeddedCorpus:
        """Reads the Parquet files that the embed stage wrote. Raises PsclapError where it wrote none."""
        folder = Path(folder)
        try:
            model = json.loads((folder / SUMMARY_NAME).read_text())["model"]
            table = ds.dataset(folder, format="parquet").to_table().combine_chunks()
            vectors = table["embedding"].combine_chunks()
            embeddings = vectors.flatten().to_numpy().reshape(len(vectors), -1)
        except (OSError, ValueError, KeyError) as error:
            raise PsclapError(
                f"{folder} is no folder of embeddings ({error}); `dvc repro embed` writes one to embeddings/"
            ) from error
        return cls(table.drop_columns("embedding"), embeddings, model)

    def search(self, query: np.ndarray, top: int) -> list[dict[str, Any]]:
        """The `top` clips nearest to a query embedding (D,), best first: their metadata and `score`.

        Raises PsclapError for a query of another model's width.
        """
        if query.shape[-1] != self.embeddings.shape[1]:
            raise PsclapError(
                f"the query has {query.shape[-1]} dimensions and the embeddings have {self.embeddings.shape[1]}: "
                f"they were made by {self.model}; give that model"
            )
        scores = self.embeddings @ query
        best = np.argsort(-scores, kind="stable")[:top]
        rows = self.table.take(best).to_pylist()
        return [{**row, "score": float(score)} for row, score in zip(rows, scores[best], strict=True)]
