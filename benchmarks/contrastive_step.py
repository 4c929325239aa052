"""What Speech-Clip's contrast brings to Clip-TTS, on the same budget.

A voice of params.yaml, on its shards, for each seed:

    contrast      Clip-TTS from a Speech-Clip as configured
    no contrast   Clip-TTS from a Speech-Clip whose frame_weight and pooled_weight are 0: its aligner and its durations
                  are trained as before, its text encoder by durations alone
    from scratch  Clip-TTS alone, for as many steps as the two together

All have the learning rates of the voice; of each training the model after the last step is taken, not the best.
Held-out sentences of `test` are said by each, and compared with the recordings clip by clip (psclap/tts/evaluation).
The two errors of `val` are against the durations that each model's own aligner finds, so they are not quite of one
kind; the demo's corpus knows when which phoneme was spoken, and predicted durations are compared with that, too.

    PYTHONPATH=. python benchmarks/contrastive_step.py --shards tts/cast/shards --seeds 1 2
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from voice_training import Trained, synthesiser, trained

from psclap.config import load_params
from psclap.corpora import build_corpus
from psclap.corpora.demo_tts import DemoTts
from psclap.markdown import table
from psclap.shards.index import ShardIndex
from psclap.tts.evaluation.alignment import Timeline
from psclap.tts.evaluation.evaluate import MODEL
from psclap.tts.evaluation.means import means
from psclap.tts.evaluation.run import ROWS_NAME, evaluate_synthesiser
from psclap.tts.mel import MelConfig
from psclap.tts.recipe import SpeechRecipe
from psclap.tts.vocoder import load_vocoder
from psclap.tts_config import SpeechTrainConfig, VoiceConfig

CONTRAST, NONE, SCRATCH = "contrast", "no contrast", "from scratch"
MEASURES = ("mcd_db", "mel_mcd_db", "length_error", "f0_rmse_cents", "voicing_error")
RESAMPLES = 2000
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Arm:
    """One of the three, of one seed; `values` are (N,) of each measure on the test clips."""

    name: str
    seed: int
    cpu_s: float
    val: Mapping[str, float]
    duration_ms: float | None
    values: Values


class Trial:
    """The trainings and the evaluation of one voice, all in `folder`."""

    def __init__(self, voice: VoiceConfig, shards: Path, folder: Path):
        self.voice, self.shards, self.folder = voice, shards, folder
        self.index, self.mel = ShardIndex(shards), MelConfig.from_dict(dict(voice.mel))
        self.vocoder = load_vocoder(voice.evaluate.vocoder, self.mel)
        self.known = known(voice, self.index)

    def arms(self, seed: int) -> Iterator[Arm]:
        """The three arms of a seed."""
        clip, tts = self.voice.speech_clip, self.voice.clip_tts
        without = replace(clip, frame_weight=0.0, pooled_weight=0.0)
        for name, start in ((CONTRAST, clip), (NONE, without)):
            first = self._trained(f"{name}, Speech-Clip, seed {seed}", start, None, seed)
            last = self._trained(f"{name}, Clip-TTS, seed {seed}", tts, str(first.folder), seed)
            yield self._heard(name, seed, last, first.cpu_s + last.cpu_s)
        steps = (clip.max_steps or 0) + (tts.max_steps or 0)
        alone = replace(tts, start_from=None, max_steps=steps, validate_every=steps)
        last = self._trained(f"{SCRATCH}, seed {seed}", alone, None, seed)
        yield self._heard(SCRATCH, seed, last, last.cpu_s)

    def _trained(self, name: str, config: SpeechTrainConfig, start: str | None, seed: int) -> Trained:
        return trained(self.shards, SpeechRecipe(self.voice.model, self.mel, config, start), seed, self.folder / name)

    def _heard(self, name: str, seed: int, model: Trained, cpu_s: float) -> Arm:
        report = self.folder / f"report, {name}, seed {seed}"
        results = evaluate_synthesiser(
            report, name, self.index, synthesiser(model.folder), self.vocoder, known=self.known, resamples=100
        )
        durations = results.get("durations", {}).get("predicted", {}).get("duration_ms")
        return Arm(name, seed, cpu_s, model.metrics, durations, values_of(report))


def values_of(report: Path) -> Values:
    """(N,) of each measure of the model, a value for each clip, in the clips' order."""
    with open(report / ROWS_NAME, newline="", encoding="utf-8") as stream:
        rows = sorted((row for row in csv.DictReader(stream) if row["system"] == MODEL), key=lambda row: row["key"])
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in MEASURES}


def known(voice: VoiceConfig, index: ShardIndex) -> dict[str, Timeline]:
    """When which phoneme of the test clips was spoken, where the corpus knows."""
    corpus = build_corpus(voice.corpus.name, voice.corpus.options)
    if not isinstance(corpus, DemoTts):
        return {}
    keys = index.take(index.rows_of("test"), ["key"])["key"].to_pylist()
    return {key: Timeline.of_events(events) for key, _, events in corpus.timed(keys)}


def short(voice: VoiceConfig, speech_clip_steps: int | None, clip_tts_steps: int | None) -> VoiceConfig:
    """The voice with other numbers of steps, where they are given; it is validated at the end alone."""
    clip_steps = speech_clip_steps or voice.speech_clip.max_steps or 0
    tts_steps = clip_tts_steps or voice.clip_tts.max_steps or 0
    return replace(
        voice,
        speech_clip=replace(voice.speech_clip, max_steps=clip_steps, validate_every=clip_steps),
        clip_tts=replace(voice.clip_tts, max_steps=tts_steps, validate_every=tts_steps),
    )


def arm_rows(arms: Sequence[Arm]) -> list[list[str]]:
    """A row for each arm and seed."""
    return [
        [
            arm.name,
            str(arm.seed),
            f"{arm.cpu_s:.0f}",
            f"{arm.val['val/mel_mae']:.4f}",
            f"{arm.val['val/duration_mae']:.3f}",
            *(f"{np.nanmean(arm.values[name]):.3f}" for name in MEASURES),
            "" if arm.duration_ms is None else f"{arm.duration_ms:.1f}",
        ]
        for arm in sorted(arms, key=lambda arm: (arm.name, arm.seed))
    ]


def difference_rows(arms: Sequence[Arm]) -> list[list[str]]:
    """What the contrast changes on the same clips, mean over the seeds, with 95 % intervals over the clips; by seed."""
    found = []
    for other in (NONE, SCRATCH):
        pairs = [
            (with_it.values, without.values)
            for with_it in arms
            for without in arms
            if with_it.name == CONTRAST and without.name == other and with_it.seed == without.seed
        ]
        by_seed = {name: np.stack([ours[name] - theirs[name] for ours, theirs in pairs]) for name in MEASURES}
        mean = means(
            {name: rows.mean(0) for name, rows in by_seed.items()}, np.arange(len(by_seed["mcd_db"][0])), RESAMPLES
        )
        found.append([f"{CONTRAST} - {other}", *(_cell(mean, name, by_seed[name]) for name in MEASURES)])
    return found


def _cell(mean: Mapping[str, Any], name: str, by_seed: np.ndarray) -> str:
    if name not in mean:
        return ""
    low, high = mean["intervals"][name]
    seeds = ", ".join(f"{np.nanmean(row):+.3f}" for row in by_seed)
    return f"{mean[name]:+.3f} [{low:+.3f}, {high:+.3f}] ({seeds})"


def main() -> None:
    """Trains and measures, and prints both tables after every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--voice", default="cast", help="a voice of the section tts of the parameters")
    parser.add_argument("--shards", type=Path, required=True, help="the shards of that voice")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--speech-clip-steps", type=int, help="instead of the voice's own number")
    parser.add_argument("--clip-tts-steps", type=int, help="instead of the voice's own number")
    options = parser.parse_args()
    torch.set_num_threads(1)
    voice = short(load_params(options.params).voices[options.voice], options.speech_clip_steps, options.clip_tts_steps)
    arms: list[Arm] = []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(voice, options.shards, Path(folder))
        for seed in options.seeds:
            arms += trial.arms(seed)
            header = ["arm", "seed", "CPU s", "val mel MAE", "val duration MAE", *MEASURES, "phones off by, ms"]
            print("\n" + "\n".join(table(header, arm_rows(arms))))
            print("\n" + "\n".join(table(["difference", *MEASURES], difference_rows(arms))) + "\n", flush=True)


if __name__ == "__main__":
    main()
