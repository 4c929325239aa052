"""Prompts with their candidates: JSON lines, or the folders that the paper's best-of-N writes.

JSON lines: `{"prompt": "a deep voice", "candidates": ["a.wav", {"audio": "b.wav", "wer": 0.1}], "id": "p1",
"reference": "voice.wav"}`. `id` (else the line's number, from 0) and `reference` may be left out, and `prompt` where
there is a reference. Paths are relative to the file; URLs are taken as they are.

Folders: the candidates of prompt i are `iter_1/audios/i.wav` to `iter_N/audios/i.wav`, and the prompts are the lines of
`iter_1/input_descriptions.txt`. Numbers start at 0 where there is a candidate 0, else at 1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psclap.errors import PsclapError
from psclap.storage import is_remote

DESCRIPTIONS_NAME = "input_descriptions.txt"
_KEYS = ("id", "prompt", "candidates", "reference")
_ITERATION = re.compile(r"iter_(\d+)")


@dataclass(frozen=True)
class Candidate:
    """One rendering: where its audio lies (a path or URL), its name in the input, and what else is known of it."""

    audio: str
    name: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """What was asked for, by a text, a reference clip or both, and its candidates."""

    id: str
    text: str | None
    candidates: tuple[Candidate, ...]
    reference: str | None = None


def read_prompts(path: Path | str) -> list[Prompt]:
    """The prompts of a JSONL file or a folder. Raises PsclapError that names the line or file that breaks a rule."""
    path = Path(path)
    if path.is_dir():
        return list(_of_folder(path))
    prompts = list(_of_lines(path))
    if not prompts:
        raise PsclapError(f"{path} holds no prompts; write one JSON object per line")
    first: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        if first.setdefault(prompt.id, number) != number:
            raise PsclapError(f"{path}: the id {prompt.id!r} is given twice (prompts {first[prompt.id]} and {number})")
    return prompts


def _of_lines(path: Path) -> Iterator[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PsclapError(f"cannot read {path}: {error}; give a JSONL file, or a folder with iter_1, ...") from error
    number = 0
    for line_number, line in enumerate(lines, 1):
        if line.strip():
            yield _prompt(_object(line, f"{path}:{line_number}"), str(number), f"{path}:{line_number}", path.parent)
            number += 1


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_constant=lambda _: None, parse_float=_finite)  # NaN is no JSON: null
    except ValueError as error:
        raise PsclapError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise PsclapError(f"{where} must be an object with the keys {', '.join(_KEYS)}, not {line[:60]!r}")
    if unknown := [key for key in value if key not in _KEYS]:
        raise PsclapError(f"{where}: unknown keys {unknown}; a prompt has the keys {', '.join(_KEYS)}")
    return value


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _prompt(value: Mapping[str, Any], default_id: str, where: str, folder: Path) -> Prompt:
    text, reference = (_text(value.get(key), f"{where}: {key}") for key in ("prompt", "reference"))
    if text is None and reference is None:
        raise PsclapError(f"{where}: a prompt needs a `prompt` (text), a `reference` (audio), or both")
    candidates = value.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        raise PsclapError(f"{where}: candidates must be a list of one or more paths, or objects with `audio`")
    id_ = value.get("id", default_id)
    if isinstance(id_, bool) or not isinstance(id_, (str, int)) or id_ == "":
        raise PsclapError(f"{where}: id {id_!r} must be text or a whole number")
    return Prompt(
        id=str(id_),
        text=text,
        candidates=tuple(_candidate(item, f"{where}: candidates[{n}]", folder) for n, item in enumerate(candidates)),
        reference=_located(reference, folder) if reference is not None else None,
    )


def _text(value: Any, where: str) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise PsclapError(f"{where} {value!r} must be text that is not empty; leave the key out where there is none")
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise PsclapError(f"{where} {value!r} is no Unicode text: {error.reason}; mend it") from error
    return value


def _candidate(value: Any, where: str, folder: Path) -> Candidate:
    columns = dict(value) if isinstance(value, dict) else {"audio": value}
    name = columns.pop("audio", None)
    if not isinstance(name, str) or not name:
        raise PsclapError(f"{where}: {value!r} must be a path, or an object with the path as `audio`")
    return Candidate(_located(name, folder), name, columns)


def _located(path: str, folder: Path) -> str:
    return path if is_remote(path) else str(folder / path)


def _of_folder(folder: Path) -> Iterator[Prompt]:
    iterations = _iterations(folder)
    texts = _descriptions(iterations)
    audios = {iteration.name: _numbered(iteration / "audios") for iteration in iterations}
    numbers = {number for of_iteration in audios.values() for number in of_iteration}
    first = 0 if 0 in numbers else 1
    if first == 1 and len(texts) not in numbers:
        raise PsclapError(
            f"{folder}: no iteration has a candidate 0 or {len(texts)}, so whether the first of {len(texts)} prompts "
            "is number 0 or 1 cannot be told; put an audio file of one of them there"
        )
    if beyond := sorted(number for number in numbers if number >= first + len(texts)):
        raise PsclapError(
            f"{folder}: there are candidates of prompt {beyond[0]}, and {iterations[0].name}/{DESCRIPTIONS_NAME} has "
            f"{len(texts)} lines (the first is prompt {first}); one line per prompt is needed"
        )
    for number, text in enumerate(texts, first):
        # One that is not there keeps its place: it is refused as missing when it comes to be read.
        paths = [audios[it.name].get(number, it / "audios" / f"{number}.wav") for it in iterations]
        yield Prompt(str(number), text, tuple(Candidate(str(p), str(p.relative_to(folder))) for p in paths))


def _iterations(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _ITERATION.fullmatch(path.name))]
    iterations = [path for _, path in sorted(found)]
    if not iterations or not (iterations[0] / DESCRIPTIONS_NAME).is_file():
        raise PsclapError(
            f"{folder} holds no iter_1/{DESCRIPTIONS_NAME}; the layout is iter_1/audios/0.wav, iter_2/audios/0.wav, "
            "..., with one prompt per line in that file; or give a JSONL file"
        )
    return iterations


def _descriptions(iterations: list[Path]) -> list[str]:
    """The prompts. Where other iterations bring theirs too, those must be the same."""
    first, *others = (path / DESCRIPTIONS_NAME for path in iterations if (path / DESCRIPTIONS_NAME).is_file())
    texts = _lines(first)
    for other in others:
        if _lines(other) != texts:
            raise PsclapError(f"{other} differs from {first}: the candidates would be ranked by other prompts; mend it")
    for number, text in enumerate(texts, 1):
        if not text:
            raise PsclapError(f"{first}:{number} is empty; every line is the prompt of a number, none can be left out")
    return texts


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise PsclapError(f"cannot read {path}: {error}") from error


def _numbered(audios: Path) -> dict[int, Path]:
    """The audio files of an iteration by their numbers. Raises PsclapError for two of one number, and other names."""
    files: dict[int, Path] = {}
    for path in sorted(audios.iterdir()) if audios.is_dir() else []:
        if path.name.startswith("."):
            continue
        if not path.stem.isdecimal():
            raise PsclapError(f"{path} is not named by its prompt's number, such as 0.wav; move it away")
        if int(path.stem) in files:
            raise PsclapError(f"{path} and {files[int(path.stem)]} are both of prompt {int(path.stem)}; keep one")
        files[int(path.stem)] = path
    return files
