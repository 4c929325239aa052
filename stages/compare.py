"""The metrics of every variant -> summary.md: tables of variant x test set beside chance, and how sure they are."""

import json
from pathlib import Path
from typing import Any

from psclap.config import Params
from psclap.evaluation.tables import summary_table
from psclap.files import atomic_file
from psclap.tts.card import summary
from stages import METRICS, SUMMARY
from stages._main import run_stage


def main(params: Params) -> None:
    names = [*params.evaluate.caption_sets, "classification", "composition"]
    numbers = {
        variant: {
            name: _read(METRICS / variant / f"{name}.json")
            for name in names
            if name != "composition" or (METRICS / variant / f"{name}.json").exists()  # clips without tags have none
        }
        for variant in params.train
    }
    lines = [summary_table(numbers)]
    for voice in params.voices:
        of_voice = {name: _read(METRICS / "tts" / voice / f"{name}.json") for name in ("speech_clip", "clip_tts")}
        lines += [*summary(voice, of_voice), ""]
    with atomic_file(SUMMARY) as partial:
        partial.write_text("\n".join(lines))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


if __name__ == "__main__":
    run_stage(main)
