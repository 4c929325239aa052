"""Which clips of a split can be used, and how many cannot, for which reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from psclap import log
from psclap.errors import PsclapError
from psclap.schema import Split
from psclap.shards.index import ShardIndex
from psclap.tts.mel import MelConfig
from psclap.tts.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Chosen:
    """Rows of the index, and the number of those left out by reason; a clip counts for the first that it meets."""

    rows: np.ndarray
    left_out: Mapping[str, int] = field(default_factory=dict)

    def where(self, fits: np.ndarray, otherwise: str) -> Chosen:
        """Those that fit, (len(rows),) bool; the others are left out for the reason `otherwise`."""
        count = len(self.rows) - int(fits.sum())
        return Chosen(self.rows[fits], {**self.left_out, otherwise: count} if count else self.left_out)

    def __str__(self) -> str:
        count = sum(self.left_out.values())
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.left_out.items())
        return f"{count} of {count + len(self.rows)} clips are left out" + (f": {reasons}" if reasons else "")

    def tell(self, split: Split) -> None:
        """Warns where clips are left out of a split."""
        if self.left_out:
            log.warning(f"{split}: {self}", split=split, left_out=self.left_out)


def usable(index: ShardIndex, split: Split, mel: MelConfig, max_clip_s: float = math.inf) -> Chosen:
    """The clips of a split that a model can be trained on.

    Raises PsclapError for shards that were made without phonemes.
    """
    check_phonemes(index)
    chosen = Chosen(index.rows_of(split))
    chosen = chosen.where(index.num_phonemes[chosen.rows] > 0, "without a transcript")
    is_short = index.num_samples[chosen.rows] <= max_clip_s * index.sample_rate_hz
    chosen = chosen.where(is_short, f"longer than {max_clip_s:g} s")
    return chosen.where(long_enough(index, chosen.rows, mel), "too short for what they say")


def known_to(vocabulary: Vocabulary, index: ShardIndex, chosen: Chosen, any_speaker: bool = False) -> Chosen:
    """Those of some clips whose phonemes and speakers a model knows."""
    told = index.take(chosen.rows, ["phonemes", "speaker"]).to_pylist()
    sayable = np.array([vocabulary.can_encode(row["phonemes"]) for row in told], bool)
    by_known = np.array([any_speaker or vocabulary.knows(row["speaker"]) for row in told], bool)
    chosen = chosen.where(sayable, "of phonemes that no training clip had")
    return chosen.where(by_known[sayable], "of speakers that no training clip had")


def long_enough(index: ShardIndex, rows: np.ndarray, mel: MelConfig) -> np.ndarray:
    """(len(rows),) whether clips have a mel frame for each of their phonemes, which every alignment needs."""
    num_samples = index.num_samples[rows] * mel.sample_rate_hz // index.sample_rate_hz
    return (num_samples > mel.pad_length) & (mel.frames(num_samples) >= index.num_phonemes[rows])


def check_phonemes(index: ShardIndex) -> None:
    """Raises PsclapError for shards that were made without phonemes, or of which no clip has a transcript."""
    if not index.num_phonemes.any():
        raise PsclapError(
            f"the clips of {index.location} have no phonemes: set shard.phonemes to true and make the shards again "
            "(of a voice by `dvc repro tts_shard@VOICE`), of a corpus with transcripts"
        )
