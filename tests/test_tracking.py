"""From journal to MLflow: everything arrives, once, in one run, whatever the server or the sender suffers."""

import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from tracking_server import KILLED_AFTER_CALL, TrackingServer

from pipelines import sender, system_metrics
from pipelines.delivery import DELIVERED_TAG, RUN_TAG, Delivery, deliver, main
from pipelines.sender import Sender, reported
from pipelines.tracking import TrackingStore, mlflow_name
from psclap.errors import PsclapError
from psclap.training.journal import Journal, JournalTracker
from psclap.training.journal_copy import JournalCopy


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.start(tmp_path / "journal", "tracking", "combined")


@pytest.fixture
def store(server: str) -> TrackingStore:
    return TrackingStore(server, None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "PERIOD_S", 0.1)
    monkeypatch.setattr(sender, "MAX_BACKOFF_S", 0.4)


def log(journal: Journal, first_step: int, last_step: int) -> None:
    """Logs the steps behind `first_step` as a training does."""
    tracker = JournalTracker(journal)
    tracker.params({"max_steps": 10, "model": {"speech": {"hidden_size": 32}}})
    for step in range(first_step + 1, last_step + 1):
        tracker.metrics(step, {"loss/total": 1 / step, "val/R@1": step / 10})
        tracker.tags({"checkpoint.latest": f"file:///runs/step-{step}"})


def runs_of(store: TrackingStore, journal: Journal) -> list[Run]:
    client = MlflowClient(store.uri)
    experiment = client.get_experiment_by_name("tracking")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{journal.run.uuid}'")


def check_arrived(store: TrackingStore, journal: Journal) -> Run:
    """All of the journal's metrics are in exactly one run, each exactly once; returns the run."""
    expected: dict[str, list[tuple[int, int, float]]] = {}
    for record, _ in journal.read():
        if record["kind"] in ("metrics", "system"):
            for name, value in record["values"].items():
                expected.setdefault(mlflow_name(name), []).append((record["step"], record["time_ms"], value))
    (run,) = runs_of(store, journal)
    client = MlflowClient(store.uri)
    assert set(run.data.metrics) == set(expected)
    for name, rows in list(expected.items())[:20]:  # each is a request
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((row.step, row.timestamp, row.value) for row in history) == sorted(rows), name
    assert run.data.tags[DELIVERED_TAG] == str(journal.path.stat().st_size)
    return run


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")


def test_a_journal_becomes_a_run(journal: Journal, store: TrackingStore) -> None:
    tracker = JournalTracker(journal)
    tracker.params({"model": {"speech": {"config": {"hidden_size": 32}}}, "long": "x" * 10_000})
    tracker.params({f"many.{number}": number for number in range(250)})
    tracker.tags({"git_revision": "abc", "checkpoint.best": "s3://bucket/checkpoints/step-4"})
    tracker.status("RUNNING")
    log(journal, 0, 5)
    tracker.system({"system/cpu_utilization_percentage": 12.5})
    tracker.metrics(7, {f"batch_share/{number}": number / 2000 for number in range(1500)})
    tracker.status("FAILED")
    run_id = deliver(store, journal)
    run = check_arrived(store, journal)
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "combined", "FAILED")
    assert run.info.start_time == journal.run.created_ms
    assert run.data.params["model.speech.config.hidden_size"] == "32"
    assert run.data.params["many.249"] == "249"
    assert len(run.data.params["long"]) == 6000
    assert run.data.tags["git_revision"] == "abc"
    assert run.data.tags["checkpoint.latest"] == "file:///runs/step-5"
    assert run.data.metrics["val/R_at_1"] == 0.5
    assert deliver(store, journal) == run_id
    check_arrived(store, journal)


def test_numbers_that_are_none_arrive_once_too(journal: Journal, store: TrackingStore) -> None:
    JournalTracker(journal).metrics(1, {"nan": math.nan, "up": math.inf})
    for _ in range(2):
        run_id = deliver(store, journal)
        MlflowClient(store.uri).set_tag(run_id, DELIVERED_TAG, "0")  # as if it had not been noted
    client = MlflowClient(store.uri)
    assert [math.isnan(row.value) for row in client.get_metric_history(run_id, "nan")] == [True]
    assert len(client.get_metric_history(run_id, "up")) == 1


def test_resumes_are_one_run_with_one_history(journal: Journal, store: TrackingStore) -> None:
    for first, last in ((0, 4), (2, 6), (6, 8)):
        with suppress(RuntimeError), reported(journal, store, {"workers": str(last)}):
            log(journal, first, last)
            if last < 8:
                raise RuntimeError("a worker died")
    run = check_arrived(store, journal)
    assert [row["step"] for row in journal.history()] == list(range(1, 9))
    assert run.info.status == "FINISHED"
    assert run.data.tags["workers"] == "8"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_how_a_run_ended_is_told(
    journal: Journal,
    store: TrackingStore,
    error: type[BaseException],
    status: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PSCLAP_RUN_ID", "nightly-7")
    with pytest.raises(error), reported(journal, store, {}):
        raise error
    run = check_arrived(store, journal)
    assert (run.info.status, run.data.tags["psclap.run_id"]) == (status, "nightly-7")


_KILLED = f"""
{KILLED_AFTER_CALL}
from pipelines.delivery import deliver
from pipelines.tracking import TrackingStore
from psclap.training.journal import Journal
deliver(TrackingStore(sys.argv[1], None), Journal(Path(sys.argv[2])))
"""


@pytest.mark.parametrize("call", ["create_run", "log_batch", "update_run", "set_tag"])
def test_a_sender_that_is_killed_doubles_and_loses_nothing(journal: Journal, store: TrackingStore, call: str) -> None:
    JournalTracker(journal).status("RUNNING")
    log(journal, 0, 20)
    command = [sys.executable, "-c", _KILLED, store.uri, str(journal.folder), call]
    for _ in range(2 if call == "log_batch" else 1):
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    deliver(store, journal)
    assert check_arrived(store, journal).info.status == "RUNNING"


def test_a_server_that_comes_late_and_is_killed_gets_everything_once(
    journal: Journal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = TrackingServer(tmp_path)
    store = TrackingStore(server.uri, None)
    said: list[str] = []

    def times(line: str) -> int:
        said.append(capsys.readouterr().out)
        return "".join(said).count(line)

    try:
        with Sender(store, journal):
            log(journal, 0, 50)
            wait_until(lambda: times("cannot be reached") == 1)
            server.start()
            wait_until(lambda: times("is back and has all metrics") == 1)
            check_arrived(store, journal)
            server.stop(signal.SIGKILL)
            log(journal, 50, 100)
            wait_until(lambda: times("cannot be reached") == 2)
            server.start()
            log(journal, 100, 150)
            wait_until(lambda: times("is back") == 2)
        assert times("cannot be reached") == 2  # one line each time, however many attempts there were
        check_arrived(store, journal)
    finally:
        server.stop()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://me:secret@127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_never_answers_holds_nobody_up(
    journal: Journal, silent_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sender, "CLOSING_S", 1.0)
    start = time.monotonic()
    with reported(journal, TrackingStore(silent_server, None), {}):
        log(journal, 0, 100)
    assert time.monotonic() - start < 30  # a request that nobody answers takes 60 s
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "sender of combined")
    assert thread.is_alive()  # and it still waits for one
    out = capsys.readouterr().out
    assert f"has not taken everything; the rest is in {journal.folder}" in out
    assert "secret" not in out
    assert len(journal.history()) == 100


def test_what_a_training_could_not_send_is_sent_later(
    journal: Journal, store: TrackingStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sender, "CLOSING_S", 1.0)
    away = TrackingStore("http://me:secret@127.0.0.1:9", None)
    with reported(journal, away, {"variant": "combined"}):
        log(journal, 0, 3)
    assert "the tracking store http://127.0.0.1:9 has not taken everything" in capsys.readouterr().out
    with pytest.raises(PsclapError, match=r"http://127\.0\.0\.1:9 does not take the run combined") as raised:
        deliver(away, journal)
    assert "secret" not in str(raised.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    main([str(journal.folder)])
    run = check_arrived(store, journal)
    assert run.info.run_id in capsys.readouterr().out
    assert (run.info.status, run.data.tags["variant"]) == ("FINISHED", "combined")


def test_a_value_that_is_refused_holds_up_no_other(
    journal: Journal, store: TrackingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = JournalTracker(journal)
    tracker.metrics(1, {"a": 1.0, "x" * 300: 1.0, "b": 2.0})
    tracker.metrics(2, {"a": 2.0})
    run_id = deliver(store, journal)
    assert MlflowClient(store.uri).get_run(run_id).data.metrics == {"a": 2.0, "b": 2.0}
    assert capsys.readouterr().out.count("refuses metrics 'xxx") == 1


def test_a_run_that_was_deleted_is_made_anew(journal: Journal, store: TrackingStore) -> None:
    log(journal, 0, 3)
    delivery = Delivery(store, journal)
    first = delivery.send()
    MlflowClient(store.uri).delete_run(first)
    log(journal, 3, 5)
    with pytest.raises(Exception, match="active"):
        delivery.send()
    assert delivery.send() != first
    check_arrived(store, journal)


def test_of_two_runs_for_one_journal_the_fuller_stays(journal: Journal, store: TrackingStore) -> None:
    log(journal, 0, 3)
    run_id = deliver(store, journal)
    client = MlflowClient(store.uri)
    experiment_id = client.get_run(run_id).info.experiment_id
    late = client.create_run(experiment_id, tags={RUN_TAG: journal.run.uuid}).info.run_id
    assert deliver(store, journal) == run_id
    check_arrived(store, journal)
    deleted = client.search_runs([experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert late in [run.info.run_id for run in deleted]


def test_many_records_take_few_requests(
    journal: Journal, store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (f'{{"kind":"metrics","step":{n},"time_ms":{10**12 + n},"values":{{"loss":{n}}}}}\n' for n in range(20_000))
    journal.path.write_text("".join(lines))
    requests = []
    original = MlflowClient.log_batch
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *args, **kw: (requests.append(1), original(*args, **kw)))
    deliver(store, journal)
    assert len(requests) == 20
    check_arrived(store, journal)


def test_the_embedded_store_takes_a_run(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = TrackingStore.at(tmp_path / "mlflow")
    with reported(journal, store, {}):
        log(journal, 0, 3)
    deliver(store, journal)
    assert check_arrived(store, journal).info.artifact_uri.startswith((tmp_path / "mlflow/artifacts").as_uri())


@pytest.mark.parametrize(
    "uri", ["http://", "http://host:port", "htp://host:5000", "host:5000", "./runs", "oracle://u:secret@host/db"]
)
def test_a_uri_that_can_be_no_store_is_refused_at_once(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(PsclapError, match="is no tracking store") as raised:
        TrackingStore.at(tmp_path)
    assert "secret" not in str(raised.value)


def test_a_store_that_does_not_answer_is_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert TrackingStore.at(tmp_path).uri == "http://127.0.0.1:9"


def test_a_driver_on_another_machine_goes_on_in_the_same_run(
    journal: Journal, store: TrackingStore, tmp_path: Path
) -> None:
    """What the first had and had not copied is gone with its disk: those steps are done again, and sent once."""
    copy = JournalCopy(journal.folder, str(tmp_path / "checkpoints" / "journal"))
    log(journal, 0, 4)
    Delivery(store, journal).send(copy.update())
    log(journal, 4, 6)
    other = Journal(tmp_path / "other" / "journal")
    JournalCopy(other.folder, copy.url).restore()
    assert other.run == journal.run
    log(other, 2, 8)
    deliver(store, other)
    check_arrived(store, other)
    assert [row["step"] for row in other.history()] == [*range(1, 9)]


def test_what_cannot_be_copied_is_not_sent(
    journal: Journal,
    store: TrackingStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sender, "COPY_PERIOD_S", 0.0)
    (tmp_path / "checkpoints").write_text("in the way")
    said: list[str] = []

    def heard(words: str) -> bool:
        said.append(capsys.readouterr().out)
        return words in "".join(said)

    with Sender(store, journal, JournalCopy(journal.folder, str(tmp_path / "checkpoints"))):
        log(journal, 0, 3)
        wait_until(lambda: heard("cannot reach"))
        store.experiment_id("tracking")
        assert not runs_of(store, journal)
        (tmp_path / "checkpoints").unlink()
        wait_until(lambda: heard("is back"))
    check_arrived(store, journal)


def test_the_machine_is_sampled(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "PERIOD_S", 0.3)
    with system_metrics.system_metrics(JournalTracker(journal).system):
        while sum(1 for _ in journal.read()) < 2:
            math.factorial(2000)
    records = [record for record, _ in journal.read()]
    assert [record["step"] for record in records] == list(range(len(records)))
    for name in ("cpu_utilization_percentage", "system_memory_usage_megabytes", "network_receive_megabytes"):
        assert f"system/{name}" in records[0]["values"]
    assert max(record["values"]["system/cpu_utilization_percentage"] for record in records) > 0
