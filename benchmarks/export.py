"""What the forms of `psclap export` cost and keep: bytes, clips per second, cosines with the float32 embeddings.

`int8` is no form that psclap offers: onnxruntime's dynamic quantisation of the ONNX files, all but the log-mel's own
product. The passes of all forms are interleaved; a pass is over all clips, in batches, from waves in memory. CPU s are
of all threads, and what other programs on the machine disturb least.

    PYTHONPATH=. python benchmarks/export.py --model models/combined --audio data/corpus --pattern 'demo-test-*'
    PYTHONPATH=. python benchmarks/export.py --audio SPEECH --every 40   # a random WavLM-base
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from psclap import audio
from psclap.config import PRESETS_FOLDER, EncoderConfig, load_params
from psclap.embedding import Embedder
from psclap.export.bf16 import export_bf16
from psclap.export.onnx import export_onnx
from psclap.export.session import AUDIO, TEXT, OnnxModel
from psclap.models.build import build_model
from psclap.tags import VOCABULARY, default_prompt

Embed = Callable[[list], np.ndarray]


@dataclass
class Form:
    """A form of the model, and what was measured."""

    name: str
    num_bytes: int
    embed_audio: Embed
    embed_text: Embed
    speech: np.ndarray = field(default_factory=lambda: np.empty(0))
    times_s: list[tuple[float, float]] = field(default_factory=list)  # of a pass: wall, CPU


def random_base(folder: Path, prompts: list[str]) -> Path:
    """A WavLM and a BERT of base size with random weights, as the paper joins its encoders."""
    published = load_params(PRESETS_FOLDER / "paper.yaml").model
    config = replace(
        published,
        speech=EncoderConfig(pooling="mean", config={"model_type": "wavlm"}),
        text=EncoderConfig(pooling="cls", config={"model_type": "bert"}),
        tokenizer_vocab_size=1000,
    )
    model, processor = build_model(config, prompts, 16000, seed=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def quantised(source: Path, target: Path) -> Path:
    """int8 weights in the matrix products and tables; what is smaller than a layer (mel filters) stays."""
    target.mkdir()
    for path in source.glob("*.json"):
        (target / path.name).write_bytes(path.read_bytes())
    for name in (AUDIO, TEXT):
        graph = onnx.load(source / name)
        del graph.graph.value_info[:]  # the exporter's shapes contradict onnx's own, which the quantiser asks
        onnx.save(graph, target / "plain.onnx")
        mel = {tensor.name for tensor in graph.graph.initializer if "mel_filters" in tensor.name}
        kept = [node.name for node in graph.graph.node if mel & set(node.input)]
        quantize_dynamic(
            target / "plain.onnx",
            target / name,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            nodes_to_exclude=kept,
        )
        (target / "plain.onnx").unlink()
    return target


def forms(model: Path, folder: Path, arguments: argparse.Namespace) -> list[Form]:
    """All forms, float32 first."""
    export_bf16(model, folder / "bf16")
    export_onnx(model, folder / "onnx")
    quantised(folder / "onnx", folder / "int8")
    found = []
    for name, path in (("fp32", model), ("bf16", folder / "bf16")):
        embedder = Embedder(path, "cpu", batch_s=1e6)  # whatever `one_pass` gives it at once
        weights = (path / "model.safetensors").stat().st_size
        found.append(Form(name, weights, embedder.embed_audio, embedder.embed_text))
    for name in ("onnx", "int8"):
        session = OnnxModel(folder / name, threads=arguments.threads)
        size = sum((folder / name / tower).stat().st_size for tower in (AUDIO, TEXT))
        found.append(Form(name, size, session.embed_audio, session.embed_text))
    return found


def one_pass(form: Form, waves: list[np.ndarray], batch: int) -> None:
    """Embeds all clips and notes the time."""
    start = time.perf_counter(), time.process_time()
    parts = [form.embed_audio(waves[number : number + batch]) for number in range(0, len(waves), batch)]
    form.times_s.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    form.speech = np.concatenate(parts)


def table(measured: list[Form], prompts: list[str], num_clips: int) -> str:
    """Cosines are with the first form's."""
    header = ["form", "bytes", "clips/s", "clips/CPU s", "cosine, min", "mean", "centred, min", "texts, min"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    true_ND, true_texts = measured[0].speech, measured[0].embed_text(prompts)
    centre_D = true_ND.mean(0)
    for form in measured:
        wall_s, cpu_s = np.median(form.times_s, axis=0)
        cosines = (form.speech * true_ND).sum(1)
        centred = [vectors - centre_D for vectors in (form.speech, true_ND)]
        centred = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in centred]
        cells = [form.name, f"{form.num_bytes:,}", f"{num_clips / wall_s:.2f}", f"{num_clips / cpu_s:.2f}"]
        texts = (form.embed_text(prompts) * true_texts).sum(1).min()
        of_speech = (cosines.min(), cosines.mean(), (centred[0] * centred[1]).sum(1).min())
        cells += [f"{cosine:.5f}" for cosine in (*of_speech, texts)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    prompts = [default_prompt(tag) for tag in VOCABULARY]
    paths = sorted(arguments.audio.rglob(arguments.pattern))[:: arguments.every]
    waves = [audio.load(path, 16000) for path in paths]
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or random_base(Path(folder) / "model", prompts)
        measured = forms(model, Path(folder), arguments)
        for _ in range(arguments.passes):
            for form in measured:
                one_pass(form, waves, arguments.batch)
        seconds = sum(map(len, waves)) / 16000
        print(f"{len(waves)} clips, {seconds:.0f} s; {arguments.threads} threads, batches of {arguments.batch}\n")
        print(table(measured, prompts, len(waves)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; without one, a random model of base size")
    parser.add_argument("--audio", type=Path, required=True, help="a folder")
    parser.add_argument("--pattern", default="*.flac", help="of the files in it, and in its folders")
    parser.add_argument("--every", type=int, default=1, help="takes every n-th file")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--passes", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
