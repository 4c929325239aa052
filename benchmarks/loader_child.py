"""One measurement of benchmarks/loader.py in a process of its own: a job as JSON in, its result as JSON out.

Called by that script as `python loader_child.py JOB`; the result is the last line of standard output.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from loader_data import write_mds
from loader_systems import SYSTEMS, Setting, System

_MIB = 2**20
_SAMPLES_PER_EPOCH = 10  # of memory; each walks every page table of the processes


@dataclass(frozen=True)
class Job:
    """What is measured: `what` names a function of this file, `options` are its own arguments."""

    what: str
    system: str
    setting: Setting
    options: dict[str, Any]

    def to_json(self) -> str:
        """The job as one line."""
        return json.dumps({**vars(self), "setting": vars(self.setting)}, default=str)

    @staticmethod
    def from_json(text: str) -> Job:
        """The job that `to_json` wrote."""
        fields = json.loads(text)
        setting = fields.pop("setting")
        return Job(setting=Setting(**{**setting, "folder": Path(setting["folder"])}), **fields)


def mds(system: type[System], setting: Setting) -> dict[str, Any]:
    """Writes the MDS shards."""
    write_mds(setting.folder)
    return {}


def speed(system: type[System], setting: Setting, warmup: int, batches: int) -> dict[str, Any]:
    """Seconds to the first batch, and clips per second over `batches` of them after `warmup`."""
    start = time.perf_counter()
    stream = system(setting, None).batches()
    next(stream)
    first_s = time.perf_counter() - start
    for _ in islice(stream, warmup):
        pass
    start = time.perf_counter()
    num_clips = sum(len(batch.captions) for batch in islice(stream, batches))
    return {"first_s": first_s, "clips_per_s": num_clips / (time.perf_counter() - start)}


def save(system: type[System], setting: Setting, step: int, state_file: str) -> dict[str, Any]:
    """Delivers `step` batches and saves the state; returns the captions of the batch that comes next."""
    loader = system(setting, None)
    stream = loader.batches()
    for _ in islice(stream, step):
        pass
    Path(state_file).write_text(json.dumps(loader.state()))
    return {"captions": next(stream).captions}


def resume(system: type[System], setting: Setting, state_file: str) -> dict[str, Any]:
    """Seconds from the saved state to the first batch delivered, and that batch's captions."""
    start = time.perf_counter()
    state = json.loads(Path(state_file).read_text())
    batch = next(system(setting, state).batches())
    return {"resume_s": time.perf_counter() - start, "captions": batch.captions}


def memory(system: type[System], setting: Setting, epochs: int) -> dict[str, Any]:
    """Proportional set size of this process and its children, in MiB: before, at most, at the end of each epoch."""
    imports_mib = _pss_mib()
    stream = system(setting, None).batches()
    steps = setting.num_clips // setting.batch_size
    every = max(1, steps // _SAMPLES_PER_EPOCH)
    peak_mib, epoch_mib = imports_mib, []
    for step, _ in enumerate(islice(stream, epochs * steps), start=1):
        if step % every == 0 or step % steps == 0:
            now_mib = _pss_mib()
            peak_mib = max(peak_mib, now_mib)
            if step % steps == 0:
                epoch_mib.append(now_mib)
    return {"imports_mib": imports_mib, "peak_mib": peak_mib, "epoch_mib": epoch_mib}


def _pss_mib() -> float:
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end while it is looked at
            total += process.memory_full_info().pss
    return total / _MIB


def main() -> None:
    job = Job.from_json(sys.argv[1])
    system = SYSTEMS[job.system]
    system.load()
    functions = {"mds": mds, "speed": speed, "save": save, "resume": resume, "memory": memory}
    result = functions[job.what](system, job.setting, **job.options)
    print("\n" + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
