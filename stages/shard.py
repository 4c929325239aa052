"""Utterances -> shards: data/shards with WebDataset tars, index, summary, list of rejects and data card."""

from pathlib import Path

import pyarrow.parquet as pq

from pipelines.shard import build_shards
from psclap import log
from psclap.config import Params
from psclap.data_config import ShardConfig
from psclap.soundness.card import CARD_NAME
from stages import CORPUS, RUN_STORAGE, SHARDS
from stages._main import run_stage


def main(params: Params) -> None:
    shard(params.shard, CORPUS, SHARDS, RUN_STORAGE / "shards")


def shard(config: ShardConfig, corpus: Path, target: Path, storage: Path) -> None:
    """Makes the shards of a corpus in `target`; what a killed run goes on from lies in `storage`."""
    utterances = pq.read_table(corpus / "utterances.parquet")
    built = build_shards(utterances, corpus, config, target, storage)
    summary = built.summary
    for split, counts in summary["splits"].items():
        line = f"shard: {split:5} {counts['clips']:6} clips {counts['hours']:8.2f} h {counts['speakers']:5} speakers"
        log.info(line, split=split, **counts)
    rejected, reasons, verdict = summary["rejected"], summary["reject_reasons"], built.report.verdict
    log.info(f"shard: {rejected} rejected {reasons or ''}", rejected=rejected, reasons=reasons)
    log.info(f"shard: the data set is {verdict}; {target / CARD_NAME} describes it", verdict=verdict)


if __name__ == "__main__":
    run_stage(main)
