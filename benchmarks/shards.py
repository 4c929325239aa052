"""How much of the codecs' own speed sharding reaches: decode, resample and FLAC alone against the whole build.

    codecs    as many processes as cores, each: decode a file, resample it to 16 kHz, encode it as FLAC; nothing else
    build     pipelines.shard.build_shards on Ray: also the checks of every file, metadata, tars, hashes, index, data
              card, in the same session of Ray; its start is given apart, as it does not grow with the corpus

The corpus is made here: speech of the demo corpus, joined to clips of 4 to 12 s at 44.1 kHz, as FLAC and WAV files.
Both ways take turns, --passes times. The goal: 90 % of the codecs' clips a second.

    python benchmarks/shards.py
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from pipelines.cluster import ray_session
from pipelines.shard import build_shards
from psclap import audio
from psclap.corpora import build_corpus
from psclap.data_config import ShardConfig
from psclap.parallel import available_cpus, process_map
from psclap.schema import Caption, Utterance, utterances_to_table

_SOURCE_RATE_HZ = 44100
_CLIPS_PER_SHARD = 100
CONFIG = ShardConfig(None, 16000, None, _CLIPS_PER_SHARD, 10**9, 0.2, 60.0, 0.0)


def make(folder: Path, clips: int) -> list[Utterance]:
    """Writes the corpus; returns its utterances."""
    corpus = build_corpus("demo", {"train_clips": 96, "val_clips": 24, "test_clips": 24})
    spoken = [audio.load(folder / u.audio, _SOURCE_RATE_HZ) for u in corpus.utterances(folder, None)]
    write = partial(_write, spoken=spoken, folder=folder)
    paths = list(process_map(write, range(clips), None, chunk=8))
    caption = (Caption("combined", "A voice."),)
    return [Utterance(f"clip-{k:06d}", path, "speaker", "made", "train", caption) for k, path in enumerate(paths)]


def _write(number: int, spoken: list[audio.Wave], folder: Path) -> str:
    rng = np.random.default_rng([1, number])
    wave = np.concatenate([spoken[k] for k in rng.integers(len(spoken), size=6)])
    wave = wave[: int(rng.uniform(4, 12) * _SOURCE_RATE_HZ)]
    path = folder / f"clip-{number:06d}.{'flac' if number % 2 else 'wav'}"
    soundfile.write(path, wave, _SOURCE_RATE_HZ, subtype="PCM_16")
    return str(path)


def codecs(path: str) -> int:
    """Decode, resample, encode."""
    wave, rate_hz = soundfile.read(path, dtype="float32")
    return len(audio.encode_flac(audio.resample(wave, rate_hz, 16000), 16000))


def _timed(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2400)
    parser.add_argument("--passes", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "audio").mkdir()
        utterances = make(folder, arguments.clips)
        table, paths = utterances_to_table(utterances), [utterance.audio for utterance in utterances]
        seconds: dict[str, list[float]] = {"codecs": [], "build": []}
        start = time.perf_counter()
        with ray_session():
            started_s = time.perf_counter() - start
            build = partial(build_shards, table, folder, CONFIG, folder / "shards", folder / "work")
            build()  # Ray starts its workers, which import the library, once
            for _ in range(arguments.passes):
                seconds["codecs"].append(_timed(lambda: list(process_map(codecs, paths, None, chunk=20))))
                shutil.rmtree(folder / "shards")
                seconds["build"].append(_timed(build))
    print(f"| {arguments.clips} clips, {available_cpus()} cores | s, median | clips/s | of the codecs' |")
    print("|---|---|---|---|")
    base = statistics.median(seconds["codecs"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.2f} | {arguments.clips / middle:.0f} | {base / middle:.0%} |")
    print(f"\nStart of Ray: {started_s:.1f} s.")


if __name__ == "__main__":
    main()
