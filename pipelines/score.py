"""Ray Data around the Embedder: a sharded corpus through a model, into Parquet."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.cluster import num_cpus, num_gpus, ray_session
from psclap.embedding import Embedder
from psclap.files import atomic_folder, sha256_file, write_json
from psclap.schema import METADATA_COLUMNS, Split
from psclap.search import SUMMARY_NAME
from psclap.shards.index import ShardIndex
from psclap.shards.store import Place, ShardStore

_CLIPS_PER_BLOCK = 256


class EmbedClips:
    """Maps a table of index rows to their embeddings and metadata. One instance per Ray actor."""

    def __init__(self, model_folder: str, store: ShardStore, batch_size: int):
        self._store = store
        self._embedder = Embedder(model_folder, batch_size)

    def __call__(self, rows: pa.Table) -> pa.Table:
        names = [field.name for field in fields(Place)]
        clips = [self._store.flac(Place(**row)) for row in rows.select(names).to_pylist()]
        embeddings = self._embedder({"audio": clips})["embedding"]
        values = pa.array(embeddings.ravel(), pa.float32())
        column = pa.FixedSizeListArray.from_arrays(values, self._embedder.dim)
        return rows.select([*METADATA_COLUMNS, "num_samples"]).append_column("embedding", column)


@dataclass(frozen=True)
class EmbedJob:
    """A corpus to embed: the model's checkpoint folder and the URI it came by, the shards, and the split."""

    model_folder: Path
    model_uri: str
    shards: Path
    split: Split
    batch_size: int


def embed_corpus(job: EmbedJob, output: Path) -> dict[str, Any]:
    """Writes Parquet files of key, metadata and `embedding` (fixed-size list of float32) to `output`.

    Returns the summary that stands beside them in `_summary.json`. The folder appears only when it is whole.
    """
    index = ShardIndex(job.shards.absolute())
    table = index.take(index.rows_of(job.split))
    # Ray's core reports every actor of Ray Data as an error on the terminal (ray-project/ray#53727).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with atomic_folder(output) as partial:
        with ray_session():
            _run(job, index.store, table, partial.absolute())
        summary = {
            "model": job.model_uri,
            "weights_sha256": sha256_file(job.model_folder / "model.safetensors"),
            "index_sha256": index.sha256,
            "split": job.split,
            "clips": table.num_rows,
        }
        write_json(partial / SUMMARY_NAME, summary)
    return summary


def _run(job: EmbedJob, store: ShardStore, table: pa.Table, output: Path) -> None:
    import ray
    from ray.data import ActorPoolStrategy, SaveMode
    from ray.data.datasource import FilenameProvider

    class PartNames(FilenameProvider):
        """Names that do not change from run to run; the folder they go to is fresh."""

        def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
            return f"part-{task_index:05d}.parquet"

        def get_filename_for_block(self, block: Any, write_uuid: str, task_index: int, block_index: int) -> str:
            return f"part-{task_index:05d}-{block_index:03d}.parquet"

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    gpus = num_gpus()
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    blocks = max(1, table.num_rows // _CLIPS_PER_BLOCK)
    dataset = (
        ray.data.from_arrow(table)
        .repartition(blocks)
        .map_batches(
            EmbedClips,
            fn_constructor_args=(str(job.model_folder.absolute()), store, job.batch_size),
            batch_format="pyarrow",
            batch_size=job.batch_size,
            # One core is left for reading and writing: actors that reserve every core would wait for ever.
            compute=ActorPoolStrategy(size=max(1, gpus)),
            num_cpus=1 if num_cpus() > 1 else 0.5,
            num_gpus=1 if gpus else 0,
        )
    )
    dataset.write_parquet(str(output), filename_provider=PartNames(), mode=SaveMode.OVERWRITE)
