"""Utterances of espeak-ng: forked from a small process, as psclap has it, against forks of the process that asks.

python benchmarks/espeak_speed.py --utterances 300
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np

from psclap.corpora import espeak, espeak_process
from psclap.parallel import process_map

VOICE = espeak.Voice("plain", ("pitch 80 120",))
REQUEST = espeak.Request("The small cat waited for the rain.", VOICE.name)


def say(sender: Connection, job: dict[str, Any]) -> None:
    """What the child of a fork does."""
    import ctypes

    sender.send(espeak_process.spoken(ctypes.CDLL(espeakng_loader.get_library_path()), job)[0])


def forked(job: dict[str, Any]) -> bytes:
    """An utterance of a fork of this process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=say, args=(sender, job))
    child.start()
    samples: bytes = receiver.recv()
    child.join()
    return samples


def timed(make: Callable[[], list[bytes]], count: int) -> tuple[list[bytes], float]:
    """What was said, and milliseconds an utterance."""
    start = time.perf_counter()
    said = make()
    return said, (time.perf_counter() - start) / count * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    count = options.utterances
    with tempfile.TemporaryDirectory(prefix="espeak-") as folder:
        espeak._write_data_home(Path(folder) / VOICE.name, VOICE, {"en_dict"})
        job = {
            **{"home": f"{folder}/{VOICE.name}", "voice": f"gmw/en+{VOICE.name}", "text": REQUEST.text, "options": 0},
            **{"rate_wpm": REQUEST.rate_wpm, "volume_percent": REQUEST.volume_percent},
            "pitch_range_percent": REQUEST.pitch_range_percent,
        }
        for inside in ("alone", "with torch and transformers loaded"):
            if inside != "alone":
                from transformers import BertModel  # noqa: F401

            times: dict[str, list[float]] = {"psclap": [], "forks of this process": []}
            for _ in range(options.rounds):
                ours, ms = timed(lambda: [w.tobytes() for w in espeak.synthesise([VOICE], [REQUEST] * count)], count)
                times["psclap"].append(ms)
                theirs, ms = timed(lambda: list(process_map(forked, [job] * count)), count)
                times["forks of this process"].append(ms)
                assert ours == theirs
            for name, values in times.items():
                spread = f"({min(values):.1f} to {max(values):.1f})"
                print(f"{inside}: {name}: {np.median(values):.1f} ms an utterance {spread}")


if __name__ == "__main__":
    main()
