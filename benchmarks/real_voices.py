"""A voice trained on real speech, in this process: manifest, shards, Speech-Clip, Clip-TTS, reports.

One speaker of the manifest; a few of its clips, chosen by the hash of their keys, are held out for `val` and `test`.
Under --output lie the shards, the checkpoints (the same command goes on from them) and

    reports/speech_clip   text-mel retrieval on the test clips, beside chance
    reports/clip_tts      the test sentences as said by the model, beside copy synthesis (the recording through the same
                          vocoder: what a perfect model would get), the untrained model and the mean mel; the page has
                          the audio, waves/ has it as files

The aligner is trained without the binarisation loss, under which it collapsed on real speech (RESULTS.md).

    PYTHONPATH=. python benchmarks/real_voices.py --manifest tts/manifest.csv --speaker kerstin --output /tmp/kerstin
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from voice_training import Trained, matcher, synthesiser, trained

from psclap import audio
from psclap.corpora.manifest import Manifest
from psclap.corpora.record import Defaults
from psclap.data_config import ShardConfig
from psclap.errors import PsclapError
from psclap.files import write_json
from psclap.loop_config import ComputeConfig, SamplingConfig
from psclap.markdown import table
from psclap.parallel import process_map
from psclap.schema import Split, Utterance, utterances_to_table
from psclap.shards.index import ShardIndex
from psclap.shards.writer import ShardJob, write_shards
from psclap.tts.build import load
from psclap.tts.evaluation.evaluate import COPY, MEAN, MODEL, UNTRAINED
from psclap.tts.evaluation.models import ClipTTS, SpeechClip, untrained
from psclap.tts.evaluation.recordings import held_out, recordings
from psclap.tts.evaluation.results import headline
from psclap.tts.evaluation.run import evaluate_matcher, evaluate_synthesiser
from psclap.tts.mel import MelConfig
from psclap.tts.recipe import SpeechRecipe
from psclap.tts.vocoder import Vocoder, load_vocoder
from psclap.tts_config import Objective, SpeechModelConfig, SpeechTrainConfig

MEL = MelConfig(sample_rate_hz=16000, floor=1e-5)
Results = dict[str, Any]
SYSTEMS = (COPY, MODEL, UNTRAINED, MEAN)
MEASURES = ("mcd_db", "mel_mcd_db", "f0_rmse_cents", "f0_rmse_hz", "voicing_error", "length_error")
SHARDING = ShardConfig(
    url=None,
    sample_rate_hz=MEL.sample_rate_hz,
    loudness_lufs=None,
    max_samples_per_shard=100,
    max_bytes_per_shard=10**8,
    min_duration_s=0.5,
    max_duration_s=20.0,
    max_reject_rate=0.05,
    phonemes=True,
)


def speaker_utterances(manifest: Path, speaker: str, held_out: int) -> list[Utterance]:
    """The clips of a speaker; of those with the lowest hashes of their keys, `held_out` are test and as many val.

    Raises PsclapError for a manifest that lacks a column, and where fewer clips are left to train on than are held out.
    """
    source = Manifest(
        path=str(manifest),
        columns={"audio": "path", "source": "corpus", "split": None},
        only={"speaker": (speaker,)},
        defaults=Defaults(split="train"),
    )
    clips = sorted(
        source.utterances(manifest.parent, processes=None),
        key=lambda clip: hashlib.sha256(clip.key.encode()).hexdigest(),
    )
    if len(clips) < 3 * held_out:
        raise PsclapError(
            f"{manifest} has {len(clips)} clips of the speaker {speaker!r}; with --held-out {held_out} it must have "
            f"{3 * held_out} at least"
        )
    splits: Sequence[Split] = ["test"] * held_out + ["val"] * held_out + ["train"] * (len(clips) - 2 * held_out)
    return [replace(clip, split=split) for clip, split in zip(clips, splits, strict=True)]


def make_shards(clips: Iterable[Utterance], folder: Path) -> Path:
    """The shards of clips whose audio paths are absolute; those that are there already are kept."""
    job = ShardJob(utterances_to_table(clips), Path("/"), SHARDING, str(folder / "shards"), str(folder / "receipts"))
    write_shards(job, partial(process_map, processes=1))
    return folder / "shards"


def training(options: argparse.Namespace, objective: Objective, max_steps: int) -> SpeechTrainConfig:
    """How either model is trained."""
    return SpeechTrainConfig(
        objective=objective,
        start_from="speech_clip" if objective == "clip_tts" else None,
        best_metric="val/mel_mae" if objective == "clip_tts" else "val/MRR",
        max_clip_s=options.max_clip_s,
        sampling=SamplingConfig(bucket_batches=4, max_batch_s=options.max_batch_s, batch_multiple=2),
        global_batch_size=options.batch_size,
        max_steps=max_steps,
        max_epochs=None,
        freeze=(),
        optimizer="adamw",
        learning_rate=options.learning_rate,
        adam_betas=(0.9, 0.98),
        weight_decay=0.01,
        schedule="cosine",
        warmup_steps=min(options.warmup_steps, max_steps),
        max_grad_norm=1.0,
        ema_decay=None,
        max_skipped_steps=0,
        compute=ComputeConfig(precision=options.precision),
        binarisation_weight=options.binarisation_weight,
        log_every=max(1, max_steps // 10),
        validate_every=max(1, max_steps // 4),
        patience=None,
    )


def train_both(options: argparse.Namespace, shards: Path) -> tuple[Trained, Trained]:
    """Speech-Clip, and Clip-TTS from it."""
    sizes = SpeechModelConfig(
        hidden_size=options.hidden_size,
        num_blocks=options.num_blocks,
        conv_size=options.conv_size,
        dropout=options.dropout,
        duration_dropout=options.duration_dropout,
    )
    first = SpeechRecipe(sizes, MEL, training(options, "speech_clip", options.speech_clip_steps))
    clip = trained(shards, first, options.seed, options.output / "speech_clip")
    second = SpeechRecipe(sizes, MEL, training(options, "clip_tts", options.clip_tts_steps), str(clip.folder))
    return clip, trained(shards, second, options.seed, options.output / "clip_tts")


def evaluate_both(options: argparse.Namespace, shards: Path, clip: Trained, tts: Trained) -> tuple[Results, Results]:
    """Writes both reports; of Clip-TTS with the audio of all test sentences."""
    index, reports = ShardIndex(shards), options.output / "reports"
    matched = evaluate_matcher(
        reports / "speech_clip", f"Speech-Clip, {options.speaker}", index, matcher(clip.folder), resamples=1000
    )
    vocoder = load_vocoder(options.vocoder, MEL)
    said = evaluate_synthesiser(
        reports / "clip_tts",
        f"Clip-TTS, {options.speaker}",
        index,
        synthesiser(tts.folder),
        vocoder,
        untrained=ClipTTS(untrained(load(tts.folder))),
        resamples=1000,
    )
    return matched, said


def alignment(index: ShardIndex, clip: SpeechClip) -> dict[str, float]:
    """How frames are shared out on the test clips: a collapsed aligner gives one to nearly all symbols, and the
    rest to a few.
    """
    rows, _ = held_out(index, "test", 1000, MEL, clip.can_say)
    frames = [clip.align(made.row, made.log_mel)[1] for made in recordings(index, rows, MEL)]
    return {
        "symbols_of_one_frame": float(np.mean([(of_clip == 1).mean() for of_clip in frames])),
        "longest_symbol_frames": float(np.mean([of_clip.max() for of_clip in frames])),
    }


def write_waves(folder: Path, index: ShardIndex, model: ClipTTS, vocoder: Vocoder) -> None:
    """Every test sentence that the model can say, as a FLAC file beside its recording."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in held_out(index, "test", 1000, MEL, model.can_say)[0].tolist():
        row = index.row(number)
        with torch.inference_mode():
            wave = vocoder(torch.from_numpy(model.speak(row))).float().cpu().numpy()
        name = hashlib.sha256(row["key"].encode()).hexdigest()[:12]
        audio.write_flac(folder / f"{name}-said.flac", wave, MEL.sample_rate_hz)
        audio.write_flac(folder / f"{name}-recorded.flac", index.read_clip(number), index.sample_rate_hz)


def show(shards: Path, trainings: tuple[Trained, Trained], numbers: Results) -> None:
    """Prints what was trained on what, and the tables."""
    for name, counts in ShardIndex(shards).summary["splits"].items():
        print(f"{name}: {counts['clips']} clips, {60 * counts['hours']:.1f} min")
    print(f"CPU seconds: Speech-Clip {trainings[0].cpu_s:.0f}, Clip-TTS {trainings[1].cpu_s:.0f}")
    aligned = numbers["alignment"]
    print(
        f"symbols of one frame: {aligned['symbols_of_one_frame']:.2f}; longest: {aligned['longest_symbol_frames']:.0f}"
    )
    rows = [
        [way, *(f"{of[name]:.3f} ({of[f'chance_{name}']:.3f})" for name in ("R@1", "R@5"))]
        for way, of in numbers["speech_clip"]["retrieval"].items()
    ]
    print("\n" + "\n".join(table(["Speech-Clip, test", "R@1 (chance)", "R@5 (chance)"], rows)))
    systems = numbers["clip_tts"]
    rows = [[name, *(_number(systems[name], measure) for measure in MEASURES)] for name in SYSTEMS]
    print("\n" + "\n".join(table(["Clip-TTS, test", *MEASURES], rows)))


def _number(scores: Mapping[str, float], measure: str) -> str:
    if measure not in scores:
        return ""
    return f"{scores[measure]:.3g} [{scores[f'{measure}_low']:.3g}, {scores[f'{measure}_high']:.3g}]"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--manifest", type=Path, required=True, help="columns path, speaker, corpus, language, transcript"
    )
    parser.add_argument("--speaker", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=16, help="clips of test, and as many of val")
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--num-blocks", type=int, default=3)
    parser.add_argument("--conv-size", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--duration-dropout", type=float, default=0.1)
    parser.add_argument("--speech-clip-steps", type=int, default=100)
    parser.add_argument("--clip-tts-steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-batch-s", type=float, default=48.0)
    parser.add_argument("--max-clip-s", type=float, default=13.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--binarisation-weight", type=float, default=0.0)
    parser.add_argument("--warmup-steps", type=int, default=20)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--vocoder", default="griffin-lim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Trains, evaluates, prints. Raises PsclapError for what cannot be trained on."""
    options.output.mkdir(parents=True, exist_ok=True)
    clips = speaker_utterances(options.manifest.absolute(), options.speaker, options.held_out)
    shards = make_shards(clips, options.output)
    trainings = train_both(options, shards)
    matched, said = evaluate_both(options, shards, *trainings)
    vocoder = load_vocoder(options.vocoder, MEL)
    write_waves(options.output / "waves", ShardIndex(shards), synthesiser(trainings[1].folder), vocoder)
    aligned = alignment(ShardIndex(shards), matcher(trainings[0].folder))
    numbers = {"speech_clip": headline(matched), "clip_tts": headline(said), "alignment": aligned}
    write_json(options.output / "numbers.json", numbers)
    show(shards, trainings, numbers)


def main() -> None:
    """The command."""
    options = parse()
    torch.set_num_threads(options.threads)
    try:
        run(options)
    except PsclapError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
