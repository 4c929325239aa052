"""A text-to-speech system on held-out clips, to a report folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from psclap.errors import PsclapError
from psclap.evaluation import RESAMPLES
from psclap.evaluation.bootstrap import LEVEL, check_resamples
from psclap.evaluation.clips import Clips
from psclap.evaluation.report import EVALUATION_NAME
from psclap.evaluation.run import check_report_folder
from psclap.files import atomic_folder, write_json
from psclap.report.document import PAGE_NAME
from psclap.schema import Split
from psclap.shards.index import ShardIndex
from psclap.tts.evaluation.alignment import Timeline, alignment_errors
from psclap.tts.evaluation.evaluate import MEAN, Heard, Synthesiser, TimedSynthesiser, evaluate, systems
from psclap.tts.evaluation.recordings import Recording, average_mel, held_out, recordings, spread
from psclap.tts.evaluation.results import summary, write_rows
from psclap.tts.evaluation.retrieval import text_mel_retrieval
from psclap.tts.mel import MelConfig
from psclap.tts.report.page import Example, write_html
from psclap.tts.vocoder import Vocoder

ROWS_NAME = "clips.csv"
MAX_CLIPS, MAX_MATCHED = 40, 1000
EXAMPLES = 6


class Matcher(Protocol):
    """What Speech-Clip does, as evaluation sees it: texts and log-mels into one space, and onto each other."""

    @property
    def mel(self) -> MelConfig:
        """The definition of the log-mels that it takes."""

    def can_say(self, row: Mapping[str, Any]) -> bool:
        """Whether it knows what a row of the index says, and who says it."""

    def embed(self, rows: Sequence[Mapping[str, Any]], log_mels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) embeddings of the rows' transcripts, and of their (F, num_mel_bins) log-mels."""

    def align(self, row: Mapping[str, Any], log_mel: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
        """The symbols of a row's transcript, and (N,) the frames of its log-mels that each takes."""


def evaluate_synthesiser(
    folder: Path,
    title: str,
    index: ShardIndex,
    model: Synthesiser,
    vocoder: Vocoder,
    *,
    untrained: Synthesiser | None = None,
    known: Mapping[str, Timeline] | None = None,
    split: Split = "test",
    max_clips: int = MAX_CLIPS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes evaluation.json, clips.csv and report.html, whole or not at all; returns the results that are in them.

    `known` are the timelines of clips, by key, that the model's durations are compared with, where it tells them and
    there are any. Raises PsclapError before anything is said where `folder` cannot be written to or holds something
    else, where the vocoder takes other mels than the model makes, and where the split has no clip with a transcript.
    """
    check_resamples(resamples)
    _check_vocoder(vocoder, model)
    check_report_folder(folder)
    rows, left_out = held_out(index, split, max_clips, model.mel, model.can_say)
    clips = recordings(index, rows, model.mel)
    compared = systems(model, average_mel(index, model.mel), untrained)
    heard = evaluate(clips, compared, model.mel, vocoder, EXAMPLES)
    units = Clips.of(index, rows)
    about = _about(title, index, split, units, left_out, resamples, seed) | {"vocoder": vocoder.name}
    unit_names = dict(zip(units.keys, units.unit_names, strict=True))
    results: dict[str, Any] = {"about": about, "systems": summary(heard.rows, unit_names, resamples, seed)}
    timelines = _timelines(model, clips, known or {})
    if timelines:
        results["durations"] = alignment_errors(timelines, resamples, seed)
    with atomic_folder(folder) as partial:
        write_rows(partial / ROWS_NAME, heard.rows)
        _write(partial, title, model.mel, results, _examples(clips, heard))
    return results


def evaluate_matcher(
    folder: Path,
    title: str,
    index: ShardIndex,
    matcher: Matcher,
    *,
    known: Mapping[str, Timeline] | None = None,
    split: Split = "test",
    max_clips: int = MAX_MATCHED,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """As `evaluate_synthesiser`, of what retrieves and aligns: evaluation.json and report.html.

    `known` are the timelines of clips, by key, that the alignment is compared with.
    """
    check_resamples(resamples)
    check_report_folder(folder)
    rows, left_out = held_out(index, split, max_clips, matcher.mel, matcher.can_say)
    clips = recordings(index, rows, matcher.mel)
    text_ND, mel_ND = matcher.embed([clip.row for clip in clips], [clip.log_mel for clip in clips])
    texts = [clip.row["transcript"] for clip in clips]
    results: dict[str, Any] = {
        "about": _about(title, index, split, Clips.of(index, rows), left_out, resamples, seed),
        "retrieval": text_mel_retrieval(text_ND, mel_ND, texts, resamples, seed),
    }
    timelines = {
        clip.key: (Timeline.of_frames(*matcher.align(clip.row, clip.log_mel), matcher.mel), known[clip.key])
        for clip in clips
        if known and clip.key in known
    }
    if timelines:
        results["alignment"] = alignment_errors(timelines, resamples, seed)
    shown = [Example(clip, alignment=timelines[clip.key]) for clip in clips if clip.key in timelines]
    with atomic_folder(folder) as partial:
        _write(partial, title, matcher.mel, results, spread(shown, EXAMPLES))
    return results


def _check_vocoder(vocoder: Vocoder, model: Synthesiser) -> None:
    if vocoder.mel != model.mel:
        raise PsclapError(
            f"the vocoder {vocoder.name} was loaded for mels of the definition {vocoder.mel}, the model makes "
            f"{model.mel}; load it for the model's"
        )


def _timelines(
    model: Synthesiser, clips: Sequence[Recording], known: Mapping[str, Timeline]
) -> dict[str, tuple[Timeline, Timeline]]:
    """The timelines of clips as the model says them, beside the known ones."""
    if not isinstance(model, TimedSynthesiser):
        return {}
    return {
        clip.key: (Timeline.of_frames(*model.durations(clip.row), model.mel), known[clip.key])
        for clip in clips
        if clip.key in known
    }


def _examples(clips: Sequence[Recording], heard: Heard) -> list[Example]:
    """What is worth listening to: not the drone of the mean mel."""
    return [
        Example(clip, {name: sound for name, sound in heard.sounds[clip.key].items() if name != MEAN})
        for clip in clips
        if clip.key in heard.sounds
    ]


def _write(folder: Path, title: str, mel: MelConfig, results: Mapping[str, Any], examples: Sequence[Example]) -> None:
    write_json(folder / EVALUATION_NAME, results)
    write_html(folder / PAGE_NAME, title, mel, results, examples)


def _about(
    title: str, index: ShardIndex, split: Split, clips: Clips, left_out: int, resamples: int, seed: int
) -> dict[str, Any]:
    """What the numbers are of, and how their intervals came about.

    `left_out` counts the clips that the model cannot say, or be told by: of phonemes that no training clip had, or
    of fewer frames than phonemes.
    """
    return {
        "model": title,
        "split": split,
        "clips": len(clips.rows),
        "left_out": left_out,
        "index_sha256": index.sha256,
        "unit": clips.unit,
        "units": len({*clips.unit_names}),
        "resamples": resamples,
        "seed": seed,
        "level": LEVEL,
    }
