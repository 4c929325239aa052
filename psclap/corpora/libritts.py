"""LibriTTS and LibriTTS-R (CC BY 4.0): 2,456 English readers of audiobooks, 585 h, 24 kHz.

`SUBSET/SPEAKER/CHAPTER/NAME.wav` with `NAME.normalized.txt` and `NAME.original.txt` beside it. The splits are the
official ones, by the subset's name: train-*, dev-* and test-*; no speaker is in two of them, so a voice of dev or
test is none that train has. With `clip_shares`, clips of all speakers of all subsets are held out instead, which is
what a model that speaks needs. `speakers.tsv`, or `SPEAKERS.txt`, says each reader's gender where it is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from psclap.corpora.keys import safe_sample_key
from psclap.corpora.layout import ClipShares, Gender, captions_of, find_list, read_lines, say_left_out, tags_of
from psclap.corpora.record import SPLIT_NAMES
from psclap.errors import ConfigError, PsclapError
from psclap.parallel import process_map
from psclap.schema import Utterance
from psclap.strict import not_empty

_SUFFIXES = {"normalised": ".normalized.txt", "original": ".original.txt"}
_LISTS_OF_SPEAKERS = ("speakers.tsv", "SPEAKERS.txt", "SPEAKERS.TXT")
_GENDERS: dict[str, Gender] = {"M": "male", "F": "female"}


@dataclass(frozen=True, kw_only=True)
class LibriTTS:
    """Options: the folder of the subsets, which of them, which text, its language for espeak-ng, the shares."""

    root: str
    subsets: tuple[str, ...] = field(default=("train-clean-100", "dev-clean", "test-clean"), metadata=not_empty())
    text: Literal["normalised", "original"] = "normalised"
    language: str = "en-us"
    clip_shares: ClipShares | None = None

    def __post_init__(self) -> None:
        for subset in self.subsets:
            if subset.partition("-")[0] not in SPLIT_NAMES:
                raise ConfigError(f"subsets: {subset!r} must begin with train-, dev- or test-")

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Yields an utterance per text; the audio is read when it is sharded. Speakers are read by several processes.

        Audio without a text is left out, and counted. Raises PsclapError for a missing subset and an empty text.
        """
        subsets = [find_list(self.root, subset, "libritts") for subset in self.subsets]
        speakers = [path for subset in subsets for path in sorted(subset.iterdir()) if path.is_dir()]
        read = partial(_of_speaker, self, _genders(Path(self.root)))
        mute: list[Path] = []
        for utterances, without_text in process_map(read, speakers, processes):
            yield from utterances
            mute += without_text
        say_left_out("libritts", len(mute), f"wav files have no {_SUFFIXES[self.text]}", mute[0] if mute else "")


def _of_speaker(options: LibriTTS, genders: Mapping[str, Gender], speaker: Path) -> tuple[list[Utterance], list[Path]]:
    """The utterances of a speaker's folder, and its audio that has no text."""
    suffix = _SUFFIXES[options.text]
    texts = sorted(speaker.glob(f"*/*{suffix}"))
    named = {path.with_name(path.name.removesuffix(suffix) + ".wav") for path in texts}
    utterances = [_utterance(options, genders.get(speaker.name), path) for path in texts]
    return utterances, sorted(set(speaker.glob("*/*.wav")) - named)


def _utterance(options: LibriTTS, gender: Gender | None, path: Path) -> Utterance:
    subset, speaker, shares = path.parts[-4], path.parts[-3], options.clip_shares
    name = path.name.removesuffix(_SUFFIXES[options.text])
    text = " ".join(line for _, line in read_lines(path, "cp1252"))
    if not text:
        raise PsclapError(f"{path} is empty; restore it, or take it away with its audio")
    return Utterance(
        key=safe_sample_key(f"{subset}-{name}"),
        audio=str(path.with_name(f"{name}.wav")),
        speaker=f"libritts-{speaker}",
        source="libritts",
        split=SPLIT_NAMES[subset.partition("-")[0]] if shares is None else shares.split_of(name),
        captions=captions_of(gender, None),
        intrinsic_tags=tags_of(gender),
        transcript=text,
        language=options.language,
    )


def _genders(root: Path) -> dict[str, Gender]:
    """Of each reader, by number: rows of number, gender and more, divided by tabs or, with comments, by bars."""
    path = next((root / name for name in _LISTS_OF_SPEAKERS if (root / name).is_file()), None)
    if path is None:
        return {}
    rows = (line.replace("|", "\t").split("\t") for _, line in read_lines(path, "cp1252") if not line.startswith(";"))
    cells = ([cell.strip() for cell in row] for row in rows)
    return {row[0]: _GENDERS[row[1]] for row in cells if len(row) > 1 and row[1] in _GENDERS}
