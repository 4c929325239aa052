"""A selection on disk: `selection.jsonl`, the winners as `audios/ID.EXT`, and `summary.json`."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import numpy as np

from psclap import storage
from psclap.corpora.keys import safe_sample_key
from psclap.errors import PsclapError
from psclap.evaluation.reward.best_of_n import in_order, sweep
from psclap.evaluation.reward.criteria import Reward
from psclap.evaluation.reward.prompts import Prompt
from psclap.evaluation.reward.rank import Ranked
from psclap.files import atomic_folder, refuse_existing, write_json

SELECTION_NAME, SUMMARY_NAME, AUDIOS_NAME = "selection.jsonl", "summary.json", "audios"


def write_selection(
    folder: Path | str, ranked: Iterable[Ranked], reward: Reward, model: Mapping[str, str], judge: str | None = None
) -> dict[str, Any]:
    """Writes the selection to a new folder, whole or not at all, and returns the summary.

    `model` says which it was. `judge`: the column of the candidates (higher is better) by which the reward is
    evaluated, into the summary's `best_of_n`. Raises PsclapError where the folder exists, and for a judge that the
    reward goes by.
    """
    refuse_existing(folder)
    check_judge(judge, reward)
    with atomic_folder(folder) as partial:
        (partial / AUDIOS_NAME).mkdir()
        tally = Tally(judge)
        with open(partial / SELECTION_NAME, "w", encoding="utf-8") as lines:
            for of_prompt in tally.counting(ranked):
                lines.write(json.dumps(_record(of_prompt, _copy_winner(of_prompt, partial)), allow_nan=False) + "\n")
        summary = {"model": dict(model), "reward": _described(reward), **tally.summary()}
        write_json(partial / SUMMARY_NAME, summary)
    return summary


def check_judge(judge: str | None, reward: Reward) -> None:
    """Raises PsclapError for a judge that is the selector, or a part of it."""
    if judge is not None and judge in reward.columns:
        raise PsclapError(f"judge {judge!r} is a part of the reward; a judge must be another than the selector")


class Tally:
    """What a summary counts, as the prompts pass."""

    def __init__(self, judge: str | None):
        self._judge = judge
        self._prompts = self._outside_gates = 0
        self._failed: list[dict[str, str | None]] = []
        self._rejects: Counter[str] = Counter()
        self._candidates: Counter[int] = Counter()
        self._scores: list[tuple[float, float]] = []  # of the chosen one, the mean of all
        self._judged: list[tuple[np.ndarray, np.ndarray]] = []

    def counting(self, ranked: Iterable[Ranked]) -> Iterator[Ranked]:
        """Yields them as they come."""
        for of_prompt in ranked:
            self._count(of_prompt)
            yield of_prompt

    def _count(self, ranked: Ranked) -> None:
        self._prompts += 1
        self._candidates[len(ranked.candidates)] += 1
        self._rejects.update(c.reject.partition(":")[0] for c in ranked.candidates if c.reject)
        if ranked.chosen is None:
            self._failed.append({"id": ranked.prompt.id, "reason": ranked.reason})
            return
        self._outside_gates += not ranked.within_gates
        scores = [candidate.score for candidate in ranked.candidates if candidate.score is not None]
        self._scores.append((ranked.candidates[ranked.chosen].score or 0.0, float(np.mean(scores))))
        if self._judge is not None:
            self._judged += in_order(ranked, [c.candidate.columns.get(self._judge) for c in ranked.candidates])

    def summary(self) -> dict[str, Any]:
        """The counts; with a judge, `best_of_n`."""
        chosen, mean = np.mean(self._scores, axis=0) if self._scores else (None, None)
        numbers: dict[str, Any] = {
            "prompts": self._prompts,
            "candidates_per_prompt": {str(count): number for count, number in sorted(self._candidates.items())},
            "chosen": len(self._scores),
            "chosen_outside_gates": self._outside_gates,
            "rejected_candidates": dict(sorted(self._rejects.items())),
            "failed_prompts": self._failed,
            "mean_score": {"chosen": _rounded(chosen), "candidates": _rounded(mean)},
        }
        if self._judge is not None:
            rewards, values = zip(*self._judged, strict=True) if self._judged else ((), ())
            numbers["best_of_n"] = {"judge": self._judge, "prompts": len(rewards), "sizes": sweep(rewards, values)}
        return numbers


def _copy_winner(ranked: Ranked, folder: Path) -> str | None:
    """Copies the chosen audio; returns its path in the folder."""
    if ranked.chosen is None:
        return None
    source = ranked.candidates[ranked.chosen].candidate.audio
    name = f"{AUDIOS_NAME}/{safe_sample_key(ranked.prompt.id)}{_extension(source)}"
    if storage.is_remote(source) or storage.parse_reference(source)[2] is not None:
        (folder / name).write_bytes(storage.read(source))
    else:
        shutil.copyfile(source, folder / name)
    return name


def _extension(source: str) -> str:
    location, _, length = storage.parse_reference(source)
    path = urlparse(location).path if storage.is_remote(location) else location
    return "" if length is not None else PurePosixPath(path).suffix  # that of an archive says nothing of its members


def _record(ranked: Ranked, audio: str | None) -> dict[str, Any]:
    prompt: Prompt = ranked.prompt
    return {
        "id": prompt.id,
        "prompt": prompt.text,
        "reference": None if prompt.reference is None else storage.redacted(prompt.reference),
        "chosen": ranked.chosen,
        "audio": audio,
        "within_gates": ranked.within_gates if ranked.chosen is not None else None,
        "reason": ranked.reason,
        "candidates": [
            {
                "audio": storage.redacted(scored.candidate.name),
                "score": scored.score,
                "text_cosine": scored.text_cosine,
                "reference_cosine": scored.reference_cosine,
                "broken_gates": list(scored.broken_gates),
                "reject": scored.reject,
                "columns": dict(scored.candidate.columns),
            }
            for scored in ranked.candidates
        ],
    }


def _described(reward: Reward) -> dict[str, Any]:
    return {**asdict(reward), "add": dict(reward.add), "gates": [str(gate) for gate in reward.gates]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
