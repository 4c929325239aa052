"""One worker of a training: a process of Ray's on any node, which sees its own disk and no other.

Ray's controller of a training imports this module, too, before it starts the workers: what takes seconds to import is
imported where only they come.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.keeper import Keeper, KeptTracker, new_hang_report
from pipelines.stopping import RaySignals
from pipelines.system_metrics import system_metrics
from psclap.errors import PsclapError
from psclap.storage import is_remote
from psclap.training.journal import Journal, RunName
from psclap.training.store import CheckpointStore
from psclap.training.tracker import NullTracker, Tracker

if TYPE_CHECKING:
    from psclap.training.spec import Training


@dataclass(frozen=True)
class Worker:
    """What a worker needs; it is sent to each. `journal` lies with the driver, `run` is what it is named by.

    `folders` are those that the training reads, as the driver sees them.
    """

    training: Training
    store: CheckpointStore
    journal: Journal
    run: RunName
    keeper: Keeper
    threads: int | None
    folders: Sequence[Path]

    @property
    def name(self) -> str:
        """The run's, and no other's on this machine."""
        return self.journal.folder.parent.name


def work(config: Mapping[str, Any]) -> None:
    """One worker; runs in a process of Ray's. `config` holds a reference to a Worker."""
    import ray.train
    import torch

    worker: Worker = ray.get(config["worker"])
    if worker.keeper.failure() is not None:  # Ray starts workers anew whatever they failed of; this needs a user first
        return
    if worker.threads:
        torch.set_num_threads(worker.threads)
    context = ray.train.get_context()
    if context.get_local_rank() == 0:
        worker.keeper.report_hangs(worker.name)
    try:
        check_sees(worker)
        _train(worker, context.get_world_rank())
    except PsclapError as error:
        worker.keeper.fail(str(error))
        raise


def _train(worker: Worker, rank: int) -> None:
    import ray.train.torch

    from psclap.training.loop import train

    with contextlib.ExitStack() as stack:
        tracker: Tracker = NullTracker()
        if rank == 0:
            tracker = kept = KeptTracker(worker.keeper)
            stack.enter_context(system_metrics(kept.system))
        train(
            worker.training,
            tracker,
            worker.store,
            device=ray.train.torch.get_device(),
            signals=RaySignals(worker.keeper.flag),
            hang_report=new_hang_report(worker.name, rank),
        )


def check_sees(worker: Worker) -> None:
    """Raises PsclapError where folders are to be shared that this node does not see; of URLs their users tell."""
    shares = is_remote(worker.store.location) or _holds(worker.journal, worker.run)
    if not shares:
        raise PsclapError(
            f"the node {platform.node()} does not see {worker.journal.folder.parent}, where the driver has the "
            "checkpoints; set resources.checkpoints.url to a URL that all nodes reach, or run it in a folder that they "
            "share"
        )
    if not is_remote(worker.training.shards) and not Path(worker.training.shards).is_dir():
        raise PsclapError(
            f"the node {platform.node()} does not see the shards in {worker.training.shards}; set shard.url to a URL "
            "that all nodes reach, or put them into a folder that they share"
        )
    for folder in worker.folders:
        if not folder.is_dir():
            raise PsclapError(
                f"the node {platform.node()} does not see {folder}, which the training reads; put it into a folder "
                "that all nodes share"
            )


def _holds(journal: Journal, run: RunName) -> bool:
    with contextlib.suppress(PsclapError):
        return journal.run == run
    return False
