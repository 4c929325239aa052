"""One block of clips through a model: embeddings, scores for captions, the nearest tag of each attribute.

Axes: N windows of all clips, C clips, D embedding dimensions, K captions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from psclap import audio
from psclap.config import ScoreOptions
from psclap.embedding import Embedder
from psclap.errors import AudioError, PsclapError
from psclap.metrics import nearest
from psclap.scoring.inputs import located
from psclap.scoring.reading import Source, sources
from psclap.scoring.tables import Scored, Statistics, embedding_column, rejects_table, words_column
from psclap.scoring.windows import cut
from psclap.tags import ATTRIBUTES

MAX_DURATION_S = 86400.0
"""A recording may have a day; it is held a window at a time."""


@dataclass
class _Heard:
    """What was cut from the clips of a block: for each window its clip's row, and where it lies, in samples."""

    row: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    rejects: dict[int, AudioError] = field(default_factory=dict)


class BlockScorer:
    """Scores blocks with one model. Captions and tags are embedded once. May be called from several threads."""

    def __init__(self, embedder: Embedder, options: ScoreOptions, model: str, root: str):
        """`model` is what the rows name as their model, `root` what relative audio is relative to.

        Raises PsclapError for windows that the model cannot hear.
        """
        self._embedder, self._options, self._model, self._root = embedder, options, model, root
        rate_hz = embedder.sample_rate_hz
        self._window = None if options.window_s is None else round(options.window_s * rate_hz)
        self._hop = round((options.hop_s or options.window_s or 0) * rate_hz)
        if options.window_s is not None:
            try:
                embedder.processor.feature_extractor.check_duration(options.window_s)
            except PsclapError as error:
                raise PsclapError(f"window_s {options.window_s:g}: {error}") from error
            if self._hop < 1:
                raise PsclapError(f"hop_s {options.hop_s} is less than a sample at {rate_hz} Hz; raise it")
        self._computed_in = ["bf16" if embedder.computes_in_bf16 else "stored"]
        self._captions_KD = embedder.embed_text(options.captions)
        self._tags = {name: embedder.embed_tags(ATTRIBUTES[name]) for name in options.attributes}

    def score(self, items: pa.Table) -> Scored:
        """The tables of a block of items (columns `key`, `audio`, and others that go along).

        Clips that cannot be decoded, or heard by the model, are rejects. Raises PsclapError where a storage does not
        answer.
        """
        heard = _Heard()
        references = [located(name, self._root) for name in items["audio"].to_pylist()]
        windows_ND = self._embedder.embed_audio(self._waves(references, heard))
        return self._scored(items, heard, windows_ND)

    def reject(self, item: pa.Table, error: AudioError) -> Scored:
        """The tables of one item that is not to be touched."""
        return self._scored(item, _Heard(rejects={0: error}), np.empty((0, self._embedder.dim), np.float32))

    def _scored(self, items: pa.Table, heard: _Heard, windows_ND: np.ndarray) -> Scored:
        row_N, start_N, length_N = (np.array(values, np.int64) for values in (heard.row, heard.start, heard.length))
        for row in np.unique(row_N[~np.isfinite(windows_ND).all(1)]).tolist():
            heard.rejects.setdefault(row, AudioError("no embedding", "the model makes NaN or infinity of it"))
        whole_N = ~np.isin(row_N, [*heard.rejects])
        windows_ND, row_N, start_N, length_N = (v[whole_N] for v in (windows_ND, row_N, start_N, length_N))
        rows_C, first_C, count_C = np.unique(row_N, return_index=True, return_counts=True)
        clips_CD = _means(windows_ND, first_C, count_C)
        rate_hz = self._embedder.sample_rate_hz
        end_N = start_N + length_N
        duration_C = np.maximum.reduceat(end_N, first_C) / rate_hz if len(rows_C) else np.empty(0)
        of_long_N = np.repeat(count_C, count_C) > 1
        places: dict[str, np.ndarray] = {"start_s": start_N[of_long_N] / rate_hz, "end_s": end_N[of_long_N] / rate_hz}
        lengths: dict[str, np.ndarray] = {"duration_s": duration_C, "num_windows": count_C.astype(np.int32)}
        return Scored(
            clips=self._table(items.take(rows_C), lengths, clips_CD),
            windows=self._table(items.take(row_N[of_long_N]), places, windows_ND[of_long_N]),
            rejects=rejects_table(_reject_rows(items, heard.rejects)),
            statistics=Statistics(
                len(rows_C), len(row_N), float(duration_C.sum()), _reasons(heard.rejects), self._computed_in
            ),
        )

    def _waves(self, references: list[str], heard: _Heard) -> Iterator[np.ndarray]:
        """The windows of all clips; what is yielded, or rejected, is noted in `heard`."""
        for row, source in enumerate(sources(references)):
            try:
                for start, wave in self._windows(source):
                    heard.row.append(row)
                    heard.start.append(start)
                    heard.length.append(len(wave))
                    yield wave
            except AudioError as error:  # perhaps after some of its windows
                # Itself, it would hold its traceback, and that the sound.
                heard.rejects[row] = AudioError(error.reason, error.detail)

    def _windows(self, source: Source) -> Iterator[tuple[int, np.ndarray]]:
        if isinstance(source, AudioError):
            raise source
        rate_hz = self._embedder.sample_rate_hz
        blocks = audio.load_blocks(source, rate_hz, max_duration_s=MAX_DURATION_S)
        for start, wave in cut(blocks, self._window, self._hop):
            try:
                self._embedder.processor.feature_extractor.check_duration(len(wave) / rate_hz)
            except PsclapError as error:
                reason, _, detail = str(error).partition(": ")
                raise AudioError(reason, detail) from error
            yield start, wave

    def _table(self, items: pa.Table, lengths: dict[str, np.ndarray], embeddings_ND: np.ndarray) -> pa.Table:
        columns: dict[str, Any] = {name: items[name] for name in items.column_names} | lengths
        if len(self._captions_KD):
            cosines_KN = (embeddings_ND @ self._captions_KD.T).T.astype(np.float32)
            columns["scores"] = pa.StructArray.from_arrays([*map(pa.array, cosines_KN)], self._options.captions)
        for attribute, tags_TD in self._tags.items():
            cosines_NT = embeddings_ND @ tags_TD.T
            best_N, name = nearest(cosines_NT), tag_column(attribute)
            columns[name] = words_column(ATTRIBUTES[attribute][best] for best in best_N)
            columns[f"{name}_score"] = cosines_NT[np.arange(len(best_N)), best_N].astype(np.float32)
        columns["model"] = words_column([self._model] * len(embeddings_ND))
        columns["embedding"] = embedding_column(embeddings_ND, self._options.embedding_type)
        return pa.table(columns)


def tag_column(attribute: str) -> str:
    """The column of an attribute's nearest tag.

    >>> tag_column("pitch-level")
    'tag_pitch_level'
    """
    return f"tag_{attribute.replace('-', '_')}"


def _means(windows_ND: np.ndarray, first_C: np.ndarray, count_C: np.ndarray) -> np.ndarray:
    """(C, D) the mean of each clip's windows, normalised again; that of one window is the window."""
    if not len(first_C):
        return windows_ND
    means_CD = np.add.reduceat(windows_ND, first_C, axis=0) / count_C[:, None]
    means_CD[count_C > 1] /= np.linalg.norm(means_CD[count_C > 1], axis=1, keepdims=True)
    return means_CD.astype(np.float32)


def _reject_rows(items: pa.Table, rejects: dict[int, AudioError]) -> Iterator[dict[str, str]]:
    for row, error in sorted(rejects.items()):
        key, reference = (items[name][row].as_py() for name in ("key", "audio"))
        yield {"key": key, "audio": reference, "reason": error.reason, "detail": error.detail}


def _reasons(rejects: dict[int, AudioError]) -> dict[str, int]:
    reasons = [error.reason for error in rejects.values()]
    return {reason: reasons.count(reason) for reason in sorted({*reasons})}
