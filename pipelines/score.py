"""Batch scoring on Ray Data: `python -m pipelines.score --model URI --input URL --output URL`.

An actor for each GPU, or for each CPU core where there is none, takes one block of clips after another: it reads,
decodes, embeds and commits it. No sound passes through Ray, and no reader waits for a core that actors hold.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from pipelines.cluster import Node, nodes, ray_session
from pipelines.registry import fetch_model, versioned
from psclap import log, storage
from psclap.config import ScoreOptions
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.models.fetch import fetch, weights_sha256
from psclap.parallel import SharedLock
from psclap.schema import SPLITS
from psclap.scoring.attempts import Attempt
from psclap.scoring.block import BlockScorer
from psclap.scoring.inputs import open_input
from psclap.scoring.items import read_block
from psclap.scoring.job import ScoreJob, ScoringModel
from psclap.scoring.progress import Progress
from psclap.scoring.tables import Statistics, committed, done_blocks, statistics_of, write
from psclap.startup import keep_freed_memory
from psclap.storage import redacted
from psclap.strict import from_mapping

_MAX_TASKS = 4096
_RAY_ADDS = "\nFailed to apply UDF transform"  # and three lines about its settings, to what a worker raised
_MAX_BLOCKS_AT_ONCE = 8  # of an actor: each holds a window of clips


@dataclass(frozen=True)
class Workers:
    """How many actors, the cores and GPUs of each, and how many blocks each works on at a time."""

    count: int
    cpus: int
    gpus: float
    blocks: int = 1

    @classmethod
    def of(cls, nodes: Sequence[Node], count: int | None = None) -> Workers:
        """One for each GPU, whose share of the cores decodes the next blocks while it computes; else one for each core.

        A core for each actor, with one thread, does more than all cores together on one batch after the other. None
        asks for more than a node has.
        """
        with_gpus = [node for node in nodes if node.gpus]
        if with_gpus:
            gpus = sum(node.gpus for node in with_gpus)
            count = count or gpus
            on_one_gpu = -(-count // gpus)
            share = max(1, min(node.cpus // (node.gpus * on_one_gpu) for node in with_gpus))
            return cls(count, share, 1 / on_one_gpu, blocks=min(share, _MAX_BLOCKS_AT_ONCE) + 1)
        cpus = sum(node.cpus for node in nodes)
        count = count or max(1, cpus)
        return cls(count, max(1, min(cpus // count, max(node.cpus for node in nodes))), 0)


class ScoreBlocks:
    """Scores the blocks of a job whose numbers it is given, and commits them. One instance for each Ray actor."""

    def __init__(
        self, model: ScoringModel, options: ScoreOptions, root: str, output: str, threads: int, tracking_uri: str | None
    ):
        import torch

        if tracking_uri:  # a node of a cluster need not have it
            os.environ.setdefault("MLFLOW_TRACKING_URI", tracking_uri)
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._output, self._lock = output, SharedLock()
        self._model, self._options, self._root = model, options, root
        self._loading = threading.Lock()
        self._loaded: BlockScorer | None = None

    @property
    def _scorer(self) -> BlockScorer:
        """Loaded by the first block: Ray hands on the error of a task, of a constructor only its text."""
        with self._loading:
            if self._loaded is None:
                embedder = Embedder(self._model.location, precision=self._options.precision)
                self._loaded = BlockScorer(embedder, self._options, self._model.name, self._root)
            return self._loaded

    def __call__(self, numbers: pa.Table) -> Iterator[pa.Table]:
        for number in numbers["block"].to_pylist():
            yield pa.table({"statistics": [json.dumps(asdict(self._block(number)))]})

    def _block(self, number: int) -> Statistics:
        done = committed(self._output, number)
        if done is not None:  # by another worker, that died over a later block of the same task
            return done
        scorer = self._scorer
        attempt = Attempt.begin(self._output, number)
        items = read_block(self._output, number)
        if attempt.is_careful:
            with self._lock.alone():  # whatever kills the process now is this clip's doing
                scored = attempt.one_by_one(items, scorer.score, scorer.reject)
        else:
            with self._lock.shared():
                scored = scorer.score(items)
        write(self._output, number, scored)
        attempt.end()
        return scored.statistics


def score(
    job: ScoreJob, workers: int | None = None, overwrite: bool = False, retry_rejects: bool = False
) -> dict[str, Any]:
    """Runs a job to its end, or what is left of it; returns the summary that stands in `_summary.json`.

    Killed at any moment and run again, it goes on: every clip has one row in the end. Raises PsclapError where the
    output holds another job, where a storage does not answer, and above `max_reject_rate`.
    """
    items = job.begin(overwrite, retry_rejects)
    done = done_blocks(job.output)
    left = sorted({*range(items.blocks)} - {*done})
    if left:
        # Ray's core reports every actor of Ray Data as an error on the terminal (ray-project/ray#53727).
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with Progress(items.clips, statistics_of(job.output, done)) as progress, ray_session():
            for statistics in _run(job, left, workers):
                progress.add(statistics)
    return job.finish(items)


def _run(job: ScoreJob, blocks: list[int], workers: int | None) -> Iterator[Statistics]:
    """Yields what came of each block, as it is committed."""
    import ray
    from ray.data import ActorPoolStrategy

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it says at length what we raise in a sentence
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    sized = Workers.of(nodes(), workers)
    scored = ray.data.from_items(
        [{"block": number} for number in blocks], override_num_blocks=min(len(blocks), _MAX_TASKS)
    ).map_batches(
        ScoreBlocks,
        fn_constructor_kwargs={
            "model": job.model,
            "options": job.options,
            "root": job.input.root,
            "output": job.output if storage.is_remote(job.output) else str(Path(job.output).absolute()),
            "threads": sized.cpus,
            "tracking_uri": _tracking_server(),
        },
        batch_format="pyarrow",
        batch_size=None,
        compute=ActorPoolStrategy(
            size=min(sized.count, len(blocks)),
            max_tasks_in_flight_per_actor=2 * sized.blocks,
            max_concurrent_calls_per_actor=sized.blocks,
            enable_true_multi_threading=sized.blocks > 1,
        ),
        num_cpus=sized.cpus,
        num_gpus=sized.gpus,
    )
    try:
        for row in scored.iter_rows():
            yield Statistics(**json.loads(row["statistics"]))
    except ray.exceptions.RayTaskError as error:
        raise _of_user(error) from error


def _of_user(error: BaseException) -> BaseException:
    """What the code in a worker raised, of what Ray has wrapped it in; Ray's own errors take on the class of that."""
    from ray.exceptions import RayError

    found: BaseException | None = error
    while isinstance(found, RayError) or not (found is None or isinstance(found, PsclapError)):
        found = getattr(found, "cause", None) or found.__cause__
    if found is None:
        return error
    return PsclapError(str(found).split(_RAY_ADDS)[0])


def scoring_model(name: str) -> ScoringModel:
    """The model of a folder, a models:/ URI or a name on the Hub; an alias stands for its version of now.

    Workers take what a tracking server or the Hub holds from there; a folder has to lie where each of them sees it.
    """
    if name.startswith("models:/"):
        name = versioned(name)
        folder = fetch_model(name)
    else:
        folder = fetch(name)
    lies_here = Path(name).exists() or (name.startswith("models:/") and not _tracking_server())
    location = str(folder.absolute()) if lies_here else name
    return ScoringModel(name, location, weights_sha256(folder))


def _tracking_server() -> str | None:
    """The URI of the tracking server, where it is one that other machines reach; without a password."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return redacted(uri) if uri.startswith("http") else None


def main(
    model: Annotated[str, typer.Option(help="A models:/ URI, a checkpoint folder, or a name on the Hub.")],
    input: Annotated[
        str,
        typer.Option(
            help="Shards, a manifest (.csv, .tsv, .jsonl, .parquet), a folder or a pattern of audio; a path or URL."
        ),
    ],
    output: Annotated[
        str, typer.Option(help="The folder or URL to write to; a killed job goes on from what is there.")
    ],
    split: Annotated[str | None, typer.Option(help="Of shards: train, val or test; all where not given.")] = None,
    audio_column: Annotated[str | None, typer.Option(help="Of a manifest; default: audio.")] = None,
    audio_root: Annotated[
        str | None, typer.Option(help="Of a manifest: what relative audio is relative to; default its folder.")
    ] = None,
    caption: Annotated[
        list[str] | None, typer.Option(help="A caption to score every clip for; may be given again.")
    ] = None,
    captions: Annotated[Path | None, typer.Option(help="A file with a caption in each line.")] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(help="An attribute, such as texture, whose nearest tag to give; may be given again."),
    ] = None,
    window_s: Annotated[
        float, typer.Option(help="Longer recordings are cut into windows of that many seconds; 0: none is cut.")
    ] = 30.0,
    hop_s: Annotated[float | None, typer.Option(help="From window to window; default: window_s.")] = None,
    embedding_type: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    precision: Annotated[str, typer.Option(help="stored, bf16, or auto: bf16 where it is faster.")] = "auto",
    block_clips: Annotated[int, typer.Option(help="Clips that are scored and committed at a time.")] = 256,
    max_reject_rate: Annotated[
        float, typer.Option(help="Above that share of rejects the job ends with an error.")
    ] = 0.5,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Actors; default: one for each GPU, else for each core.")
    ] = None,
    retry_rejects: Annotated[
        bool, typer.Option("--retry-rejects", help="Score the blocks again that have rejects, which were mended.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what another job wrote to the output.")
    ] = False,
) -> None:
    """Embed and score a corpus into Parquet tables. Run again, a job that was killed goes on."""
    texts = [*(caption or [])] + (_lines(captions) if captions else [])
    values = {
        "captions": texts,
        "attributes": attribute or [],
        "window_s": window_s or None,
        "hop_s": hop_s,
        "embedding_type": embedding_type,
        "precision": precision,
        "block_clips": block_clips,
        "max_reject_rate": max_reject_rate,
    }
    options = from_mapping(ScoreOptions, values, "options")
    if split is not None and split not in SPLITS:
        raise PsclapError(f"split {split!r} must be one of {', '.join(SPLITS)}")
    job = ScoreJob(scoring_model(model), open_input(input, split, audio_column, audio_root), output, options)
    try:
        summary = score(job, workers, overwrite, retry_rejects)
    except KeyboardInterrupt:
        log.error("interrupted; the same command goes on from here")
        raise typer.Exit(130) from None
    rejects = ", ".join(f"{count} {reason}" for reason, count in summary["rejects"].items()) or "none"
    log.info(
        f"{output}: {summary['clips']:,} clips, {summary['audio_hours']:g} h, by {summary['model']}; "
        f"rejects: {rejects}",
        **{name: summary[name] for name in ("clips", "audio_hours", "model", "rejects")},
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PsclapError(f"cannot read the captions in {path}: {error}") from error


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(main)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        log.begin("score")
        app()
    except Exception as error:
        log.failed(error)
        sys.exit(1)
