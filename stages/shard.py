"""Utterances -> shards: data/shards with WebDataset tars, index, summary, list of rejects and data card."""

import pyarrow.parquet as pq

from pipelines.shard import build_shards
from psclap.config import Params
from psclap.soundness.card import CARD_NAME
from stages import CORPUS, RUN_STORAGE, SHARDS
from stages._main import run_stage


def main(params: Params) -> None:
    utterances = pq.read_table(CORPUS / "utterances.parquet")
    built = build_shards(utterances, CORPUS, params.shard, SHARDS, RUN_STORAGE / "shards")
    summary = built.summary
    for split, counts in summary["splits"].items():
        print(f"shard: {split:5} {counts['clips']:6} clips {counts['hours']:8.2f} h {counts['speakers']:5} speakers")
    print(f"shard: {summary['rejected']} rejected {summary['reject_reasons'] or ''}")
    print(f"shard: the data set is {built.report.verdict}; {SHARDS / CARD_NAME} describes it")


if __name__ == "__main__":
    run_stage(main)
