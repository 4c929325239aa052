"""Registered model + shards -> embeddings: Parquet files and a summary."""

import json

from pipelines.registry import fetch_model
from pipelines.score import EmbedJob, embed_corpus
from psclap.config import Params
from stages import EMBEDDINGS, REGISTERED, SHARDS, TRACKING_STORE
from stages._main import run_stage


def main(params: Params) -> None:
    uri = json.loads((REGISTERED / f"{params.embed.variant}.json").read_text())["uri"]
    job = EmbedJob(
        model_folder=fetch_model(uri, TRACKING_STORE),
        model_uri=uri,
        shards=SHARDS,
        split=params.embed.split,
        batch_size=params.embed.batch_size,
    )
    summary = embed_corpus(job, EMBEDDINGS)
    print(f"embed: {summary['clips']} {job.split} clips through {uri} in {EMBEDDINGS}")


if __name__ == "__main__":
    run_stage(main)
