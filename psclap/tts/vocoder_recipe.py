"""The recipe of a vocoder: a HiFi-GAN of generator and discriminators, trained through the one loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from psclap import distributed
from psclap.errors import PsclapError
from psclap.loader import Stream
from psclap.loop_config import SamplingConfig
from psclap.sampling import Examples
from psclap.schema import Split
from psclap.shards.index import ShardIndex, View
from psclap.training.optim import freeze
from psclap.tts.clips import Chosen
from psclap.tts.hifigan import build_gan
from psclap.tts.mel import MelSpectrogram
from psclap.tts.vocoder import load_generator
from psclap.tts.vocoder_batch import MelFolder
from psclap.tts.vocoder_settings import VocoderConfig, VocoderTrainConfig
from psclap.tts.vocoder_task import VocoderTask, heard_mel


@dataclass(frozen=True)
class VocoderRecipe:
    """A vocoder's training; see `psclap.training.recipe.Recipe`."""

    vocoder: VocoderConfig
    train: VocoderTrainConfig

    @property
    def max_crop_s(self) -> float:
        """How much of a clip is read for a segment."""
        return self.train.max_crop_s

    def values(self) -> Mapping[str, Any]:
        """The vocoder's configuration."""
        return {"vocoder": asdict(self.vocoder)}

    def reads(self) -> Sequence[str]:
        """The vocoder that it starts from, and the mels that it is tuned to."""
        return [name for name in (self.vocoder.start_from, self.train.predicted_mels) if name is not None]

    def stream(self, index: ShardIndex, seed: int) -> Stream:
        """The clips of train, of which there are mels. Raises PsclapError where there are none."""
        view = View(None, self._clips(index, "train").rows)
        options = self.train.sampling
        shards = index.shard_number[view.rows] if options.shuffle_block_shards else None
        examples = Examples([len(view.rows)], shard=shards)
        return Stream(index, [view], examples, self.train.global_batch_size, seed, options)

    def task(self, index: ShardIndex, stream: Stream, seed: int) -> VocoderTask:
        """The model under its losses."""
        model = build_gan(self.vocoder, seed)
        freeze(model, self.train.freeze)
        return VocoderTask(model, self.train)

    def validation(self, index: ShardIndex) -> VocoderValidation:
        """The mels of val clips against those of what is made of them."""
        return VocoderValidation(index, self._clips(index, "val").rows, self.train.validation_clips)

    def check(self, index: ShardIndex, stream: Stream) -> None:
        """The shards have the mels' rate, segments are frames of what is read, and what it starts from is there."""
        mel, train = self.vocoder.mel, self.train
        if index.sample_rate_hz != mel.sample_rate_hz:
            raise PsclapError(
                f"vocoder.mel.sample_rate_hz {mel.sample_rate_hz}: the shards have {index.sample_rate_hz} Hz; choose a "
                "definition of that rate, or write shards of this one (shard.sample_rate_hz)"
            )
        longest = round(train.max_crop_s * mel.sample_rate_hz)
        if train.segment_length % mel.hop_length or not mel.fft_length <= train.segment_length <= longest:
            raise PsclapError(
                f"segment_length {train.segment_length} must be a multiple of mel.hop_length {mel.hop_length}, from "
                f"mel.fft_length {mel.fft_length} to the {longest} samples of max_crop_s"
            )
        if replace(train.sampling, shuffle_block_shards=None) != SamplingConfig():
            raise PsclapError("sampling: a vocoder's training knows shuffle_block_shards alone; leave other keys out")
        for split in ("train", "val"):
            self._clips(index, split).tell(split)
        MelSpectrogram(heard_mel(mel))
        if self.vocoder.start_from is not None:
            load_generator(self.vocoder.start_from, mel)

    def _clips(self, index: ShardIndex, split: Split) -> Chosen:
        """All of a split, or those whose mels were predicted. Raises PsclapError where there are none."""
        chosen = Chosen(index.rows_of(split))
        if self.train.predicted_mels is not None:
            folder, keys = Path(self.train.predicted_mels), index.take(chosen.rows, ["key"])["key"].to_pylist()
            if not folder.is_dir():
                raise PsclapError(f"predicted_mels: there is no folder {folder}")
            chosen = chosen.where(MelFolder(folder).holds(keys), f"without mels in {folder}")
        if not len(chosen.rows):
            raise PsclapError(
                f"{index.location} has no {split} clip for a vocoder, which needs some of train and of val: {chosen}"
            )
        return chosen


class VocoderValidation:
    """Clips of val, evenly spread: how far the mels of what is made of each are from its own."""

    def __init__(self, index: ShardIndex, rows: np.ndarray, max_clips: int):
        """Takes `max_clips` of the rows at most."""
        count = min(max_clips, len(rows))
        self._index, self._rows = index, rows[np.linspace(0, len(rows) - 1, count).astype(int)]

    @torch.no_grad()
    def metrics(self, task: VocoderTask, alive: Callable[[], None]) -> dict[str, float]:
        """`val/mel_l1`, the mean over clips, in natural logarithms; every rank takes its share of the clips."""
        task.eval()
        errors = []
        for number in distributed.my_share(len(self._rows)):
            alive()
            errors.append(self._error(task, int(self._rows[number])))
        of_all = distributed.join_shares(distributed.all_gather(torch.stack(errors)), len(self._rows))
        return {"val/mel_l1": float(of_all.mean())}

    def _error(self, task: VocoderTask, row: int) -> torch.Tensor:
        wave = self._index.read_clip(row)
        log_mel = task.collator().mels(self._index.row(row), wave)
        device = task.model.device
        made = task.model(log_mel[None].to(device))[0, : len(wave)]
        real = torch.from_numpy(wave).to(device)[: len(made)]
        return (task.heard(made) - task.heard(real)).abs().mean()
