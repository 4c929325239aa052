"""The four loaders that benchmarks/loader.py compares; each delivers the same `Batch`.

A system's class is made from a `Setting` and, to resume, from the state it saved. Its library is imported by
`load`, before any clock runs. All decode crops by the same function but `PlainFiles`, which decodes whole files.
"""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from psclap import audio

SAMPLE_RATE_HZ = 16000
SPLIT, CAPTION_SET = "train", "combined"
FILES_MANIFEST = "files.jsonl"  # of the plain files: a line [name, caption] each
SEED = 7


@dataclass(frozen=True)
class Setting:
    """What all systems are given alike."""

    folder: Path
    num_clips: int
    num_workers: int
    batch_size: int
    crop_s: float

    @property
    def crop(self) -> int:
        """The longest crop, in samples."""
        return round(self.crop_s * SAMPLE_RATE_HZ)


class Example(NamedTuple):
    """One crop and its caption."""

    wave: np.ndarray
    caption: str


class Batch(NamedTuple):
    """Crops padded with zeros (B, T) float32, B captions, lengths in samples (B,)."""

    waves: torch.Tensor
    captions: list[str]
    lengths: torch.Tensor


class System(Protocol):
    """One loader under test."""

    def __init__(self, setting: Setting, state: dict[str, Any] | None): ...

    @staticmethod
    def load() -> None:
        """Imports the library."""

    def batches(self) -> Iterator[Batch]:
        """Epoch after epoch, without end."""
        ...

    def state(self) -> dict[str, Any]:
        """What resumes after the batch that `batches` yielded last; JSON."""
        ...


def collate(examples: Sequence[Example]) -> Batch:
    """The padded batch of some crops."""
    lengths = [len(example.wave) for example in examples]
    waves = np.zeros((len(examples), max(lengths)), np.float32)
    for wave, example in zip(waves, examples, strict=True):
        wave[: len(example.wave)] = example.wave
    return Batch(torch.from_numpy(waves), [example.caption for example in examples], torch.tensor(lengths))


def decode_crop(flac: bytes, num_samples: int, crop: int) -> audio.Wave:
    """A random crop; only its frames are decoded."""
    start = audio.crop_start(num_samples, crop, _rng(os.getpid()))
    return audio.decode(flac, start, min(crop, num_samples))[0]


@cache
def _rng(process: int) -> np.random.Generator:
    return np.random.default_rng([SEED, process])


def _workers(setting: Setting) -> dict[str, Any]:
    """DataLoader's options for loader processes that outlive the epoch."""
    return {"num_workers": setting.num_workers, "persistent_workers": setting.num_workers > 0}


class Ours:
    """psclap.loader.Loader. Everything here that knows psclap's API of loading."""

    def __init__(self, setting: Setting, state: dict[str, Any] | None):
        from psclap.loader import Loader, Position, Stream
        from psclap.loop_config import LoadingConfig, SamplingConfig
        from psclap.sampling import Examples
        from psclap.shards.index import ShardIndex

        index = ShardIndex(setting.folder / "shards")
        views = [index.view(SPLIT, CAPTION_SET)]
        examples = Examples([len(view.rows) for view in views])
        self._loader = Loader(
            Stream(index, views, examples, setting.batch_size, SEED, SamplingConfig()),
            _CropCollator(),
            max_crop_s=setting.crop_s,
            loading=LoadingConfig(setting.num_workers, "fork"),
            position=Position(**(state or {})),
        )

    @staticmethod
    def load() -> None:
        """Imports the library."""
        import psclap.loader
        import psclap.shards.index  # noqa: F401

    def batches(self) -> Iterator[Batch]:
        """Epoch after epoch, without end."""
        for position, batch in self._loader:
            self._position = position
            yield batch

    def state(self) -> dict[str, Any]:
        """The loader's position."""
        return asdict(self._position)


class _CropCollator:
    """The batches of this benchmark: crops and one caption of each."""

    def example(self, row: dict[str, Any], clip: audio.Wave, rng: np.random.Generator) -> Example:
        return Example(clip, row["captions"][rng.integers(len(row["captions"]))])

    def collate(self, examples: Sequence[Example], rng: np.random.Generator) -> Batch:
        return collate(examples)


class _Counting:
    """A loader that saves nothing itself: its state is how many batches it has delivered."""

    _loader: Iterable[Batch]
    _step: int

    def batches(self) -> Iterator[Batch]:
        """Epoch after epoch, without end."""
        while True:
            for batch in self._loader:
                self._step += 1
                yield batch

    def state(self) -> dict[str, Any]:
        """The number of batches; true in the first epoch."""
        return {"step": self._step}


class WebDataset(_Counting):
    """The webdataset library on the tars that ours reads; shuffles shards, and samples in a buffer."""

    def __init__(self, setting: Setting, state: dict[str, Any] | None):
        import webdataset as wds

        self._setting = setting
        self._step = self._to_skip = state["step"] if state else 0
        shards = sorted(str(path) for path in (setting.folder / "shards").glob("*.tar"))
        buffer = min(1000, setting.num_clips // 4)
        dataset = (
            wds.WebDataset(shards, shardshuffle=len(shards), detshuffle=True, seed=SEED)
            .compose(wds.detshuffle(buffer, min(100, buffer), seed=SEED))
            .compose(self._skip)
            .map(self._example)
            .batched(setting.batch_size, collation_fn=collate, partial=False)
        )
        self._loader = wds.WebLoader(dataset, batch_size=None, **_workers(setting))

    @staticmethod
    def load() -> None:
        """Imports the library."""
        import webdataset  # noqa: F401

    def _skip(self, samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Leaves out what this loader process has delivered before the resume: read again, but not decoded."""
        worker = torch.utils.data.get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        batches, self._to_skip = len(range(number, self._to_skip, count)), 0
        yield from islice(samples, batches * self._setting.batch_size, None)

    def _example(self, sample: dict[str, Any]) -> Example:
        row = json.loads(sample["json"])
        return Example(decode_crop(sample["flac"], row["num_samples"], self._setting.crop), row["captions"][0]["text"])


def import_streaming() -> types.ModuleType:
    """The streaming library without its vision data sets, for which it would import torchvision."""
    sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")
    import streaming

    return streaming


class Streaming:
    """mosaicml-streaming on local MDS shards, shuffled by its default algorithm."""

    def __init__(self, setting: Setting, state: dict[str, Any] | None):
        streaming = import_streaming()
        options = {"batch_size": setting.batch_size, "shuffle": True, "shuffle_seed": SEED}
        dataset = _decoding(streaming.StreamingDataset, setting.crop)(local=str(setting.folder / "mds"), **options)
        self._loader = streaming.StreamingDataLoader(
            dataset, batch_size=setting.batch_size, drop_last=True, collate_fn=collate, **_workers(setting)
        )
        if state:
            self._loader.load_state_dict(state)

    @staticmethod
    def load() -> None:
        """Imports the library, and removes the shared memory that a killed process left behind."""
        import_streaming()
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()

    def batches(self) -> Iterator[Batch]:
        """Epoch after epoch, without end."""
        while True:
            yield from self._loader

    def state(self) -> dict[str, Any]:
        """The library's own state."""
        return self._loader.state_dict()


def _decoding(base: type, crop: int) -> type:
    """The subclass that a user of StreamingDataset writes."""

    class Crops(base):
        def __getitem__(self, number: int) -> Example:
            sample = super().__getitem__(number)
            return Example(decode_crop(sample["flac"], sample["num_samples"], crop), sample["caption"])

    return Crops


class PlainFiles(_Counting):
    """FLAC files behind a DataLoader: each is decoded whole, then cropped."""

    def __init__(self, setting: Setting, state: dict[str, Any] | None):
        dataset = _Files(setting.folder, setting.crop)
        self._step = state["step"] if state else 0
        self._loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=setting.batch_size,
            sampler=_SeededSampler(len(dataset), self._step * setting.batch_size),
            drop_last=True,
            collate_fn=collate,
            **_workers(setting),
        )

    @staticmethod
    def load() -> None:
        """Imports the library."""
        import soundfile  # noqa: F401


class _Files(torch.utils.data.Dataset):
    def __init__(self, folder: Path, crop: int):
        lines = (folder / FILES_MANIFEST).read_text().splitlines()
        self._clips = [(str(folder / "files" / name), caption) for name, caption in map(json.loads, lines)]
        self._crop = crop

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> Example:
        import soundfile

        path, caption = self._clips[number]
        wave, _ = soundfile.read(path, dtype="float32")
        start = audio.crop_start(len(wave), self._crop, _rng(os.getpid()))
        return Example(wave[start : start + self._crop], caption)


class _SeededSampler(torch.utils.data.Sampler):
    """An order per epoch that depends on the seed alone; the first epoch begins at `start`."""

    def __init__(self, num_clips: int, start: int):
        self._num_clips, self._start, self._epoch = num_clips, start, 0

    def __len__(self) -> int:
        return self._num_clips - self._start

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([SEED, self._epoch]).permutation(self._num_clips)[self._start :]
        self._epoch, self._start = self._epoch + 1, 0
        return iter(order.tolist())


SYSTEMS: dict[str, type[System]] = {
    "psclap": Ours,
    "webdataset": WebDataset,
    "streaming": Streaming,
    "files": PlainFiles,
}
