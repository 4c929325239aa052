"""Utterances -> shards: data/shards with WebDataset tars, index, summary and list of rejects."""

import pyarrow.parquet as pq

from psclap.config import Params
from psclap.files import atomic_folder
from psclap.schema import table_to_utterances
from psclap.shards.writer import write_shards
from stages import CORPUS, SHARDS
from stages._main import run_stage


def main(params: Params) -> None:
    utterances = table_to_utterances(pq.read_table(CORPUS / "utterances.parquet"), CORPUS)
    with atomic_folder(SHARDS) as folder:
        summary = write_shards(utterances, folder, params.shard)
    for split, counts in summary["splits"].items():
        print(f"shard: {split:5} {counts['clips']:6} clips {counts['hours']:8.2f} h {counts['speakers']:5} speakers")
    print(f"shard: {summary['rejected']} rejected {summary['reject_reasons'] or ''}")


if __name__ == "__main__":
    run_stage(main)
