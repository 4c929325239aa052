"""Mel spectrograms on the fly against stored ones, and what the vocoders cost.

Clips of shards, cut to --seconds. What a training example costs, each by itself, one thread, CPU time:

    FLAC          the clip's bytes from the shard, decoded (what a training of waves pays anyway)
    mel           of the decoded wave, by psclap.tts.mel
    stored mel    float16 from one large file by offset, as from a shard, to a float32 tensor

and of each vocoder: its time against that of the sound (RTF, one thread), and for Griffin-Lim how far the result is
from its clip: the mean absolute error of the mels in natural logarithms, and the spectral convergence
||S - S'|| / ||S|| of the magnitudes. HiFi-GAN has random weights, which take as long as others.

    PYTHONPATH=. python benchmarks/tts_features.py --shards data/shards
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from psclap import audio
from psclap.markdown import table
from psclap.shards.index import ShardIndex
from psclap.tts.mel import SPEECHT5, MelSpectrogram
from psclap.tts.vocoder import load_vocoder

V1 = {"upsample_initial_channel": 512}
V2 = {"upsample_initial_channel": 128, "upsample_rates": [8, 8, 2, 2], "upsample_kernel_sizes": [16, 16, 4, 4]}


def milliseconds(work: Callable[[int], object], count: int, repeats: int = 5) -> float:
    """The CPU time of `work` for a clip; the least of the repeats' means."""
    best = math.inf
    for _ in range(repeats):
        start = time.process_time()
        for number in range(count):
            work(number)
        best = min(best, (time.process_time() - start) / count)
    return 1000 * best


class Stored:
    """Mels as float16 in one file."""

    def __init__(self, folder: Path, mels: Sequence[torch.Tensor]):
        arrays = [mel.half().numpy() for mel in mels]
        path = folder / "mels.f16"
        path.write_bytes(b"".join(array.tobytes() for array in arrays))
        self.lengths = [array.nbytes for array in arrays]
        self.offsets = np.cumsum([0, *self.lengths])
        self._descriptor = os.open(path, os.O_RDONLY)

    def __call__(self, number: int) -> torch.Tensor:
        data = os.pread(self._descriptor, self.lengths[number], int(self.offsets[number]))
        return torch.from_numpy(np.frombuffer(data, np.float16).reshape(-1, SPEECHT5.num_mel_bins).astype(np.float32))


def features(index: ShardIndex, rows: np.ndarray, num_samples: int, folder: Path) -> tuple[str, list[torch.Tensor]]:
    """The table of what an example costs, and the waves."""
    places = [index.place(int(row)) for row in rows]

    def decode(number: int) -> np.ndarray:
        return audio.decode_flac(index.store.flac(places[number]), 0, num_samples)

    waves = [torch.from_numpy(decode(number)) for number in range(len(rows))]
    mel = MelSpectrogram(SPEECHT5)
    stored = Stored(folder, [mel(wave) for wave in waves])
    flac_bytes = float(np.mean([place.byte_length * num_samples / place.num_samples for place in places]))
    of_flac = milliseconds(decode, len(rows))
    of_mel = milliseconds(lambda number: mel(waves[number]), len(rows))
    of_stored = milliseconds(stored, len(rows))
    lines = [
        ["FLAC, read and decoded", f"{of_flac:.2f}", f"{flac_bytes / 1000:.0f}"],
        ["mel of the wave", f"{of_mel:.2f}", "0"],
        ["stored mel (float16), read", f"{of_stored:.2f}", f"{np.mean(stored.lengths) / 1000:.0f}"],
        ["an example on the fly: FLAC and mel", f"{of_flac + of_mel:.2f}", f"{flac_bytes / 1000:.0f}"],
    ]
    return "\n".join(table(["of a clip", "CPU ms", "kB"], lines)), waves


def distance(made: torch.Tensor, wave: torch.Tensor) -> tuple[float, float]:
    """The error of the mels in natural logarithms, and the spectral convergence."""
    mel = MelSpectrogram(SPEECHT5)
    made = made[: len(wave)]
    error = (mel(made) - mel(wave[: len(made)])).abs().mean() * math.log(10)
    real = mel.magnitude(wave[: len(made)])
    return float(error), float((mel.magnitude(made) - real).norm() / real.norm())


def vocoders(waves: list[torch.Tensor], folder: Path) -> str:
    """The table of vocoders."""
    mels = [MelSpectrogram(SPEECHT5)(wave) for wave in waves]
    seconds = len(waves[0]) / SPEECHT5.sample_rate_hz
    rows = []
    for iterations in (8, 16, 32, 60, 120):
        vocoder = load_vocoder("griffin-lim", SPEECHT5, iterations=iterations)
        took = milliseconds(lambda number, say=vocoder: say(mels[number]), len(mels), repeats=2) / 1000
        errors = np.mean([distance(vocoder(mel), wave) for mel, wave in zip(mels, waves, strict=True)], axis=0)
        rows.append([f"Griffin-Lim, {iterations}", f"{took / seconds:.4f}", f"{errors[0]:.3f}", f"{errors[1]:.3f}"])
    for name, sizes in (("HiFi-GAN V1", V1), ("HiFi-GAN V2", V2)):
        SpeechT5HifiGan(SpeechT5HifiGanConfig(**sizes, mel=SPEECHT5.to_dict())).save_pretrained(folder / name)
        vocoder = load_vocoder(str(folder / name), SPEECHT5)
        took = milliseconds(lambda number, say=vocoder: say(mels[number]), 2, repeats=2) / 1000
        rows.append([name, f"{took / seconds:.4f}", "", ""])
    return "\n".join(table(["vocoder", "RTF", "mel error", "spectral convergence"], rows))


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    index = ShardIndex(options.shards)
    if index.sample_rate_hz != SPEECHT5.sample_rate_hz:
        parser.error(f"--shards: of {index.sample_rate_hz} Hz; this measures by the definition of 16 kHz")
    num_samples = round(options.seconds * index.sample_rate_hz)
    rows = np.flatnonzero(index.num_samples[:] >= num_samples)
    rows = rows[np.linspace(0, len(rows) - 1, options.clips).astype(int)]
    with tempfile.TemporaryDirectory() as folder:
        costs, waves = features(index, rows, num_samples, Path(folder))
        print(costs)
        print()
        print(vocoders(waves[:8], Path(folder)))


if __name__ == "__main__":
    main()
