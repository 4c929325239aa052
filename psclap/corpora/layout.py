"""What the corpora of fixed folder layouts share: finding and reading their lists, splits, captions of known labels."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from psclap import log
from psclap.corpora.record import split_of_speaker
from psclap.errors import ConfigError, PsclapError
from psclap.schema import Caption, Split
from psclap.strict import between
from psclap.tags import default_prompt

Gender = Literal["male", "female"]

_NOUNS: dict[Gender, str] = {"male": "man", "female": "woman"}
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True, kw_only=True)
class ClipShares:
    """Options of a corpus without official splits, whose speakers are in all of them: by a hash of the clip's key."""

    val_share: float = field(default=0.02, metadata=between(0, 1))
    test_share: float = field(default=0.02, metadata=between(0, 1))

    def __post_init__(self) -> None:
        if self.val_share + self.test_share > 1:
            raise ConfigError(f"val_share {self.val_share} and test_share {self.test_share} must be 1 at most together")

    def split_of(self, key: str) -> Split:
        """A clip keeps its split when others come or go."""
        return split_of_speaker(key, self.val_share, self.test_share)


def find_list(root: str, name: str, corpus: str) -> Path:
    """A file or folder of the corpus, absolute. Raises PsclapError where the root lacks it."""
    path = Path(root).absolute() / name
    if not path.exists():
        raise PsclapError(
            f"{corpus}: {path} does not exist; set corpus.options.root to the unpacked folder that has {name}"
        )
    return path


def read_lines(path: Path, legacy_encoding: str = "gb18030") -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with where it stands; of any line ends, without a byte order mark.

    Copies of these corpora are in UTF-8, UTF-16 or the encoding of their makers' machines: what is not UTF-8 is
    read as `legacy_encoding`. Raises PsclapError for what is neither.
    """
    # Not splitlines: it also divides at characters that a transcript may hold, such as the line separator.
    lines = re.split(r"\r\n|\n|\r", _decode(path, legacy_encoding))
    return ((f"{path} line {number}", line.rstrip()) for number, line in enumerate(lines, start=1) if line.strip())


def _decode(path: Path, legacy_encoding: str) -> str:
    data = path.read_bytes()
    marked = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    if marked is None and b"\0" in data[:100]:
        marked = "utf-16-le"
    try:
        return data.decode(marked or "utf-8")
    except UnicodeDecodeError as error:
        if marked is None:
            with suppress(UnicodeDecodeError):
                return data.decode(legacy_encoding)
        raise PsclapError(f"{path}: {error}; convert it to UTF-8") from error


def tags_of(value: str | None) -> tuple[str, ...]:
    """A label as tags: of none, none."""
    return (value,) if value else ()


def captions_of(gender: Gender | None, emotion: str | None) -> tuple[Caption, ...]:
    """What can be said of a clip whose speaker's gender or whose emotion, a tag, is known; of neither, nothing.

    >>> [caption.text for caption in captions_of("female", "happy")]
    ['A woman is speaking.', 'A person is speaking in a happy style.', 'A woman is speaking in a happy style.']
    """
    captions = []
    if gender:
        captions.append(Caption("intrinsic", f"A {_NOUNS[gender]} is speaking."))
    if emotion:
        captions.append(Caption("situational", default_prompt(emotion)))
    if gender and emotion:
        captions.append(Caption("combined", default_prompt(emotion).replace("person", _NOUNS[gender])))
    return tuple(captions)


def say_left_out(corpus: str, count: int, what: str, example: object) -> None:
    """Logs how many files are left out, and why, where any are."""
    if count:
        log.warning(
            f"{corpus}: {count} {what}, such as {example}; they are left out", count=count, example=str(example)
        )
