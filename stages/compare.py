"""The metrics of every variant -> summary.md: one table, variant x test set, beside chance."""

import json

from psclap.config import Params
from psclap.evaluation.report import summary_table
from psclap.files import atomic_file
from stages import METRICS, SUMMARY
from stages._main import run_stage


def main(params: Params) -> None:
    names = [*params.evaluate.caption_sets, "classification"]
    numbers = {
        variant: {name: json.loads((METRICS / variant / f"{name}.json").read_text()) for name in names}
        for variant in params.train
    }
    with atomic_file(SUMMARY) as partial:
        partial.write_text(summary_table(numbers))


if __name__ == "__main__":
    run_stage(main)
