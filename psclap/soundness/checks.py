"""Is a data set sound? Faults that would spoil a training or its evaluation, and oddities worth a look.

An error makes the data set unsound; a warning does not. Everything here looks at the table alone; the shards
themselves are checked in integrity.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from psclap.schema import CAPTION_SETS, SPLITS
from psclap.soundness.columns import TAG_COLUMNS, Coded, Columns, distinct_pairs
from psclap.soundness.findings import MAX_EXAMPLES, Finding, Report, error, report, warning
from psclap.soundness.statistics import clip_durations_s, statistics
from psclap.tags import KNOWN_TAGS

MIN_TAG_COUNT = 10
MIN_REPEATS, MIN_REPEAT_SHARE = 100, 0.01
MAX_REJECT_RATE = 0.01
FENCE_WIDTH = 3.0
"""In interquartile ranges of the log-duration beyond the quartiles: Tukey's fences for what is far out."""


def check(
    table: pa.Table,
    sample_rate_hz: int | None = None,
    summary: Mapping[str, Any] | None = None,
    *,
    min_tag_count: int = MIN_TAG_COUNT,
) -> Report:
    """Checks the table of an index, or of a manifest, for which there are no durations and byte ranges to check.

    `summary` is the shards' summary.json. Raises PsclapError for a table that is neither.
    """
    columns, summary = Columns(table), summary or {}
    durations_s = clip_durations_s(columns, sample_rate_hz)
    findings = [
        *_identity(columns),
        *_vocabulary(columns),
        *_captions(columns),
        *_lengths(columns),
        *_byte_ranges(columns),
        *_summary(columns, summary),
        *_missing(columns),
        *_tag_counts(columns, min_tag_count),
        *_durations(columns, durations_s),
    ]
    return report(findings, statistics(columns, sample_rate_hz, summary))


def _clips(columns: Columns, chosen: np.ndarray) -> tuple[str, int, list[str]]:
    """Unit, count and examples of a finding about the rows of which `chosen` is true."""
    return "clips", int(chosen.sum()), columns.examples(chosen, MAX_EXAMPLES)


def _values(coded: Coded, chosen: np.ndarray) -> tuple[int, list[str]]:
    """Count and examples of the distinct values of which `chosen` is true."""
    numbers = np.flatnonzero(chosen)
    return len(numbers), coded.values.take(pa.array(numbers[:MAX_EXAMPLES])).to_pylist()


def _identity(columns: Columns) -> Iterator[Finding]:
    key = columns.coded("key")
    yield error("no clips", "tables", not len(columns), [], "Check that the corpus yields utterances.")
    yield error("clips without key", *_clips(columns, key.blank[key.codes]), "Give every clip a key.")
    yield error(
        "duplicate keys",
        "keys",
        *_values(key, (key.counts > 1) & ~key.blank),
        "Make keys unique, for example by putting the source before them.",
    )
    source, speaker = columns.coded("source"), columns.coded("speaker")
    nameless = speaker.blank[speaker.codes]
    ids, _ = distinct_pairs(columns.speaker_ids[~nameless], columns.coded("split").where(~nameless))
    speakers, splits = np.unique(ids, return_counts=True)
    shared = speakers[splits > 1]
    width = max(len(speaker.values), 1)
    examples = (f"{source.values[number // width]}/{speaker.values[number % width]}" for number in shared.tolist())
    # A closed circle of voices is meant: text to speech can only speak with those that it knows.
    finding = warning if len(shared) == len(speakers) else error
    advice = (
        "Give each speaker one split, or test scores count voices that training has heard (text to speech: leave it)."
    )
    yield finding("speakers in several splits", "speakers", len(shared), examples, advice)
    advice = "Name the speakers; without names nothing shows whether a test speaker was trained on."
    yield warning("clips without speaker", *_clips(columns, nameless), advice)


def _vocabulary(columns: Columns) -> Iterator[Finding]:
    for level, name in TAG_COLUMNS.items():
        tags = columns.tags(level)
        unknown = np.array([tag not in KNOWN_TAGS for tag in tags.names], bool) & (tags.counts > 0)
        advice = f"Map the tags of {name} to the vocabulary of psclap/tags.py."
        yield error(f"unknown {level} tags", "tags", *_values(tags, unknown), advice)
    for coded, known, what in (
        (columns.coded("split"), SPLITS, "splits"),
        (columns.captions.sets, CAPTION_SETS, "caption sets"),
    ):
        unknown = np.array([value not in known for value in coded.names], bool)
        yield error(f"unknown {what}", what, *_values(coded, unknown), f"Use only {', '.join(known)}.")


def _captions(columns: Columns) -> Iterator[Finding]:
    captions, texts = columns.captions, columns.captions.texts
    total = np.bincount(captions.rows, minlength=len(columns))
    blank = np.bincount(captions.rows[texts.blank[texts.codes]], minlength=len(columns))
    transcript = columns.coded("transcript")
    mute = transcript.blank[transcript.codes]
    advice = "Give every clip a caption or a transcript, or leave it out."
    yield error("clips without caption and transcript", *_clips(columns, (total == 0) & mute), advice)
    advice = "Training and evaluation by captions pass them over; they serve text to speech."
    yield warning("clips without caption", *_clips(columns, (total == 0) & ~mute), advice)
    yield error("blank captions", *_clips(columns, blank > 0), "Leave captions without text out.")
    limit = max(MIN_REPEATS, MIN_REPEAT_SHARE * len(columns))
    frequent = (texts.counts > limit)[texts.codes]
    of_clip = distinct_pairs(captions.rows[frequent], texts.where(frequent))
    clips = np.bincount(of_clip[1], minlength=len(texts.values))
    often = np.flatnonzero((clips > limit) & ~texts.blank)
    often = often[np.argsort(-clips[often], kind="stable")]
    examples = (f"{clips[number]} clips: {texts.values[number]}" for number in often)
    advice = f"Each stands on more than {limit:.0f} clips, which retrieval cannot tell apart; vary the wording."
    yield warning("captions of very many clips", "captions", len(often), examples, advice)


def _lengths(columns: Columns) -> Iterator[Finding]:
    if "num_samples" in columns:
        empty = columns.numbers("num_samples") <= 0
        yield error("clips without samples", *_clips(columns, empty), "Leave the clips out, or mend their audio.")


def _byte_ranges(columns: Columns) -> Iterator[Finding]:
    if "shard" not in columns:
        return
    offset, length = columns.numbers("byte_offset"), columns.numbers("byte_length")
    impossible = (offset < 0) | (length <= 0)
    advice = "The index does not fit the shards; rebuild both with `dvc repro -f shard`."
    yield error("impossible byte ranges", *_clips(columns, impossible), advice)
    shard = columns.coded("shard").codes
    order = np.lexsort((offset, shard))
    inside = np.zeros(len(columns), bool)
    begins_early = offset[order][1:] < (offset + length)[order][:-1]
    inside[order[1:]] = begins_early & (shard[order][1:] == shard[order][:-1])
    yield error("overlapping byte ranges", *_clips(columns, inside & ~impossible), advice)


def _summary(columns: Columns, summary: Mapping[str, Any]) -> Iterator[Finding]:
    stated = summary.get("clips", len(columns))
    examples = [f"summary.json says {stated} clips, the index has {len(columns)}"]
    advice = "Index and summary are not of one run; rebuild both with `dvc repro -f shard`."
    yield error("wrong summary", "counts", stated != len(columns), examples, advice)
    rejected = summary.get("rejected", 0)
    if rejected > MAX_REJECT_RATE * (rejected + len(columns)):
        reasons = (f"{reason}: {count}" for reason, count in summary.get("reject_reasons", {}).items())
        yield warning("rejects", "clips", rejected, reasons, "rejects.jsonl beside the index names each clip.")


def _missing(columns: Columns) -> Iterator[Finding]:
    missing = [split for split in SPLITS if split not in columns.coded("split").names]
    advice = "Training needs train and val, evaluation needs test."
    yield warning("missing splits", "splits", len(missing), missing, advice)
    transcript = columns.coded("transcript")
    silent = transcript.blank[transcript.codes]
    yield warning("clips without transcript", *_clips(columns, silent), "Only text-to-speech training needs them.")


def _tag_counts(columns: Columns, min_count: int) -> Iterator[Finding]:
    rare: dict[str, int] = {}
    for level in ("intrinsic", "situational"):
        tags = columns.tags(level)
        counted = zip(tags.names, tags.counts.tolist(), strict=True)
        rare |= {tag: count for tag, count in counted if 0 < count < min_count and tag in KNOWN_TAGS}
    examples = (f"{tag}: {count}" for tag, count in sorted(rare.items(), key=lambda item: (item[1], item[0])))
    advice = f"Fewer than {min_count} clips do not teach a tag, and its scores are noise; add clips or leave it out."
    yield warning("rare tags", "tags", len(rare), examples, advice)


def _durations(columns: Columns, durations_s: np.ndarray | None) -> Iterator[Finding]:
    if durations_s is None or not (durations_s > 0).any():
        return
    low, high = duration_fences_s(durations_s[durations_s > 0])
    outside = (durations_s > 0) & ((durations_s < low) | (durations_s > high))
    numbers = np.flatnonzero(outside)[:MAX_EXAMPLES]
    examples = [f"{columns.table['key'][number]}: {durations_s[number]:.2f} s" for number in numbers]
    advice = f"They lie outside {low:.2f} to {high:.2f} s; listen to some, or narrow shard.min_duration_s and max."
    yield warning("duration outliers", "clips", outside.sum(), examples, advice)


def duration_fences_s(durations_s: np.ndarray) -> tuple[float, float]:
    """Tukey's outer fences of positive durations, on their logarithm, so that neither side is favoured.

    >>> low, high = duration_fences_s(np.array([1.0, 2.0, 4.0]))
    >>> round(low, 3), round(high, 3)
    (0.177, 22.627)
    """
    quarter, three_quarters = np.quantile(np.log(durations_s), [0.25, 0.75])
    reach = FENCE_WIDTH * (three_quarters - quarter)
    # Rounding must not put clips of one common length outside a fence that has no width.
    slack = 1e-9
    return float(np.exp(quarter - reach - slack)), float(np.exp(three_quarters + reach + slack))
