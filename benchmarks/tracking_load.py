"""Many runs of a miniature pipeline, recorded in one tracking server by several clients at once: is each there once?

Each run shards a small corpus, trains some steps, evaluates and registers its model, as a version of one name that
all clients race for. Afterwards the server's database is compared with what the clients' journals say.
Ends with status 1 where anything is lost or doubled.

    python benchmarks/tracking_load.py --runs 200 --clients 8
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import queue
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from mlflow import MlflowClient
from tracking_load_client import EXPERIMENT, MODEL, Calls, Outcome, work

from pipelines.delivery import DELIVERED_TAG, RUN_TAG
from pipelines.tracking import mlflow_name
from psclap.config import PRESETS_FOLDER, Params, load_params
from psclap.corpora import build_corpus
from psclap.markdown import table
from psclap.schema import utterances_to_table
from psclap.training.journal import Journal

SPLITS = {"train": 24, "val": 8, "test": 8}
SERVER_WORKERS = 2


def miniature(folder: Path) -> pa.Table:
    """Some utterances of each split of the demo's corpus."""
    corpus = build_corpus("demo", {"train_clips": 24, "val_clips": 24, "test_clips": 24})
    left, chosen = dict(SPLITS), []
    for utterance in corpus.utterances(folder, processes=2):
        left[utterance.split] -= 1
        if left[utterance.split] >= 0:
            chosen.append(replace(utterance, audio=str(folder / utterance.audio)))
    return utterances_to_table(chosen)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """An MLflow server of this machine alone, with its database and artefacts in `folder`: its URI and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", str(SERVER_WORKERS), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True, env=environment)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise SystemExit("the MLflow server did not start; server.log in the folder says why")


def load(uri: str, folder: Path, utterances: pa.Table, params: Params, given: argparse.Namespace) -> list[Any]:
    """Does the runs; returns an Outcome for each, and the Calls of each client."""
    context = multiprocessing.get_context("fork")  # what is imported is there at once, in every client
    numbers, results = context.Queue(), context.Queue()
    for number in [*range(given.runs), *[None] * given.clients]:
        numbers.put(number)
    arguments = (numbers, results, uri, folder, utterances, params, given.register_every)
    processes = [context.Process(target=work, args=arguments) for _ in range(given.clients)]
    for process in processes:
        process.start()
    found: list[Any] = []
    while len(found) < given.runs + given.clients:
        try:
            found.append(results.get(timeout=5))
        except queue.Empty:
            if any(process.exitcode for process in processes):
                raise SystemExit(f"a client died; {folder}/client-*.log says of what") from None
    for process in processes:
        process.join()
    return found


def faults(uri: str, folder: Path, outcomes: list[Outcome]) -> list[str]:
    """What is lost, doubled or different, of the runs, their metrics and the registered versions; empty: nothing."""
    client = MlflowClient(uri, registry_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found: list[Any] = []
    token: str | None = ""
    while token is not None:
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token or None)
        found += page
        token = page.token or None
    wrong = [f"{len(found)} runs, expected {len(outcomes)}"] if len(found) != len(outcomes) else []
    by_uuid = Counter(run.data.tags.get(RUN_TAG) for run in found)
    by_id = {run.info.run_id: run for run in found}
    rows = _metric_rows(folder)
    for outcome in outcomes:
        wrong += [f"run {outcome.number}: {what}" for what in _faults_of(outcome, by_uuid, by_id, rows)]
    return wrong + _faults_of_versions(client, outcomes)


def _faults_of(
    outcome: Outcome, by_uuid: Counter[Any], by_id: dict[str, Any], rows: dict[str, Counter[Any]]
) -> Iterator[str]:
    journal, run = Journal(outcome.journal), by_id.get(outcome.run_id)
    if run is None or by_uuid[journal.run.uuid] != 1:
        yield f"there {by_uuid[journal.run.uuid]} times"
        return
    if run.info.status != "FINISHED":
        yield f"its status is {run.info.status}"
    if run.data.tags[DELIVERED_TAG] != str(journal.path.stat().st_size):
        yield "not all of its journal was delivered"
    expected = Counter(
        (mlflow_name(name), record["step"], value)
        for record, _ in journal.read()
        if record["kind"] in ("metrics", "system")
        for name, value in record["values"].items()
    )
    there = Counter({row: n for row, n in rows[outcome.run_id].items() if not row[0].startswith("test/")})
    if there != expected:
        yield f"metrics lost: {list((expected - there).items())[:3]}, too many: {list((there - expected).items())[:3]}"
    tested = {row[0]: n for row, n in rows[outcome.run_id].items() if row[0].startswith("test/")}
    if tested != dict.fromkeys(map(mlflow_name, outcome.tested), 1):
        yield f"test metrics {tested}"


def _metric_rows(folder: Path) -> dict[str, Counter[Any]]:
    """(name, step, value) of every row of the database, by run."""
    rows: dict[str, Counter[Any]] = {}
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        for run, name, step, value, is_nan in database.execute(
            "SELECT run_uuid, key, step, value, is_nan FROM metrics"
        ):
            rows.setdefault(run, Counter())[(name, step, float("nan") if is_nan else value)] += 1
    return rows


def _faults_of_versions(client: MlflowClient, outcomes: list[Outcome]) -> list[str]:
    versions: list[Any] = []
    token: str | None = ""
    while token is not None:
        page = client.search_model_versions(f"name='{MODEL}'", max_results=1000, page_token=token or None)
        versions += page
        token = page.token or None
    there = sorted((int(version.version), version.run_id, version.tags.get("number")) for version in versions)
    registered = [(int(each.version), each.run_id, str(each.number)) for each in outcomes if each.version]
    if there == (expected := sorted(registered)) and [version for version, *_ in there] == [*range(1, len(there) + 1)]:
        return []
    return [f"versions {there[:5]}..., expected {expected[:5]}..."]


def report(calls: list[Calls], runs: int, clients: int, wall_s: float, server_s: float) -> str:
    """What it took, as tables."""
    requests = [request for each in calls for request in each.requests]
    errors = Counter(f"{kind}: {outcome}" for kind, _, outcome in requests if not outcome.startswith("2"))
    again = [line for each in calls for line in each.again]
    kinds = Counter(kind for kind, *_ in requests)
    rows = [["all", *_times(requests)]]
    rows += [[kind, *_times([r for r in requests if r[0] == kind])] for kind, _ in kinds.most_common(8)]
    lines = [
        f"{runs} runs by {clients} clients in {wall_s:.0f} s: {runs / wall_s:.2f} runs/s, {len(requests) / wall_s:.0f} "
        f"requests/s; the server took {server_s:.0f} s of CPU time",
        "",
        *table(["request", "number", "p50 (ms)", "p99 (ms)", "longest (ms)"], rows),
        "",
        f"answers other than 2xx: {dict(errors) or 'none'}",
        f"runs begun again after an error: {len(again)}",
        *sorted(set(again))[:10],
    ]
    return "\n".join(lines)


def _times(requests: list[tuple[str, float, str]]) -> list[str]:
    ms = np.array([seconds for _, seconds, _ in requests]) * 1000
    return [f"{len(ms):,}", *(f"{value:.0f}" for value in (np.percentile(ms, 50), np.percentile(ms, 99), ms.max()))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--register-every", type=int, default=1, help="every so many runs one registers its model")
    given = parser.parse_args()
    params = load_params(PRESETS_FOLDER / "demo.yaml")
    with tempfile.TemporaryDirectory(prefix="psclap-load-") as name, server(Path(name)) as (uri, process):
        folder = Path(name)
        utterances = miniature(folder / "corpus")
        before, start = _cpu_s(process), time.monotonic()
        found = load(uri, folder, utterances, params, given)
        wall_s, server_s = time.monotonic() - start, _cpu_s(process) - before
        outcomes = [each for each in found if isinstance(each, Outcome)]
        calls = [each for each in found if isinstance(each, Calls)]
        print(report(calls, given.runs, given.clients, wall_s, server_s))
        wrong = faults(uri, folder, outcomes)
    versions = sum(outcome.version is not None for outcome in outcomes)
    once = f"every run, metric and version is there once: {len(outcomes)} runs, {versions} versions"
    print("\n".join(["lost or doubled:", *wrong]) if wrong else once)
    sys.exit(1 if wrong else 0)


def _cpu_s(process: psutil.Process) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in [process, *process.children(recursive=True)])


if __name__ == "__main__":
    main()
