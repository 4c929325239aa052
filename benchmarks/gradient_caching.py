"""What a training step costs in memory and time when its clips are embedded a few at a time.

The step is ContrastiveTask's: both towers, InfoNCE over all clips, the backward pass; `compute.micro_batch_size` is
all that changes, and the gradient stays the same (tests/test_task.py). The speech encoder is a WavLM from a
configuration, the clips are noise of one length, each row of the table is a fresh process.

    peak      the most memory the process ever held (ru_maxrss)
    the step  the peak without what the process held before its first step: libraries, weights, the batch
    CPU s     of a step, all threads: what other programs on the machine disturb least

    PYTHONPATH=. python benchmarks/gradient_caching.py --clips 64 --seconds 4
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from psclap.config import PRESETS_FOLDER, EncoderConfig, load_params
from psclap.loop_config import ComputeConfig
from psclap.models.build import build_model
from psclap.training.batch import Batch, Example
from psclap.training.task import ContrastiveTask

_RATE_HZ = 16000
_CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)  # as every WavLM has them
_CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)
_PLAIN = 0  # instead of a micro batch size


@dataclass(frozen=True)
class Measured:
    """One process's figures."""

    before_mb: float
    peak_mb: float
    step_s: float
    cpu_s: float


def wavlm(hidden_size: int, num_layers: int) -> EncoderConfig:
    """A WavLM of the large one's kind, with a quarter of the width in its convolutions."""
    return EncoderConfig(
        pooling="mean",
        config={
            "model_type": "wavlm",
            "hidden_size": hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": hidden_size // 64,
            "intermediate_size": 4 * hidden_size,
            "conv_dim": [hidden_size // 4] * len(_CONV_KERNELS),
            "conv_kernel": list(_CONV_KERNELS),
            "conv_stride": list(_CONV_STRIDES),
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
        },
    )


def build(arguments: argparse.Namespace) -> tuple[ContrastiveTask, Batch]:
    """The task in training mode, and one batch."""
    params = load_params(PRESETS_FOLDER / "demo.yaml")
    captions = [f"Clip number {number} of a deep voice." for number in range(arguments.clips)]
    compute = ComputeConfig(
        gradient_checkpointing=arguments.gradient_checkpointing,
        micro_batch_size=None if arguments.child == _PLAIN else arguments.child,
    )
    config = replace(params.train["combined"], compute=compute)
    model_config = replace(params.model, speech=wavlm(arguments.hidden_size, arguments.layers))
    model, processor = build_model(model_config, captions, _RATE_HZ, seed=0)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    task = ContrastiveTask(model, processor, config, tags=()).train()
    rng = np.random.default_rng(0)
    clips = rng.normal(0, 0.1, (arguments.clips, round(arguments.seconds * _RATE_HZ))).astype(np.float32)
    examples = [Example(clip, caption, ()) for clip, caption in zip(clips, captions, strict=True)]
    return task, task.collator().collate(examples, rng)


def measure(arguments: argparse.Namespace) -> Measured:
    """The figures of this process; times are the medians of the steps after the first."""
    torch.set_num_threads(arguments.threads)
    task, batch = build(arguments)
    before_mb, times_s = _peak_mb(), []
    for _ in range(arguments.steps + 1):
        start = np.array([time.perf_counter(), time.process_time()])
        task.zero_grad(set_to_none=True)
        task(batch).total.backward()
        times_s.append(np.array([time.perf_counter(), time.process_time()]) - start)
    step_s, cpu_s = np.median(times_s[1:], axis=0).tolist()
    return Measured(before_mb, _peak_mb(), step_s, cpu_s)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _in_child(micro_batch_size: int) -> Measured:
    command = [sys.executable, *sys.argv, "--child", str(micro_batch_size)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(run.stdout.splitlines()[-1]))


def _row(micro_batch_size: int, measured: Measured, plain: Measured, clips: int) -> str:
    step_mb, plain_mb = (m.peak_mb - m.before_mb for m in (measured, plain))
    cells = [
        "plain" if micro_batch_size == _PLAIN else str(micro_batch_size),
        f"{measured.peak_mb:,.0f}",
        f"{step_mb:,.0f}",
        f"{step_mb / plain_mb:.2f}",
        f"{clips / measured.step_s:.2f}",
        f"{measured.cpu_s:.1f}",
        f"{measured.cpu_s / plain.cpu_s:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    arguments = _arguments()
    if arguments.child is not None:
        print(json.dumps(vars(measure(arguments))))
        return
    lines = ["| micro batch | peak, MB | the step, MB | of plain | clips/s | CPU s | of plain |", "|" + "---|" * 7]
    plain = _in_child(_PLAIN)
    lines.append(_row(_PLAIN, plain, plain, arguments.clips))
    for size in arguments.micro_batch_sizes:
        lines.append(_row(size, _in_child(size), plain, arguments.clips))
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--micro-batch-sizes", type=int, nargs="+", default=[32, 16, 8, 4])
    parser.add_argument("--gradient-checkpointing", action="store_true", help="inside the encoders as well")
    parser.add_argument("--steps", type=int, default=3, help="that are timed; one more comes before")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also writes the table here")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
