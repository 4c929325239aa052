"""The journal of a run: what is in it once, what a kill cannot tear, and what it says of a run."""

import fcntl
import json
import math
import multiprocessing as mp
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from psclap.errors import PsclapError
from psclap.training.journal import Journal, JournalTracker, Record
from psclap.training.journal_copy import JournalCopy


def records(journal: Journal, kind: str) -> list[Record]:
    return [record for record, _ in journal.read() if record["kind"] == kind]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.start(tmp_path / "journal", "psclap", "combined")


def train(journal: Journal, first_step: int, last_step: int) -> None:
    """Logs as a training does that goes on behind `first_step`: losses each step, validation each second one."""
    tracker = JournalTracker(journal)
    tracker.params({"max_steps": 10})
    for step in range(first_step + 1, last_step + 1):
        tracker.metrics(step, {"loss/total": 1 / step, "lr": np.float32(0.5)})
        if step % 2 == 0:
            tracker.metrics(step, {"val/R@1": step / 10})
            tracker.tags({"checkpoint.latest": f"file:///runs/step-{step}"})


def test_a_replay_adds_nothing(journal: Journal, tmp_path: Path) -> None:
    train(journal, 0, 7)
    train(journal, 4, 7)
    before = journal.path.read_bytes()
    train(journal, 6, 7)
    assert journal.path.read_bytes() == before
    train(journal, 6, 10)
    whole = Journal.start(tmp_path / "whole", "psclap", "combined")
    train(whole, 0, 10)
    assert journal.history() == whole.history()
    assert [record["step"] for record in records(journal, "metrics")] == [
        record["step"] for record in records(whole, "metrics")
    ]
    assert records(journal, "params") == records(whole, "params")


def test_a_replay_with_one_more_metric_adds_that_metric(journal: Journal) -> None:
    JournalTracker(journal).metrics(3, {"a": 1.0})
    tracker = JournalTracker(journal)
    tracker.metrics(3, {"a": 1.0, "b": 2.0})
    tracker.metrics(3, {"b": 2.0, "a": 1.0})
    assert [record["values"] for record in records(journal, "metrics")] == [{"a": 1.0}, {"b": 2.0}]


def test_samples_of_the_system_are_never_replays(journal: Journal) -> None:
    for _ in range(2):
        tracker = JournalTracker(journal)
        tracker.system({"system/cpu": 50.0})
        tracker.system({"system/cpu": 50.0})
    assert [record["step"] for record in records(journal, "system")] == [0, 1, 2, 3]
    assert journal.history() == []


def test_the_same_run_is_found_again(journal: Journal) -> None:
    assert Journal.start(journal.folder, "another", "name").run == journal.run
    with pytest.raises(PsclapError, match="holds no journal"):
        Journal(journal.folder / "nowhere").run  # noqa: B018


@pytest.mark.parametrize("torn", [b"{", b'{"kind": "metrics", "step": 2, "val', b"\0\0\0\0"])
def test_a_torn_line_is_no_record_and_the_next_one_replaces_it(journal: Journal, torn: bytes) -> None:
    train(journal, 0, 1)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + torn)
    assert [row["step"] for row in journal.history()] == [1]
    JournalTracker(journal).status("KILLED")
    assert journal.path.read_bytes().startswith(whole + b'{"kind": "status"')
    assert [json.loads(line)["kind"] for line in journal.path.read_bytes().splitlines()][-1] == "status"


def test_a_journal_of_nothing_but_a_torn_line_is_begun_anew(journal: Journal) -> None:
    journal.path.write_bytes(b'{"kind"')
    assert list(journal.read()) == []
    train(journal, 0, 2)
    assert [row["step"] for row in journal.history()] == [1, 2]


def test_reading_goes_on_where_it_stopped(journal: Journal) -> None:
    train(journal, 0, 3)
    middle = [end for _, end in journal.read()][2]
    train(journal, 3, 5)
    everything = list(journal.read())
    assert list(journal.read(middle)) == everything[3:]
    assert list(journal.read(everything[-1][1])) == []


def test_numbers_that_json_does_not_know_come_back(journal: Journal) -> None:
    values = {"nan": math.nan, "up": math.inf, "down": -math.inf, "numpy": np.float32(0.1), "exact": 0.1 + 0.2}
    JournalTracker(journal).metrics(1, values)
    lines = journal.path.read_text().splitlines()
    json.loads(lines[0], parse_constant=pytest.fail)
    (row,) = journal.history()
    assert math.isnan(row.pop("nan"))
    expected = {"step": 1, "up": math.inf, "down": -math.inf, "numpy": float(np.float32(0.1)), "exact": 0.1 + 0.2}
    assert row == expected


def test_parameters_are_flat_and_carry_no_credentials(journal: Journal) -> None:
    tracker = JournalTracker(journal)
    tracker.params({"model": {"speech": {"config": {"hidden_size": 32}, "pretrained": None}}, "warmup": 0.1})
    tracker.params({"warmup": 0.2, "from": Path("/models/x"), "hub": "https://me:hf_secret@host/model"})
    tracker.tags({"data": "s3://key:secret@bucket/shards"})
    first, second = (record["values"] for record in records(journal, "params"))
    assert first == {"model.speech.config.hidden_size": 32, "model.speech.pretrained": None, "warmup": 0.1}
    assert second == {"from": "/models/x", "hub": "https://host/model"}
    assert b"secret" not in journal.path.read_bytes()


def test_tags_are_written_when_they_change(journal: Journal) -> None:
    tracker = JournalTracker(journal)
    tracker.tags({"a": "1", "b": "2"})
    tracker.tags({"a": "1", "b": "3"})
    JournalTracker(journal).tags({"b": "3"})
    assert [record["values"] for record in records(journal, "tags")] == [{"a": "1", "b": "2"}, {"b": "3"}]


def _write_many(folder: Path, writer: int) -> None:
    tracker = JournalTracker(Journal(folder))
    for step in range(100):
        tracker.metrics(step, {f"writer-{writer}": float(step)})


def test_several_writers_leave_each_line_whole(journal: Journal) -> None:
    writers = [mp.get_context("spawn").Process(target=_write_many, args=(journal.folder, n)) for n in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(timeout=120)
    assert len(records(journal, "metrics")) == 300
    assert all(len(row) == 4 for row in journal.history())


def test_a_line_that_another_is_writing_is_not_taken_for_torn(journal: Journal) -> None:
    writer = threading.Thread(target=JournalTracker(journal).metrics, args=(2, {"b": 2.0}))
    with open(journal.path, "ab", buffering=0) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(b'{"kind": "metrics", "step": 1, ')
        writer.start()
        writer.join(timeout=0.5)
        assert list(journal.read()) == []
        stream.write(b'"time_ms": 1, "values": {"a": 1.0}}\n')
    writer.join(timeout=60)
    assert journal.history() == [{"step": 1, "a": 1.0}, {"step": 2, "b": 2.0}]


def test_what_a_killed_process_logged_is_there(journal: Journal) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from psclap.training.journal import Journal, JournalTracker\n"
        "tracker = JournalTracker(Journal(Path(sys.argv[1])))\n"
        "for step in range(1, 51): tracker.metrics(step, {'loss/total': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(journal.folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [row["step"] for row in journal.history()] == list(range(1, 51))


def copy_of(journal: Journal, folder: Path) -> JournalCopy:
    return JournalCopy(journal.folder, str(folder / "copy"))


def test_a_copy_brings_a_journal_back(journal: Journal, tmp_path: Path) -> None:
    for last in (3, 7):
        train(journal, 0, last)
        assert copy_of(journal, tmp_path).update() == journal.path.stat().st_size
    other = Journal(tmp_path / "elsewhere")
    copy_of(other, tmp_path).restore()
    assert (other.path.read_bytes(), other.run) == (journal.path.read_bytes(), journal.run)
    assert len([*(tmp_path / "copy").glob("records-*")]) <= 2


def test_a_torn_line_is_not_copied(journal: Journal, tmp_path: Path) -> None:
    assert copy_of(journal, tmp_path).update() == 0
    train(journal, 0, 2)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b'{"kind": "met')
    assert copy_of(journal, tmp_path).update() == len(whole)
    other = Journal(tmp_path / "elsewhere")
    copy_of(other, tmp_path).restore()
    assert other.path.read_bytes() == whole


def test_a_journal_that_others_went_on_with_is_replaced_and_one_that_is_ahead_stays(
    journal: Journal, tmp_path: Path
) -> None:
    train(journal, 0, 2)
    copy_of(journal, tmp_path).update()
    other = Journal(tmp_path / "elsewhere")
    copy_of(other, tmp_path).restore()
    train(journal, 2, 5)
    ahead = journal.path.read_bytes()
    copy_of(journal, tmp_path).restore()
    assert journal.path.read_bytes() == ahead
    train(other, 2, 4)
    copy_of(other, tmp_path).update()
    copy_of(journal, tmp_path).restore()
    assert journal.path.read_bytes() == other.path.read_bytes()


def test_a_late_copy_does_not_take_the_place_of_a_longer_one(journal: Journal, tmp_path: Path) -> None:
    train(journal, 0, 2)
    copy_of(journal, tmp_path).update()
    (short,) = (tmp_path / "copy").glob("records-*")
    early = short.read_bytes()
    train(journal, 2, 4)
    copy_of(journal, tmp_path).update()
    short.write_bytes(early)
    other = Journal(tmp_path / "elsewhere")
    copy_of(other, tmp_path).restore()
    assert other.path.read_bytes() == journal.path.read_bytes()
