"""Best-of-N shown on a real TTS: the demo's voices render candidates, a model selects, an acoustic judge listens."""

from __future__ import annotations

import hashlib
import importlib.metadata
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from psclap import audio
from psclap.config import RewardConfig
from psclap.corpora.demo import Demo
from psclap.decoding import Wave
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.reward.criteria import Reward
from psclap.evaluation.reward.judge import UNHEARD, AcousticJudge, Features, listen
from psclap.evaluation.reward.rank import Ranked, rank
from psclap.evaluation.reward.recall import attribute_recall
from psclap.evaluation.reward.selection import write_selection
from psclap.evaluation.reward.styles import StyledPrompt, plan, render
from psclap.files import atomic_file, library_sha256
from psclap.parallel import process_map
from psclap.shards.index import ShardIndex

_JUDGE_RATE_HZ = 16000
_CLIPS_PER_JOB = 25


@dataclass(frozen=True)
class CalibratedJudge:
    """The judge, and how well it hears each attribute: its balanced accuracy on clips that it was not fitted to."""

    judge: AcousticJudge
    accuracy: dict[str, float]


def calibrated_judge(shards: Path, calibration_clips: int, seed: int, kept: Path | None = None) -> CalibratedJudge:
    """A judge fitted to that many clips of train, drawn without replacement, and measured on all of test.

    `kept` is a file of what was heard: of the same clips, by the same code, it is not heard again.
    """
    index = ShardIndex(shards)
    train_rows, test_rows = index.rows_of("train"), index.rows_of("test")
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(train_rows)[:calibration_clips])
    rows = np.concatenate([drawn, test_rows])
    heard = _heard_rows(shards, index, rows) if kept is None else _kept(kept, shards, index, rows)
    columns = index.take(rows, ["intrinsic_tags", "situational_tags"]).to_pylist()
    tags = [row["intrinsic_tags"] + row["situational_tags"] for row in columns]
    count = len(drawn)
    judge = AcousticJudge.calibrate(heard[:count], tags[:count])
    return CalibratedJudge(judge, judge.accuracy(heard[count:], tags[count:]))


def _kept(file: Path, shards: Path, index: ShardIndex, rows: np.ndarray) -> list[Features]:
    """What is heard of each clip; from `file`, or put there."""
    praat = importlib.metadata.version("praat-parselmouth")
    of_what = hashlib.sha256(f"{index.sha256} {library_sha256()} {praat} {rows.tolist()}".encode()).hexdigest()
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(file, allow_pickle=False) as found:
        if str(found["of_what"]) == of_what:
            return [dict(zip(found["names"].tolist(), clip, strict=True)) for clip in found["heard"].tolist()]
    heard = _heard_rows(shards, index, rows)
    with atomic_file(file) as partial_file, open(partial_file, "wb") as stream:
        np.savez(stream, of_what=of_what, names=[*heard[0]], heard=[[*clip.values()] for clip in heard])
    return heard


def _heard_rows(shards: Path, index: ShardIndex, rows: np.ndarray) -> list[Features]:
    return _in_jobs(partial(_hear_rows, shards), rows.tolist())


def _hear_rows(shards: Path, rows: Sequence[int]) -> list[Features]:
    index = ShardIndex(shards)
    texts = index.take(np.array(rows), ["transcript"]).column("transcript").to_pylist()
    return [
        listen(audio.resample(index.read_clip(row), index.sample_rate_hz, _JUDGE_RATE_HZ), _JUDGE_RATE_HZ, text)
        for row, text in zip(rows, texts, strict=True)
    ]


def _hear_files(files: Sequence[tuple[str, str]]) -> list[Features]:
    return [_hear(audio.load(path, _JUDGE_RATE_HZ), text) for path, text in files]


def _hear(wave: Wave, text: str) -> Features:
    """What is silent or too short to be measured has nothing that could be heard."""
    try:
        return listen(wave, _JUDGE_RATE_HZ, text)
    except PsclapError:
        return UNHEARD


def _in_jobs(hear: Callable[[Sequence[Any]], list[Features]], items: Sequence[Any]) -> list[Features]:
    jobs = [items[start : start + _CLIPS_PER_JOB] for start in range(0, len(items), _CLIPS_PER_JOB)]
    return [heard for of_job in process_map(hear, jobs) for heard in of_job]


def demonstrate(
    corpus: Demo,
    embedder: Embedder,
    judge: CalibratedJudge,
    config: RewardConfig,
    seed: int,
    folder: Path,
    model: Mapping[str, str],
) -> dict[str, Any]:
    """Renders, ranks and judges; writes the selection to `folder` and returns the result of `attribute_recall`."""
    prompts = plan(config.prompts, config.candidates, config.follow_probability, seed)
    reward = Reward()
    with tempfile.TemporaryDirectory(prefix="psclap-reward-") as rendered:
        ranked = list(rank(embedder, list(render(corpus, prompts, Path(rendered))), reward))
        write_selection(folder, ranked, reward, model)
        return judged(prompts, ranked, judge, seed)


def judged(
    prompts: Sequence[StyledPrompt], ranked: Sequence[Ranked], judge: CalibratedJudge, seed: int
) -> dict[str, Any]:
    """The result of `attribute_recall`, when the judge has listened to the candidates' files."""
    files = [
        (candidate.candidate.audio, line.text)
        for prompt, of_prompt in zip(prompts, ranked, strict=True)
        for candidate, line in zip(of_prompt.candidates, prompt.lines, strict=True)
    ]
    heard = map(judge.judge.judge, _in_jobs(_hear_files, files))
    return attribute_recall(prompts, ranked, _per_prompt(prompts, heard), judge.accuracy, seed)


def _per_prompt(prompts: Sequence[StyledPrompt], heard: Iterator[dict[str, str]]) -> list[list[dict[str, str]]]:
    return [[next(heard) for _ in prompt.lines] for prompt in prompts]
