"""How fast Clip-TTS makes mels of phonemes, beside transformers' FastSpeech 2 in the same run.

Random weights; no vocoder. The last layer of each duration predictor is set so that every symbol takes FRAMES_A_SYMBOL
frames: all compute all of their parts, and make mels of the same length. A round measures every model once, at each
length, in turn; a ratio is of two times of one round. The real-time factor counts a frame as 256 samples at 22,050 Hz,
as in LJSpeech's models (11.6 ms); at our 16 kHz the same frames are 16 ms of speech. CPU time is of all threads, and
what other programs on the machine disturb least.

`FastSpeech 2, LJSpeech checkpoint's size` is FastSpeech2ConformerModel as its configuration comes, that of
espnet/fastspeech2_conformer. `FastSpeech 2, paper's size` has no convolution modules, macaron layers and postnet, and
hidden size, heads and convolutions as in the paper; but the class knows one kernel for both convolutions of a block, so
5 and 5 stand for the paper's 9 and 1, with as many weights and operations, and its attention is relative. Clip-TTS has
no predictors of pitch and energy, which FastSpeech 2 has.

    PYTHONPATH=. python benchmarks/tts_speed.py --threads 1 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import log
from statistics import median

import torch
from transformers import FastSpeech2ConformerConfig, FastSpeech2ConformerModel
from transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer import FastSpeech2ConformerEncoderLayer

from psclap.markdown import table
from psclap.tts.clip_tts import ClipTTSModel, Voice
from psclap.tts.config import ClipTTSConfig

NUM_SYMBOLS = 78  # as many as espnet/fastspeech2_conformer has
FRAMES_A_SYMBOL = 7  # 81 ms
FRAME_S = 256 / 22050
Speak = Callable[[torch.Tensor], torch.Tensor]
Times = dict[tuple[str, int], list[tuple[float, float]]]


@dataclass
class System:
    """A model: (1, L) symbols to (1, F, 80) mels; how many parameters take part."""

    name: str
    num_parameters: int
    speak: Speak


def clip_tts(attention: str) -> System:
    """Clip-TTS at the paper's size, which is the configuration's default. The aligner does not speak."""
    config = ClipTTSConfig(
        symbols=list(map(str, range(NUM_SYMBOLS))), speakers=["one"], styles=["calm"], decoder_attention=attention
    )
    model = ClipTTSModel(config).eval()
    _fix_durations(model.text_encoder.duration_predictor.out)
    voice = Voice(torch.tensor([0]), torch.tensor([[1.0]]))

    def speak(symbols: torch.Tensor) -> torch.Tensor:
        return model.speak(symbols, torch.tensor([symbols.shape[1]]), voice).mel

    speaking = count(model) - count(model.aligner)
    return System(f"Clip-TTS, paper's size, {attention} attention", speaking, speak)


def fastspeech2(name: str, config: FastSpeech2ConformerConfig) -> System:
    """FastSpeech 2 as transformers has it, of a configuration."""
    model = FastSpeech2ConformerModel(config).eval()
    if not config.use_cnn_in_conformer:
        for module in model.modules():
            if isinstance(module, FastSpeech2ConformerEncoderLayer):
                module.conv_module = None  # which its forward asks for, and its constructor leaves out
    _fix_durations(model.duration_predictor.linear)
    return System(f"FastSpeech 2, {name}", count(model), lambda symbols: model(symbols).spectrogram)


def paper_size() -> FastSpeech2ConformerConfig:
    """FastSpeech 2's paper, appendix A, as near as the class allows."""
    stack = {"layers": 4, "num_attention_heads": 2, "linear_units": 1024, "kernel_size": 7}
    rates = dict.fromkeys(("attention_dropout_rate", "dropout_rate", "positional_dropout_rate"), 0.2)
    plain = {"normalize_before": False, "concat_after": False}
    return FastSpeech2ConformerConfig(
        vocab_size=NUM_SYMBOLS,
        hidden_size=256,
        encoder_config={**stack, **rates, **plain},
        decoder_config={**stack, **rates, **plain},
        positionwise_conv_kernel_size=5,
        use_macaron_style_in_conformer=False,
        use_cnn_in_conformer=False,
        speech_decoder_postnet_layers=0,
        pitch_predictor_layers=2,
        pitch_predictor_kernel_size=3,
    )


def count(module: torch.nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _fix_durations(last: torch.nn.Linear) -> None:
    """Both models predict log(1 + frames)."""
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, log(1 + FRAMES_A_SYMBOL))


def measure(systems: list[System], lengths: list[int], threads: int, rounds: int) -> Times:
    """Wall and CPU seconds of every round, by system and number of symbols; a round before them warms up."""
    torch.set_num_threads(threads)
    times_s: Times = {}
    for number in range(-1, rounds):
        for length in lengths:
            symbols = torch.randint(1, NUM_SYMBOLS, (1, length), generator=torch.Generator().manual_seed(length))
            for system in systems:
                taken_s = _time(system, symbols)
                if number >= 0:
                    times_s.setdefault((system.name, length), []).append(taken_s)
    return times_s


def _time(system: System, symbols: torch.Tensor) -> tuple[float, float]:
    with torch.inference_mode():
        start, cpu_start = time.perf_counter(), time.process_time()
        mel = system.speak(symbols)
        taken_s = time.perf_counter() - start, time.process_time() - cpu_start
    if mel.shape != (1, symbols.shape[1] * FRAMES_A_SYMBOL, 80):
        raise SystemExit(f"{system.name} made a mel of shape {tuple(mel.shape)} of {symbols.shape[1]} symbols")
    return taken_s


def rows(systems: list[System], lengths: list[int], times_s: Times) -> list[list[str]]:
    """A row for each system, of medians: how many times as long as the first system, its time, real-time factors."""
    found = []
    for system in systems:
        cells = []
        for length in lengths:
            speech_s = length * FRAMES_A_SYMBOL * FRAME_S
            (wall_s, cpu_s), (first_s, _) = _columns(times_s, system, length), _columns(times_s, systems[0], length)
            ratio = median(own / first for own, first in zip(wall_s, first_s, strict=True))
            cells.append(
                f"x {ratio:.2f}: {1000 * median(wall_s):.0f} ms, RTF {median(wall_s) / speech_s:.3f}, "
                f"CPU {median(cpu_s) / speech_s:.3f}"
            )
        found.append([system.name, f"{system.num_parameters / 1e6:.1f} M", *cells])
    return found


def _columns(times_s: Times, system: System, length: int) -> list[tuple[float, ...]]:
    return list(zip(*times_s[system.name, length], strict=True))


def main() -> None:
    """Measures, and prints a table for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--symbols", type=int, nargs="+", default=[20, 60, 120, 200])
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    systems = [
        clip_tts("causal"),
        clip_tts("full"),
        fastspeech2("LJSpeech checkpoint's size", FastSpeech2ConformerConfig(vocab_size=NUM_SYMBOLS)),
        fastspeech2("paper's size", paper_size()),
    ]
    header = ["model", "parameters"]
    header += [f"{length} symbols, {length * FRAMES_A_SYMBOL * FRAME_S:.1f} s" for length in arguments.symbols]
    for threads in arguments.threads:
        times_s = measure(systems, arguments.symbols, threads, arguments.rounds)
        print(f"\n{threads} threads, torch {torch.__version__}, medians of {arguments.rounds} rounds\n")
        print("\n".join(table(header, rows(systems, arguments.symbols, times_s))))


if __name__ == "__main__":
    main()
