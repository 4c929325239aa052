"""One self-contained HTML page about synthesised speech: numbers, alignments, spectrograms, sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psclap.decoding import Wave
from psclap.report.clips import MAX_DURATION_S, wave_uri
from psclap.report.document import write_document
from psclap.report.numbers import COLUMNS
from psclap.tts.evaluation.alignment import Timeline
from psclap.tts.evaluation.evaluate import Sound
from psclap.tts.evaluation.recordings import Recording
from psclap.tts.mel import MelConfig
from psclap.tts.report import figures, tables

_PACKAGE = "psclap.tts.report"


@dataclass(frozen=True, eq=False)
class Example:
    """A recording to show: what systems made of its sentence, and its phones as predicted and as known."""

    recording: Recording
    sounds: Mapping[str, Sound] = field(default_factory=dict)
    alignment: tuple[Timeline, Timeline] | None = None  # predicted, known


@dataclass(frozen=True)
class Player:
    """A sound of the page: its name, spectrogram and MP3, and how wide it is beside the longest of its sentence."""

    name: str
    picture: str
    uri: str
    duration_s: float
    played_s: float
    width: float


@dataclass(frozen=True)
class Card:
    """A sentence of the page."""

    key: str
    transcript: str
    tags: tuple[str, ...]
    players: list[Player]
    alignment: figures.AlignmentDrawing | None


def write_html(
    path: Path | str, title: str, mel: MelConfig, results: Mapping[str, Any], examples: Sequence[Example]
) -> None:
    """Writes the page about a model named `title`: equal bytes for equal arguments.

    `results` is as psclap/tts/evaluation/results.py says; a part that it lacks, the page lacks.
    """
    content = {
        "title": title,
        "about": results["about"],
        "systems": tables.systems(results),
        "alignments": tables.alignments(results),
        "columns": COLUMNS,
        "retrieval": tables.retrieval(results),
        "names": tables.NAMES,
        "cards": [_card(example, mel) for example in examples],
    }
    write_document(path, "speech.html", content, package=_PACKAGE, styles=("style.css", "speech.css"))


def _card(example: Example, mel: MelConfig) -> Card:
    row, recording = example.recording.row, example.recording
    sounds = {"recording": Sound(recording.log_mel, recording.wave), **example.sounds}
    longest = max(len(_beginning(sound.wave, mel)) for sound in sounds.values())
    top_db = figures.loudest_db(recording.log_mel, mel)
    return Card(
        key=recording.key,
        transcript=row["transcript"],
        tags=(row["speaker"], *row["intrinsic_tags"], *row["situational_tags"]),
        players=[_player(name, sound, mel, top_db, longest) for name, sound in sounds.items()],
        alignment=figures.draw_alignment(recording.log_mel, mel, *example.alignment) if example.alignment else None,
    )


def _player(name: str, sound: Sound, mel: MelConfig, top_db: float, longest: int) -> Player:
    wave = _beginning(sound.wave, mel)
    return Player(
        name=tables.NAMES.get(name, name),
        picture=figures.spectrogram_uri(sound.log_mel[: mel.frames(len(wave))], mel, top_db),
        uri=wave_uri(wave, mel.sample_rate_hz),
        duration_s=len(sound.wave) / mel.sample_rate_hz,
        played_s=len(wave) / mel.sample_rate_hz,
        width=100 * len(wave) / longest,
    )


def _beginning(wave: Wave, mel: MelConfig) -> Wave:
    return wave[: round(MAX_DURATION_S * mel.sample_rate_hz)]
