"""Shards built on Ray, a laptop's cores or a cluster, into a folder or any URL that fsspec knows; few without Ray."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.cluster import has_cluster, ray_map, ray_session
from psclap import log, storage
from psclap.data_config import ShardConfig
from psclap.errors import PsclapError
from psclap.files import alone, atomic_folder, check_folder_writable, write_json
from psclap.parallel import process_map
from psclap.shards import REJECTS_NAME, SUMMARY_NAME
from psclap.shards.unit import Unit
from psclap.shards.writer import ShardJob, fingerprint_of, split_into_units, write_shards
from psclap.soundness.card import write_card
from psclap.soundness.findings import Report
from psclap.soundness.integrity import open_data_set

_SECONDS_BETWEEN_LINES = 10.0
_FEW_CLIPS = 3000
"""So many are sharded by processes of this machine before Ray has started its own."""


@dataclass(frozen=True)
class Built:
    """The summary of the shards, and whether the data set is sound."""

    summary: dict[str, Any]
    report: Report


def build_shards(utterances: pa.Table, audio_folder: Path, config: ShardConfig, output: Path, work: Path) -> Built:
    """Shards `utterances` into `output`, which appears when it is whole, with a data card.

    With `config.url` the shards go to a folder there that is named by their fingerprint, so that another build
    never changes them; `output` then holds the summary, which names that URL, the rejects and the card. What a
    build that was interrupted has done is kept in `work`, or beside the URL, and is not done again.
    """
    check_folder_writable(output)  # now, not after hours of work
    audio_folder, work = audio_folder.absolute(), work.absolute()
    local = ShardJob(utterances, audio_folder, config, str(work / "shards"), str(work / "receipts"))
    if config.url is not None:
        return _build_remote(local, config.url, output)
    with alone(work.with_name(f"{work.name}.lock")):
        built = _build(local, work / "shards")
        _move(work / "shards", output)
        shutil.rmtree(work)
    return built


def _move(source: Path, target: Path) -> None:
    """Renames a folder; copies it where `target` is on another file system, and is whole or absent there too.

    The source is the only copy of hours of work: it goes when the target is whole, and not before.
    """
    target = target.resolve()  # a link to a larger disk stays one
    shutil.rmtree(target, ignore_errors=True)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic_folder(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)


def _build_remote(job: ShardJob, parent: str, output: Path) -> Built:
    url = storage.join(parent, fingerprint_of(split_into_units(job))[:16])
    with atomic_folder(output) as folder:
        built = _build(replace(job, destination=url, receipts=storage.join(url, "receipts")), folder)
        write_json(folder / SUMMARY_NAME, {**built.summary, "url": url})
        (folder / REJECTS_NAME).write_bytes(storage.read(storage.join(url, REJECTS_NAME)))
    return built


def _build(job: ShardJob, card_folder: Path) -> Built:
    few = job.utterances.num_rows <= _FEW_CLIPS and not storage.is_remote(job.destination)
    if few and not has_cluster():
        summary = write_shards(job, run=_here)
    else:
        with ray_session():
            summary = write_shards(job, run=_on_ray)
    index = open_data_set(job.destination).table
    return Built(summary, write_card(card_folder, index, summary))


def _here(write: Callable[[Unit], None], units: Sequence[Unit]) -> Iterator[None]:
    try:
        yield from process_map(write, units)
    except BrokenProcessPool as error:
        raise PsclapError(
            "a process that wrote shards was killed; memory that runs out is the usual reason. Run it again, and it "
            "goes on from there"
        ) from error


def _on_ray(write: Callable[[Unit], None], units: Sequence[Unit]) -> Iterator[None]:
    total = sum(unit.utterances.num_rows for unit in units)
    return _counting(ray_map(write, units), len(units), total)


def _counting(done: Iterable[None], units: int, clips: int) -> Iterator[None]:
    """Passes on what is done, and says every few seconds how far that is."""
    start = last = time.monotonic()
    for number, item in enumerate(done, 1):
        yield item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            left_s = (now - start) / number * (units - number)
            line = f"shard: {number} of {units} parts, {clips} clips in all, {left_s:.0f} s left"
            log.progress(line, done=number, parts=units, clips=clips, left_s=left_s)
