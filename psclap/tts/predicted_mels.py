"""What a Clip-TTS makes of the clips that it could have been trained on, for a vocoder that is tuned to it.

Frame by frame beside the clip: durations are those of the clip, by the model's own aligner (teacher forcing).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from psclap.errors import PsclapError
from psclap.files import atomic_folder
from psclap.schema import Split
from psclap.shards.index import ShardIndex
from psclap.tts.batch import SpeechCollator
from psclap.tts.clip_tts import ClipTTSModel, Voice
from psclap.tts.clips import known_to, usable
from psclap.tts.mel import MelConfig
from psclap.tts.vocabulary import Vocabulary

_CLIPS_AT_ONCE = 8
_SPLITS: tuple[Split, ...] = ("train", "val")


def write_predicted_mels(model: ClipTTSModel, index: ShardIndex, folder: Path) -> None:
    """KEY.npy of clips of train and val, (frames, bins) float16 log-mels; the folder appears whole or not at all.

    Clips that the model cannot say are left out, and told. Raises PsclapError where a split has no other, and for
    shards that were made without phonemes.
    """
    collator = SpeechCollator(Vocabulary.of_config(model.config), MelConfig.from_dict(model.config.mel))
    rows = [row for split in _SPLITS for row in _sayable(collator, index, split).tolist()]
    with atomic_folder(folder) as partial:
        for start in range(0, len(rows), _CLIPS_AT_ONCE):
            _write(model.eval(), collator, index, rows[start : start + _CLIPS_AT_ONCE], partial)


def _sayable(collator: SpeechCollator, index: ShardIndex, split: Split) -> np.ndarray:
    chosen = known_to(collator.vocabulary, index, usable(index, split, collator.mel))
    if not len(chosen.rows):
        raise PsclapError(f"the model can say no {split} clip of {index.location}: {chosen}")
    chosen.tell(split)
    return chosen.rows


@torch.inference_mode()
def _write(model: ClipTTSModel, collator: SpeechCollator, index: ShardIndex, rows: list[int], folder: Path) -> None:
    told = [index.row(row) for row in rows]
    examples = [collator.example(row, index.read_clip(number)) for number, row in zip(rows, told, strict=True)]
    batch = collator.collate(examples).to(model.device)
    durations_BL = model.align(batch.symbols, batch.num_symbols, batch.mel, batch.num_frames)
    voice = Voice(batch.speakers, batch.styles)
    spoken = model.speak(batch.symbols, batch.num_symbols, voice, durations_BL=durations_BL)
    for row, mel, num_frames in zip(told, spoken.mel.cpu(), batch.num_frames.tolist(), strict=True):
        np.save(folder / f"{row['key']}.npy", mel[:num_frames].half().numpy())
