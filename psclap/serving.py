"""What a served model answers: rows of audio and text to cosines, embeddings or tags, within limits.

Audio is a path (which ends in .EXTENSION), a URL, or the base64 text of a file's bytes. What may come, and how much
of it, the environment decides when the model is loaded:

| variable | default | bounds |
|---|---|---|
| PSCLAP_SERVING_AUDIO | path,url,base64 | the kinds of audio that are taken |
| PSCLAP_SERVING_URL_SCHEMES | http,https,s3,gs,abfs,abfss,hf | of URLs |
| PSCLAP_SERVING_MAX_AUDIO_BYTES | 25000000 | each file, base64 counted decoded |
| PSCLAP_SERVING_MAX_DURATION_S | 120 | each clip |
| PSCLAP_SERVING_MAX_ROWS | 256 | each request |
| PSCLAP_SERVING_MAX_TEXT_CHARACTERS | 10000 | each text |
| PSCLAP_SERVING_BATCH_S | 60 | seconds of sound that the model computes at once |

What these do not do. Paths and URLs are opened by the server, with its rights, its credentials for s3, gs, abfs and
hf, and its place in the network. An answer never holds a file's bytes, but it tells whether a file is there and
whether it is sound, and of sound files their style. URLs of http and https are followed through redirects, and no
address is off limits, neither this machine's nor a cloud's metadata service: a server for people whom you do not
trust takes base64 alone (PSCLAP_SERVING_AUDIO=base64), or has its way out closed by the network. A slow web server
holds a thread for up to five minutes. The body of a request is read whole before these limits see it: bound it in a
proxy before the server. The memory that one clip needs grows with the square of its length in a WavLM: attention in
WavLM-Large takes 2.3 GB for two minutes, by its sizes, and 25 times that for ten.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from psclap import storage
from psclap.embedding import Classified, Embedder
from psclap.errors import PsclapError
from psclap.metrics import check_finite
from psclap.strict import above, at_least, from_mapping, not_empty
from psclap.tags import ATTRIBUTES, resolve_candidates

_PREFIX = "PSCLAP_SERVING_"
_MAX_PATH_CHARACTERS = 4096
_SHOWN_CHARACTERS = 60

Kind = Literal["path", "url", "base64"]
Scheme = Literal["http", "https", "s3", "gs", "abfs", "abfss", "hf"]


@dataclass(frozen=True)
class Limits:
    """What a request may hold; the module's docstring explains each."""

    audio: tuple[Kind, ...] = field(default=("path", "url", "base64"), metadata=not_empty())
    url_schemes: tuple[Scheme, ...] = ("http", "https", "s3", "gs", "abfs", "abfss", "hf")
    max_audio_bytes: int = field(default=25_000_000, metadata=at_least(1))
    max_duration_s: float = field(default=120.0, metadata=above(0))
    max_rows: int = field(default=256, metadata=at_least(1))
    max_text_characters: int = field(default=10_000, metadata=at_least(1))
    batch_s: float = field(default=60.0, metadata=above(0))

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Limits:
        """The limits that the variables of an environment set. Raises ConfigError that names each wrong one."""
        defaults = {each.name: each.default for each in fields(cls)}
        values: dict[str, Any] = {}
        for name in sorted(name for name in environment if name.startswith(_PREFIX)):
            key = name.removeprefix(_PREFIX).lower()
            values[key] = _parsed(environment[name], type(defaults.get(key)))
        return from_mapping(cls, values, f"environment {_PREFIX}*")


def _parsed(text: str, kind: type) -> Any:
    """The value of a variable; the text itself where it is none of its kind, which is refused then."""
    if kind is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text


class Service:
    """Answers requests: a list of audio and one of texts, of equal length, with None for what a row lacks.

    All methods raise PsclapError that names the row, the value and the rule.
    """

    def __init__(self, embedder: Embedder, limits: Limits):
        self._embedder, self._limits = embedder, limits

    def score(self, audios: Sequence[Any], texts: Sequence[Any]) -> np.ndarray:
        """(N,) cosine of each row's audio and text."""
        self._check(audios, texts)
        _check_given(audios, "audio", "task 'score' needs audio and text in every row")
        _check_given(texts, "text", "task 'score' needs audio and text in every row")
        return _finite((self._embed_audio(audios) * self._embedder.embed_text(texts)).sum(1))

    def embed(self, audios: Sequence[Any], texts: Sequence[Any]) -> np.ndarray:
        """(N, D) embedding of each row's audio, or of its text where it has no audio."""
        self._check(audios, texts)
        either = [text if value is None else value for value, text in zip(audios, texts, strict=True)]
        _check_given(either, "audio or text", "task 'embed' needs one of them in every row")
        is_audio = np.array([value is not None for value in audios])
        embeddings = np.empty((len(audios), self._embedder.dim), np.float32)
        embeddings[is_audio] = self._embed_audio(audios)
        embeddings[~is_audio] = self._embedder.embed_text(
            text for value, text in zip(audios, texts, strict=True) if value is None
        )
        return _finite(embeddings)

    def classify(
        self, audios: Sequence[Any], texts: Sequence[Any], candidates: Sequence[str], ensemble: bool
    ) -> list[Classified]:
        """The nearest of the candidates (tags or attributes) to each row's audio; texts are not looked at."""
        self._check(audios, texts)
        if not len(candidates):
            raise PsclapError(f"task 'classify' needs candidates: tags, or of the attributes {', '.join(ATTRIBUTES)}")
        names = resolve_candidates(candidates)
        _check_given(audios, "audio", "task 'classify' needs it in every row")
        return self._embedder.classify_embeddings(self._embed_audio(audios), names, ensemble)

    def _check(self, audios: Sequence[Any], texts: Sequence[Any]) -> None:
        """Everything that needs no file to be opened."""
        if not len(audios):
            raise PsclapError("the request has no rows; give some with a column audio, text or both")
        if len(audios) > self._limits.max_rows:
            raise PsclapError(
                f"the request has {len(audios)} rows, the limit is {self._limits.max_rows}; send several requests"
            )
        for column, values in (("audio", audios), ("text", texts)):
            for row, value in enumerate(values):
                if value is not None and not _is_text(value):
                    raise PsclapError(f"row {row}: {column} {_shown(value)} must be text, and not empty")
        for row, text in enumerate(texts):
            if text is not None and len(text) > self._limits.max_text_characters:
                raise PsclapError(
                    f"row {row}: text has {len(text)} characters, the limit is {self._limits.max_text_characters}"
                )
        self._sources(audios)

    def _sources(self, audios: Sequence[str | None]) -> list[tuple[int, Callable[[], bytes]]]:
        """The number of each row with audio, and what reads it."""
        return [(row, self._source(value, row)) for row, value in enumerate(audios) if value is not None]

    def _source(self, value: str, row: int) -> Callable[[], bytes]:
        kind = _kind(value)
        if kind not in self._limits.audio:
            raise PsclapError(
                f"row {row}: audio {_shown(value)} is a {kind}, and this server takes "
                f"{' and '.join(self._limits.audio)} only"
            )
        if kind == "url":
            self._check_url(value, row)
        limit = self._limits.max_audio_bytes
        return lambda: _decoded(value, limit) if kind == "base64" else storage.read_bounded(value, limit)

    def _check_url(self, url: str, row: int) -> None:
        scheme = url.partition("://")[0].lower()
        if scheme not in self._limits.url_schemes or "::" in url:  # with :: fsspec chains file systems
            raise PsclapError(
                f"row {row}: audio {_shown(url)} must be a plain URL of {', '.join(self._limits.url_schemes)}"
            )

    def _embed_audio(self, audios: Sequence[str | None]) -> np.ndarray:
        waves = (self._load(row, read) for row, read in self._sources(audios))
        return self._embedder.embed_audio(waves)

    def _load(self, row: int, read: Callable[[], bytes]) -> np.ndarray:
        name = f"row {row}: audio"
        try:
            data = read()
        except FileNotFoundError as error:
            raise PsclapError(f"{name}: missing: there is no such file for this server") from error
        except PsclapError as error:
            raise PsclapError(f"{name}: {error}") from error
        return self._embedder.load(data, name, self._limits.max_duration_s)


def _is_text(value: Any) -> bool:
    """Whether it is text with something in it; half a surrogate pair, which JSON can hold, is none."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: str) -> Kind:
    if "://" in value[:_MAX_PATH_CHARACTERS]:
        return "url"
    if len(value) <= _MAX_PATH_CHARACTERS and Path(value).suffix:  # base64 text has no dot
        return "path"
    return "base64"


def _decoded(text: str, max_bytes: int) -> bytes:
    text = "".join(text.split())
    if len(text) > math.ceil(max_bytes / 3) * 4:
        raise PsclapError(f"it has more than {max_bytes} bytes; give a smaller file")
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise PsclapError(f"{_shown(text)} is no URL, no path with an extension, and not base64 ({error})") from error
    if len(data) > max_bytes:
        raise PsclapError(f"it has {len(data)} bytes, the limit is {max_bytes}; give a smaller file")
    return data


def _check_given(values: Sequence[Any], name: str, rule: str) -> None:
    for row, value in enumerate(values):
        if value is None:
            raise PsclapError(f"row {row} has no {name}: {rule}")


def _finite(values: np.ndarray) -> np.ndarray:
    check_finite(values)
    return values


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
