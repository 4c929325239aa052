"""One training step: ours against the published recipe written plainly, with the same weights and clips.

    published     ParaSpeechCLAP's released recipe: transformers' WavLM, fp32, gradient checkpointing in both towers,
                  Adam, no clipping, the whole padded batch (at one process its gather does nothing)
    transformers  transformers' WavLM under bf16 autocast, without checkpointing, fused AdamW: what is to be had for
                  two lines
    psclap        ContrastiveTask and fused AdamW, without checkpointing, in fp32 and bf16

Every number is of a fresh process: one step first, then --steps timed ones; the systems take turns, --passes times.
A ratio is the median over the passes of a pass's own ratio to `published`, above 1 where the system is better.
That all compute the same loss (without dropout) is checked.

    clips/s, audio s/s   by the median step; audio without padding
    CPU s                CPU seconds a step, which other work on the machine disturbs less than the clock
    memory               peak: resident set of the process, or allocated on the GPU
    MFU                  model FLOP a second (3 x the forward's matrix products, valid frames only, nothing for
                         recomputing) by what the machine's matrix products of that type reach in the same process;
                         on a GPU by the dense peak of an H100 or H200: 989 TFLOP/s in bf16, 67 in fp32

Sizes. base: WavLM-base and a BERT-base-like text encoder. large: WavLM-Large and one of Granite-278m's size
(XLM-R base, 250,002 words). Weights and clips are random; clips are of one length, or --mixed.

    .venv/bin/python benchmarks/train_step.py --out train_step.md
    .venv/bin/python benchmarks/train_step.py --size large --device cuda --clips 32 --steps 20 --sync-debug
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import WavLMConfig, WavLMModel, XLMRobertaConfig, XLMRobertaModel

from psclap.config import PRESETS_FOLDER, load_params
from psclap.loop_config import ComputeConfig
from psclap.markdown import table
from psclap.model_config import ParaSpeechCLAPConfig
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.training.batch import Batch
from psclap.training.step import Stepper
from psclap.training.task import ContrastiveTask

_BASELINE = "published"
_SYSTEMS = (_BASELINE, "transformers bf16", "psclap fp32", "psclap bf16")
_SAMPLE_RATE_HZ = 16000
_GPU_PEAK_FLOPS = {"fp32": 67e12, "bf16": 989e12}  # H100 and H200 SXM, dense
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "activation_dropout": 0.0,
}
_VOCABULARY = {"base": 30522, "large": 250002}


class Published(nn.Module):
    """The published model and loss, at one process."""

    def __init__(self, size: str, gradient_checkpointing: bool):
        super().__init__()
        model = make_model(size)
        self.audio_model, self.text_model = plain_wavlm(size), model.text_model
        self.audio_projection, self.text_projection = model.audio_projection, model.text_projection
        self.log_logit_scale = model.log_logit_scale
        if gradient_checkpointing:
            for tower in (self.audio_model, self.text_model):
                tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def forward(self, batch: Batch) -> torch.Tensor:
        frames = self.audio_model(batch.audio, attention_mask=batch.audio_mask).last_hidden_state
        mask = self.audio_model._get_feature_vector_attention_mask(frames.shape[1], batch.audio_mask)[..., None]
        pooled = (frames * mask).sum(1) / mask.sum(1)
        tokens = self.text_model(batch.input_ids, attention_mask=batch.text_mask).last_hidden_state[:, 0]
        audio = F.normalize(self.audio_projection(pooled), dim=-1)
        text = F.normalize(self.text_projection(tokens), dim=-1)
        logits = self.log_logit_scale.exp() * audio.float() @ text.float().T
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def make_model(size: str) -> ParaSpeechCLAPModel:
    """Random weights, the same at every call."""
    text = XLMRobertaConfig(vocab_size=_VOCABULARY[size], max_position_embeddings=514, type_vocab_size=1)
    config = ParaSpeechCLAPConfig(audio_config=speech_config(size), text_config=text)
    torch.manual_seed(1)
    return ParaSpeechCLAPModel(config, plain_wavlm(size), XLMRobertaModel(text, add_pooling_layer=False))


def plain_wavlm(size: str) -> WavLMModel:
    """Transformers' own module, with the weights that `make_model` gives."""
    torch.manual_seed(0)
    return WavLMModel(speech_config(size))


def speech_config(size: str) -> WavLMConfig:
    """Of WavLM-base or -Large, with the dropout of training and no layers left out."""
    return WavLMConfig(**(_LARGE if size == "large" else {}), layerdrop=0.0, apply_spec_augment=False)


def our_stepper(size: str, precision: str, device: torch.device) -> Stepper:
    """Psclap's own step of the published variant, without gradient checkpointing."""
    config = load_params(PRESETS_FOLDER / "paper.yaml").train["combined"]
    config = replace(config, optimizer="adamw", compute=ComputeConfig(precision=precision))  # type: ignore[arg-type]
    task = ContrastiveTask(make_model(size), None, config, ())  # type: ignore[arg-type]
    return Stepper(task.to(device), config, total_steps=1000, seed=0)


def make_batch(arguments: argparse.Namespace) -> Batch:
    """Random waves of --seconds, or of 0.2 to 1 times that, and captions of 12 to 40 words."""
    rng = np.random.default_rng(0)
    clips, longest = arguments.clips, round(arguments.seconds * _SAMPLE_RATE_HZ)
    lengths = rng.integers(longest // 5, longest + 1, clips) if arguments.mixed else np.full(clips, longest)
    lengths[0] = longest
    mask = np.arange(longest) < lengths[:, None]
    words = rng.integers(12, 41, clips)
    text_mask = np.arange(words.max()) < words[:, None]
    ids = np.where(text_mask, rng.integers(4, _VOCABULARY[arguments.size], text_mask.shape), 1)
    return Batch(
        audio=torch.from_numpy((rng.standard_normal(mask.shape) * mask).astype(np.float32)),
        audio_mask=torch.from_numpy(mask),
        input_ids=torch.from_numpy(ids),
        text_mask=torch.from_numpy(text_mask.astype(np.int64)),
        caption_id=torch.arange(clips),
        tags=torch.zeros(clips, 0, dtype=torch.long),
        audio_lengths=lengths,
        num_tokens=words,
        counts=np.array([lengths.sum()]),
    )


def child(system: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains one system in this process, and returns what was measured."""
    device, precision = torch.device(arguments.device), "bf16" if "bf16" in system else "fp32"
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    peak_flops = _GPU_PEAK_FLOPS[precision] if device.type == "cuda" else measured_peak(precision)
    host_batch = make_batch(arguments)
    if system.startswith("psclap"):
        first_loss, step = ours(arguments, precision, host_batch)
    else:
        first_loss, step = plain(system, arguments, precision, host_batch.to(device))
    step()
    step_s, cpu_s = [], []
    for _ in range(arguments.steps):
        elapsed_s, of_cpu_s = timed(step, device)
        step_s.append(elapsed_s)
        cpu_s.append(of_cpu_s)
    if device.type == "cuda" and system.startswith("psclap") and arguments.sync_debug:
        torch.cuda.set_sync_debug_mode("error")  # raises, with the place, where the step waits for the GPU
        step()
        torch.cuda.set_sync_debug_mode("default")
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "step_s": statistics.median(step_s),
        "cpu_s": statistics.median(cpu_s),
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else peak_kib / 2**20,
        "peak_flops": peak_flops,
        "step_flops": 3 * forward_flops(arguments.size, host_batch),
        "audio_s": host_batch.audio_mask.sum().item() / _SAMPLE_RATE_HZ,
        "loss": first_loss,
    }


def ours(arguments: argparse.Namespace, precision: str, batch: Batch) -> tuple[float, Callable[[], object]]:
    """The loss before the first step, without dropout, and what takes a step; the batch comes from the host."""
    device = torch.device(arguments.device)
    stepper = our_stepper(arguments.size, precision, device)
    if device.type == "cuda":
        batch = batch.pin_memory()
    if arguments.compile:
        for encoder in (stepper.task.model.audio_model, stepper.task.model.text_model):
            encoder.compile(dynamic=True)
    stepper.task.eval()
    with torch.no_grad():
        first_loss = stepper.task(batch.to(device)).total.item()
    return first_loss, lambda: stepper.step(0, batch)


def plain(
    system: str, arguments: argparse.Namespace, precision: str, batch: Batch
) -> tuple[float, Callable[[], object]]:
    """As `ours`, of the published recipe and of transformers under autocast; the batch is on the device."""
    device = torch.device(arguments.device)
    task = Published(arguments.size, gradient_checkpointing=system == _BASELINE).to(device)
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if system == _BASELINE:
        optimizer = torch.optim.Adam(parameters, lr=1e-5)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return task(batch)

    def step() -> None:
        total = loss()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()

    task.eval()
    with torch.no_grad():
        first_loss = loss().item()
    task.train()
    return first_loss, step


def timed(step: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds by the clock, and of the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start_s, cpu_start_s = time.perf_counter(), time.process_time()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start_s, time.process_time() - cpu_start_s


def measured_peak(precision: str) -> float:
    """FLOP/s of the best of 10 products of the size of a feed-forward layer's."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    states, weight = torch.randn(4096, 768, dtype=dtype), torch.randn(3072, 768, dtype=dtype)
    seconds = [timed(lambda: F.linear(states, weight), torch.device("cpu"))[0] for _ in range(10)]
    return 2 * 4096 * 768 * 3072 / min(seconds)


def forward_flops(size: str, batch: Batch) -> float:
    """FLOP of the forward pass's matrix products and convolutions, over valid samples, frames and tokens."""
    speech = sum(speech_flops(size, samples) for samples in batch.audio_mask.sum(1).tolist())
    return speech + sum(transformer_flops(tokens, 768, 3072, 12) for tokens in batch.text_mask.sum(1).tolist())


def speech_flops(size: str, samples: int) -> float:
    """FLOP of one clip through the speech encoder."""
    speech = speech_config(size)
    width, channels = speech.hidden_size, [1, *speech.conv_dim]
    total, frames = 0.0, samples
    for number, (taps, stride) in enumerate(zip(speech.conv_kernel, speech.conv_stride, strict=True)):
        frames = (frames - taps) // stride + 1
        total += 2 * frames * taps * channels[number] * channels[number + 1]
    total += 2 * frames * channels[-1] * width
    total += 2 * frames * width * width / speech.num_conv_pos_embedding_groups * speech.num_conv_pos_embeddings
    return total + transformer_flops(frames, width, speech.intermediate_size, speech.num_hidden_layers)


def transformer_flops(length: int, width: int, inner: int, layers: int) -> float:
    """FLOP of a sequence through encoder layers: four projections, two products of attention, two of feed-forward."""
    return layers * (2 * length * (4 * width * width + 2 * width * inner) + 4 * length * length * width)


def main() -> None:
    arguments = _arguments()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments)))
        return
    results: dict[str, list[dict[str, Any]]] = {system: [] for system in arguments.systems}
    for number in range(arguments.passes):
        for system in arguments.systems:
            results[system].append(_run_child(system))
            print(f"pass {number + 1}, {system}: {results[system][-1]}", file=sys.stderr, flush=True)
    _check_equal_losses(results)
    text = "\n".join(_table(results, arguments)) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)


def _run_child(system: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--child", system]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _check_equal_losses(results: dict[str, list[dict[str, Any]]]) -> None:
    losses = {system: of_system[0]["loss"] for system, of_system in results.items()}
    expected = next(iter(losses.values()))
    for system, loss in losses.items():
        if abs(loss - expected) > (0.05 if "bf16" in system else 1e-4) * expected:
            raise SystemExit(f"the losses are not equal: {losses}")


def _table(results: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> list[str]:
    lengths = f"0.2 to 1 times {arguments.seconds:g} s" if arguments.mixed else f"{arguments.seconds:g} s"
    header = [f"{arguments.size}, {arguments.device}, {arguments.clips} clips of {lengths}", "clips/s", "audio s/s"]
    header += ["ratio", "CPU s", "ratio", "memory, GiB", "ratio", "MFU, %"]
    rows = []
    for system, of_system in results.items():

        def median(value: Callable[[dict[str, Any]], float], of_system: list[dict[str, Any]] = of_system) -> float:
            return statistics.median(value(result) for result in of_system)

        def ratio(key: str, of_system: list[dict[str, Any]] = of_system) -> str:
            pairs = zip(results.get(_BASELINE, []), of_system, strict=False)
            ratios = [baseline[key] / result[key] for baseline, result in pairs]
            return f"{statistics.median(ratios):.2f}" if ratios else ""

        rows.append(
            [
                system,
                f"{median(lambda result: arguments.clips / result['step_s']):.2f}",
                f"{median(lambda result: result['audio_s'] / result['step_s']):.1f}",
                ratio("step_s"),
                f"{median(lambda result: result['cpu_s']):.1f}",
                ratio("cpu_s"),
                f"{median(lambda result: result['memory_gib']):.1f}",
                ratio("memory_gib"),
                f"{median(lambda result: 100 * result['step_flops'] / result['step_s'] / result['peak_flops']):.0f}",
            ]
        )
    return table(header, rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["base", "large"], default="base")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--mixed", action="store_true", help="clips of 0.2 to 1 times --seconds")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, help="torch's threads; default: torch's own choice")
    parser.add_argument("--systems", nargs="+", choices=_SYSTEMS, default=_SYSTEMS)
    parser.add_argument("--compile", action="store_true", help="psclap through torch.compile")
    parser.add_argument("--sync-debug", action="store_true", help="on a GPU: fail where psclap's step waits for it")
    parser.add_argument("--out", type=Path, help="also writes the table here")
    parser.add_argument("--child", choices=_SYSTEMS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
