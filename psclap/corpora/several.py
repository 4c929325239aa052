"""Several corpora as one. Each has a prefix, which begins its keys, so that no two clips share one.

Speakers, sources and splits stay as each corpus gives them: a speaker of two corpora is one speaker where the
names are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psclap.corpora.keys import MAX_KEY_BYTES, hashed_key
from psclap.errors import ConfigError
from psclap.schema import Utterance
from psclap.storage import is_remote
from psclap.strict import not_empty

if TYPE_CHECKING:
    from psclap.corpora import Corpus

# Without a hyphen: the first one of a key then ends the prefix, and no two prefixes can give the same key.
_PREFIX = re.compile(r"[A-Za-z0-9]{1,16}")


@dataclass(frozen=True)
class Member:
    """One of the corpora: its name and options as under `corpus`, and what its keys begin with."""

    name: str
    prefix: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Several:
    """The corpora, in the order in which their utterances are listed."""

    corpora: tuple[Member, ...] = field(metadata=not_empty())

    def __post_init__(self) -> None:
        prefixes = [member.prefix for member in self.corpora]
        for prefix in prefixes:
            if not _PREFIX.fullmatch(prefix):
                raise ConfigError(f"prefix {prefix!r} must be 1 to 16 letters and digits")
        if len(set(prefixes)) != len(prefixes):
            raise ConfigError(f"prefixes {prefixes} must differ, so that keys do")
        self._built()

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Yields every utterance of every corpus; a corpus that makes audio has the folder of its prefix for it."""
        for member, corpus in zip(self.corpora, self._built(), strict=True):
            for utterance in corpus.utterances(folder / member.prefix, processes):
                yield replace(
                    utterance,
                    key=_prefixed(member.prefix, utterance.key),
                    audio=_from_parent(member.prefix, utterance.audio),
                )

    def _built(self) -> list[Corpus]:
        from psclap.corpora import build_corpus  # the register lists this file too

        where = enumerate(self.corpora)
        return [build_corpus(member.name, member.options, f"corpora[{number}]") for number, member in where]


def _prefixed(prefix: str, key: str) -> str:
    room = MAX_KEY_BYTES - len(prefix) - 1
    return f"{prefix}-{key if len(key) <= room else hashed_key(key, room)}"


def _from_parent(prefix: str, audio: str) -> str:
    return audio if is_remote(audio) or Path(audio).is_absolute() else f"{prefix}/{audio}"
