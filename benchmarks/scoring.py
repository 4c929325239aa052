"""Embedding a corpus: the published evaluation loop, a loop over our Embedder, and the whole Ray Data job.

    published   the released evaluation as it is described: fp32, batches of 8, clips sorted by length and padded;
                transformers' WavLM
    loop fp32   `Embedder(folder).embed_files(files)`
    loop        `Embedder(folder, precision="auto").embed_files(files)`: bf16 where the processor multiplies it
    job         `python -m pipelines.score`, in processes of its own
    limit       the audio a second at which the machine's matrix products would run without a pause: FLOP of the
                model's products over valid frames, by the best speed of a product of a feed-forward layer's size

All read the same FLAC files of 1 to 20 s with the same weights, a random WavLM-base (or --size large), each in a fresh
process with all cores; the systems take turns, --passes times. A ratio is the median over the passes.

    audio s/s           seconds of sound a second, decoding included; model loading and a warm-up are not
    audio s/CPU s       by the CPU seconds of the process, which other work on the machine disturbs less
    steady state        of the job: between the commits of its first blocks and its last ones
    cosine              with `loop fp32`, the smallest over all clips. That of `published` is lower in WavLM-base, whose
                        first norm is over time: there padding changes what transformers computes, and not what we do

    .venv/bin/python benchmarks/scoring.py --out scoring.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import torch
import torch.nn.functional as F
from train_step import make_model, measured_peak, plain_wavlm, speech_flops

from psclap import audio
from psclap.embedding import Embedder
from psclap.markdown import table
from psclap.models.build import load_model
from psclap.models.feature_extractor import ParaSpeechCLAPFeatureExtractor
from psclap.models.precision import Precision
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.models.tokenizer import train_tokenizer
from psclap.tags import VOCABULARY, default_prompt

RATE_HZ = 16000
_BATCH = 8


def make_corpus(folder: Path, clips: int) -> None:
    """FLAC files of 1 to 20 s: a noise whose level goes up and down as speech's does."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(clips):
        wave = rng.standard_normal(int(rng.uniform(1, 20) * RATE_HZ)).astype(np.float32)
        syllables = np.abs(np.sin(np.arange(len(wave)) * 2 * np.pi * rng.uniform(1, 3) / RATE_HZ))
        smooth = np.convolve(wave, np.ones(8, np.float32) / 8, "same")
        audio.write_flac(folder / f"{number:05d}.flac", 0.2 * smooth * syllables.astype(np.float32), RATE_HZ)


def make_folder(folder: Path, size: str) -> None:
    """A model folder with random encoders of a size."""
    model = make_model(size)
    tokenizer = train_tokenizer([default_prompt(tag) for tag in VOCABULARY], 200, 64)
    model.save_pretrained(folder)
    ParaSpeechCLAPProcessor(ParaSpeechCLAPFeatureExtractor(RATE_HZ), tokenizer).save_pretrained(folder)


def published(folder: Path, files: list[Path]) -> tuple[float, float, np.ndarray]:
    """The released loop over all files: wall and CPU seconds, and (N, D) embeddings."""
    model, processor = load_model(folder)
    plain = plain_wavlm("large" if model.config.audio_config.num_hidden_layers > 12 else "base").eval()
    plain.load_state_dict(model.audio_model.state_dict())

    def embed(files: list[Path]) -> np.ndarray:
        waves = [audio.load(file, RATE_HZ) for file in files]
        order = np.argsort([len(wave) for wave in waves])
        embeddings = np.empty((len(waves), model.config.projection_dim), np.float32)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            inputs = processor.waves([waves[number] for number in batch])
            mask = inputs["audio_attention_mask"].long()
            frames = plain(inputs["input_values"], attention_mask=mask).last_hidden_state
            valid = plain._get_feature_vector_attention_mask(frames.shape[1], mask)[..., None]
            pooled = (frames * valid).sum(1) / valid.sum(1)
            embeddings[batch] = F.normalize(model.audio_projection(pooled), dim=-1).numpy()
        return embeddings

    with torch.inference_mode():
        embed(files[:2])
        return timed(lambda: embed(files))


def loop(folder: Path, files: list[Path], precision: Precision = "auto") -> tuple[float, float, np.ndarray]:
    """Our Embedder over all files."""
    embedder = Embedder(folder, precision=precision)
    embedder.embed_files(files[:2])
    return timed(lambda: embedder.embed_files(files))


def timed(embed: Any) -> tuple[float, float, np.ndarray]:
    """Wall and CPU seconds, and what came of it."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    embeddings = embed()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s, embeddings


def in_child(system: str, folder: Path, corpus: Path) -> dict[str, Any]:
    """One system's pass in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        command = [sys.executable, __file__, "--child", system, str(folder), str(corpus), file.name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return {**json.loads(output.splitlines()[-1]), "embeddings": np.load(file.name)}


def child(system: str, folder: Path, corpus: Path, out: str) -> None:
    """Measures, and prints the figures."""
    ways = {"published": published, "loop": loop, "loop fp32": partial(loop, precision="stored")}
    wall_s, cpu_s, embeddings = ways[system](folder, sorted(corpus.iterdir()))
    np.save(out, embeddings)
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s}))


def job(folder: Path, corpus: Path, block_clips: int) -> dict[str, Any]:
    """The Ray Data job from its start to its end, and its speed between the first commits and the last."""
    with tempfile.TemporaryDirectory() as output:
        target = Path(output) / "scored"
        command = [sys.executable, "-m", "pipelines.score", "--model", str(folder), "--input", str(corpus)]
        command += ["--output", str(target), "--block-clips", str(block_clips)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall_s = time.perf_counter() - start
        parts = sorted((target / "clips").iterdir(), key=lambda path: path.stat().st_mtime)
        durations = [ds.dataset(part).to_table(columns=["duration_s"])["duration_s"].to_numpy().sum() for part in parts]
        workers = len(os.sched_getaffinity(0))
        first, last = workers - 1, len(parts) - workers
        steady_s = parts[last].stat().st_mtime - parts[first].stat().st_mtime
        found = ds.dataset(sorted((target / "clips").iterdir())).to_table(columns=["embedding"])["embedding"]
        return {
            "wall_s": wall_s,
            "steady": sum(durations[first + 1 : last + 1]) / steady_s,
            "embeddings": np.stack(found.to_pylist()),
        }


def main() -> None:
    """Runs all passes and prints the table."""
    arguments = _arguments()
    if arguments.child:
        child(arguments.child[0], Path(arguments.child[1]), Path(arguments.child[2]), arguments.child[3])
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, corpus = Path(temporary) / "model", Path(temporary) / "corpus"
        make_folder(folder, arguments.size)
        make_corpus(corpus, arguments.clips)
        passes = []
        for number in range(arguments.passes):
            one = {system: in_child(system, folder, corpus) for system in ("published", "loop fp32", "loop")}
            passes.append({**one, "job": job(folder, corpus, arguments.block_clips)})
            print(f"pass {number + 1} of {arguments.passes}", file=sys.stderr)
        samples = [len(audio.load(file, RATE_HZ)) for file in sorted(corpus.iterdir())]
    lines = _table(passes, sum(samples) / RATE_HZ, _limit(arguments.size, samples))
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join([*lines, ""]))


def _limit(size: str, samples: list[int]) -> dict[str, float]:
    """Seconds of sound a second at the speed of matrix products, in each type."""
    flops = sum(speech_flops(size, of_clip) for of_clip in samples)
    speed = {kind: max(measured_peak(kind) for _ in range(5)) for kind in ("fp32", "bf16")}
    return {kind: sum(samples) / RATE_HZ * speed[kind] / flops for kind in speed}


def _table(passes: list[dict[str, Any]], audio_s: float, limit: dict[str, float]) -> list[str]:
    def median(value: Any) -> float:
        return statistics.median(value(one) for one in passes)

    def row(name: str, speed: Any, cpu: Any, against: Any, system: str) -> list[str]:
        cosine = min((one[system]["embeddings"] * one["loop fp32"]["embeddings"]).sum(1).min() for one in passes)
        cpu_text = f"{median(cpu):.2f}" if cpu else ""
        return [name, f"{median(speed):.1f}", cpu_text, f"{median(against):.2f}", f"{cosine:.5f}"]

    def of(system: str) -> Any:
        return lambda one: audio_s / one[system]["wall_s"]

    def per_cpu(system: str) -> Any:
        return lambda one: audio_s / one[system]["cpu_s"]

    def ratio(above: Any, below: Any) -> Any:
        return lambda one: above(one) / below(one)

    steady = lambda one: one["job"]["steady"]  # noqa: E731
    fp32 = "loop fp32"
    cpu_ratio = median(ratio(per_cpu("loop"), per_cpu("published")))
    return [
        *table(
            ["system", "audio s/s", "audio s/CPU s", "by published", "cosine"],
            [
                row("published", of("published"), per_cpu("published"), lambda one: 1.0, "published"),
                row(fp32, of(fp32), per_cpu(fp32), ratio(of(fp32), of("published")), fp32),
                row("loop", of("loop"), per_cpu("loop"), ratio(of("loop"), of("published")), "loop"),
                row("job, steady state", steady, None, ratio(steady, of("published")), "job"),
                row("job, with its start", of("job"), None, ratio(of("job"), of("published")), "job"),
                ["limit fp32", f"{limit['fp32']:.1f}", "", "", ""],
                ["limit bf16", f"{limit['bf16']:.1f}", "", "", ""],
            ],
        ),
        "",
        f"loop by published in CPU seconds: {cpu_ratio:.2f}; job's steady state by loop: "
        f"{median(ratio(steady, of('loop'))):.2f}; {audio_s:.0f} s of sound, {len(passes)} passes",
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--size", choices=["base", "large"], default="base")
    parser.add_argument("--block-clips", type=int, default=16)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
