"""Records with named values, a manifest's row or a sample's JSON, as Utterances.

What manifests and WebDataset shards share: the names of our fields, their defaults, captions from a template,
tags from label columns, and the split, which is given or follows from the speaker's name.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from psclap.errors import ConfigError, PsclapError
from psclap.schema import CAPTION_SETS, SPLITS, Caption, CaptionSet, Split, Utterance
from psclap.storage import check_no_credentials
from psclap.strict import between
from psclap.tags import check_tags

CAPTION_FIELDS: tuple[str, ...] = ("captions", *(f"{caption_set}_captions" for caption_set in CAPTION_SETS))
TAG_FIELDS = ("intrinsic_tags", "situational_tags", "classification_tags")
FIELDS = (
    *("speaker", "source", "split", *CAPTION_FIELDS, *TAG_FIELDS),
    *("transcript", "language"),
)
"""Our names for what a record tells about a clip, besides its key and its audio."""

SPLIT_NAMES: dict[str, Split] = {
    **{"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"},
    **{"test": "test", "holdout": "test"},
}
"""The names that corpora give to the splits."""

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_SEARCHED_FOR_UNMAPPED = 100_000


def split_of_speaker(speaker: str, val_share: float, test_share: float) -> Split:
    """The split of all of a speaker's clips; it depends on nothing but the name, so it stays when data grow.

    >>> split_of_speaker("p001", 0.0, 0.0), split_of_speaker("p001", 0.0, 1.0)
    ('train', 'test')
    """
    position = int.from_bytes(hashlib.sha256(speaker.encode()).digest()[:8], "big") / 2**64
    if position < test_share:
        return "test"
    return "val" if position < test_share + val_share else "train"


@dataclass(frozen=True)
class Record:
    """A clip's values under the names that the source gives them; `where` says in messages which record it is.

    Text that stands for a list is divided at `separator`, where there is one.
    """

    where: str
    key: str
    audio: str
    values: Mapping[str, Any]
    separator: str | None = None

    def text(self, name: str) -> str:
        """A value as text, empty where it is null. Raises PsclapError for what is neither text nor a number."""
        value = self.values[name]
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise PsclapError(f"{self.where}: {name} {value!r} must be text")
        return str(value)

    def filled(self, name: str, rule: str) -> str:
        """A value as text that is not empty; otherwise PsclapError with the rule."""
        text = self.text(name)
        if not text.strip():
            raise PsclapError(f"{self.where}: {name} is empty; {rule}")
        return text

    def elements(self, name: str) -> list[Any]:
        """The elements of a list: of a real one, or of text with separators; empty ones are left out."""
        value = self.values[name]
        if isinstance(value, (list, tuple)):
            return [element for element in value if not isinstance(element, str) or element.strip()]
        text = self.text(name)
        parts = text.split(self.separator) if self.separator else [text]
        return [part.strip() for part in parts if part.strip()]


@dataclass(frozen=True)
class Defaults:
    """What every clip gets where the source has no such field."""

    speaker: str | None = None
    source: str | None = None
    split: Split | None = None
    transcript: str = ""
    language: str = "en"


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """The options that manifests and WebDataset shards share; docs/corpora.md explains each."""

    defaults: Defaults = field(default_factory=Defaults)
    caption_set: CaptionSet = "combined"
    caption_template: str | None = None
    intrinsic_tag_map: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    situational_tag_map: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split_map: Mapping[str, Split] = field(default_factory=dict)
    val_share: float = field(default=0.0, metadata=between(0, 1))
    test_share: float = field(default=0.0, metadata=between(0, 1))

    def __post_init__(self) -> None:
        if self.val_share + self.test_share > 1:
            raise ConfigError(f"val_share {self.val_share} and test_share {self.test_share} must be 1 at most together")
        if self._by_speaker and self.defaults.split:
            raise ConfigError(f"defaults.split {self.defaults.split!r} and val_share or test_share: give one of them")
        if self.caption_template is not None and re.search(r"[{}]", _PLACEHOLDER.sub("", self.caption_template)):
            raise ConfigError(f"caption_template: {self.caption_template!r} has a brace without its partner")
        for name, tag_map in self._tag_maps():
            try:
                check_tags(tag for tag in tag_map.values() if tag is not None)
            except PsclapError as error:
                raise ConfigError(f"tag map of {name}: {error}") from error

    @property
    def _by_speaker(self) -> bool:
        return self.val_share > 0 or self.test_share > 0

    def label_names(self) -> set[str]:
        """The source's names that the template, the tag maps and `only` use."""
        placeholders = _PLACEHOLDER.findall(self.caption_template or "")
        return {*placeholders, *self.intrinsic_tag_map, *self.situational_tag_map, *self.only}

    def check_fields(self, names: Mapping[str, str], where: str) -> None:
        """Raises ConfigError where what a clip must have can come neither from `names` (ours to theirs) nor else."""
        for name in ("speaker", "source"):
            if name not in names and getattr(self.defaults, name) is None:
                raise ConfigError(f"{where} has no field for {name}; name it, or set defaults.{name}")
        if self._by_speaker and "split" in names:
            raise ConfigError(
                f"{where} has the split {names['split']!r}, and val_share or test_share ask for one by speaker; "
                "leave them out, or set columns.split to null"
            )
        if "split" not in names and self.defaults.split is None and not self._by_speaker:
            raise ConfigError(
                f"{where} has no field for split; name it, or set defaults.split, val_share or test_share"
            )
        captions = [names[name] for name in CAPTION_FIELDS if name in names]
        if captions and self.caption_template is not None:
            raise ConfigError(
                f"{where} has captions ({captions}) and there is a caption_template; leave one of them out"
            )
        if (
            not captions
            and self.caption_template is None
            and "transcript" not in names
            and not self.defaults.transcript
        ):
            raise ConfigError(
                f"{where} has no captions and no transcript; name a field of either, or write a caption_template"
            )

    def from_records(self, records: Iterable[Record], names: Mapping[str, str]) -> Iterator[Utterance]:
        """Yields the utterance of each record that `only` lets through; `names` maps our fields to theirs.

        Raises PsclapError that names the record and its value, and for values that a tag map lacks all of them.
        """
        chosen = filter(self._is_chosen, records)
        for record in chosen:
            if self._unmapped(record):
                raise PsclapError(self._say_unmapped(record, chosen))
            yield self._utterance(record, names)

    def _is_chosen(self, record: Record) -> bool:
        return all(record.text(name) in values for name, values in self.only.items())

    def _tag_maps(self) -> Iterator[tuple[str, Mapping[str, str | None]]]:
        yield from self.intrinsic_tag_map.items()
        yield from self.situational_tag_map.items()

    def _unmapped(self, record: Record) -> list[tuple[str, str]]:
        return [(name, record.text(name)) for name, tag_map in self._tag_maps() if record.text(name) not in tag_map]

    def _say_unmapped(self, first: Record, rest: Iterator[Record]) -> str:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for record in chain([first], islice(rest, _SEARCHED_FOR_UNMAPPED)):
            for name, value in self._unmapped(record):
                counts[name][value] += 1
        lacking = "; ".join(
            f"{name}: " + ", ".join(f"{value!r} ({count} times)" for value, count in counter.most_common())
            for name, counter in counts.items()
        )
        return f"{first.where}: values that their tag map lacks: {lacking}; map each to a tag, or to null for none"

    def _utterance(self, record: Record, names: Mapping[str, str]) -> Utterance:
        def value(name: str) -> str:
            if name in names:
                return record.filled(names[name], f"every clip needs its {name}")
            return getattr(self.defaults, name)

        check_no_credentials(record.audio, f"{record.where}: audio")
        speaker, captions = value("speaker"), self._captions(record, names)
        transcript = record.text(names["transcript"]) if "transcript" in names else self.defaults.transcript
        if not captions and not transcript.strip():
            raise PsclapError(f"{record.where}: there is no caption and no transcript; every clip needs one of them")
        return Utterance(
            key=record.key,
            audio=record.audio,
            speaker=speaker,
            source=value("source"),
            split=self._split(record, names, speaker),
            captions=captions,
            intrinsic_tags=_tags(record, names.get("intrinsic_tags"), self.intrinsic_tag_map),
            situational_tags=_tags(record, names.get("situational_tags"), self.situational_tag_map),
            classification_tags=_tags(record, names.get("classification_tags"), {}),
            transcript=transcript,
            language=value("language"),
        )

    def _split(self, record: Record, names: Mapping[str, str], speaker: str) -> Split:
        if "split" not in names:
            return self.defaults.split or split_of_speaker(speaker, self.val_share, self.test_share)
        known = {**SPLIT_NAMES, **self.split_map}
        name = record.filled(names["split"], f"it must be one of {', '.join(known)}")
        if name not in known:
            raise PsclapError(
                f"{record.where}: {names['split']} {name!r} must be one of {', '.join(known)}; "
                f"map it by split_map to one of {', '.join(SPLITS)}"
            )
        return known[name]

    def _captions(self, record: Record, names: Mapping[str, str]) -> tuple[Caption, ...]:
        if self.caption_template is not None:
            text = _PLACEHOLDER.sub(
                lambda match: record.filled(match[1], "the caption_template needs it"), self.caption_template
            )
            return (Caption(self.caption_set, text),)
        sets: tuple[CaptionSet, ...] = (self.caption_set, *CAPTION_SETS)
        captions = tuple(
            _caption(record, element, caption_set)
            for name, caption_set in zip(CAPTION_FIELDS, sets, strict=True)
            if name in names
            for element in record.elements(names[name])
        )
        # A list of none says that there is none, as in a corpus for text to speech; an empty cell is a slip.
        empty = [names[name] for name in CAPTION_FIELDS if name in names and record.values[names[name]] != []]
        if not captions and empty:
            raise PsclapError(f"{record.where}: {', '.join(empty)} is empty; every clip needs a caption")
        return captions


def _caption(record: Record, element: Any, caption_set: CaptionSet) -> Caption:
    """A caption from its text, or from psclap's own form, a mapping with `set` and `text`."""
    if isinstance(element, str):
        return Caption(caption_set, element)
    if isinstance(element, Mapping) and element.get("set") in CAPTION_SETS and isinstance(element.get("text"), str):
        return Caption(element["set"], element["text"])
    raise PsclapError(
        f"{record.where}: caption {element!r} must be text, or have a text and a set, one of {', '.join(CAPTION_SETS)}"
    )


def _tags(record: Record, name: str | None, tag_map: Mapping[str, Mapping[str, str | None]]) -> tuple[str, ...]:
    listed = record.elements(name) if name is not None else []
    mapped = [tags[record.text(label)] for label, tags in tag_map.items()]
    return tuple(dict.fromkeys([*_known(record, listed), *(tag for tag in mapped if tag is not None)]))


def _known(record: Record, tags: list[str]) -> tuple[str, ...]:
    try:
        return check_tags(tags)
    except PsclapError as error:
        raise PsclapError(f"{record.where}: {error}") from error
