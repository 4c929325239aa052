"""What a run tells: lines for people as ever, objects for machines, never a secret, and never the end of the work."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from psclap import log
from psclap.errors import PsclapError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path, params_mapping: dict[str, Any]) -> Path:
    """A folder with a params.yaml whose corpus is a manifest of one clip."""
    row = {"audio": "1.wav", "captions": ["A voice."], "speaker": "s1", "source": "own", "split": "train"}
    (tmp_path / "clips.jsonl").write_text(json.dumps(row))
    params_mapping["corpus"] = {"name": "manifest", "options": {"path": "clips.jsonl"}}
    params_mapping["reward"]["variants"] = []
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params_mapping))
    return tmp_path


def python(folder: Path, *command: str, stdout: Any = subprocess.PIPE, **environment: str) -> Any:
    """The ended process of a command in `folder`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PSCLAP_")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def test_a_stage_tells_machines_what_it_tells_people(project: Path) -> None:
    for_people = python(project, "-m", "stages.prepare")
    before = datetime.now(UTC)
    ended = python(project, "-m", "stages.prepare", PSCLAP_LOG="json", PSCLAP_RUN_ID="nightly-7")
    (line,) = map(json.loads, ended.stdout.splitlines())
    assert (for_people.returncode, ended.returncode, ended.stderr) == (0, 0, "")
    assert for_people.stdout == line["message"] + "\n"
    assert 0 <= (datetime.fromisoformat(line.pop("time")) - before).total_seconds() < 600
    assert line == {
        "level": "info",
        "run": "nightly-7",
        "stage": "prepare",
        "message": "prepare: 1 utterances of the corpus manifest in data/corpus",
        "fields": {"utterances": 1},
    }


def test_what_ends_a_stage_is_told_too(project: Path) -> None:
    said = "error: no variant 'nosuch' in params.yaml; variants: combined, intrinsic, situational"
    for_people = python(project, "-m", "stages.prepare", "nosuch")
    assert (for_people.returncode, for_people.stdout, for_people.stderr) == (1, "", f"{said}\n")
    ended = python(project, "-m", "stages.prepare", "nosuch", PSCLAP_LOG="json")
    line = json.loads(ended.stderr)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert (line["level"], line["stage"], line["message"]) == ("error", "prepare/nosuch", said.removeprefix("error: "))
    assert datetime.strptime(line["run"].split("-")[0], "%Y%m%dT%H%M%S")


_BUGGY = """
from stages._main import run_stage
def main(params):
    raise RuntimeError("no answer from http://me:secret@host/x")
run_stage(main)
"""


def test_an_input_that_is_missing_is_told_in_a_sentence(project: Path) -> None:
    (project / "hasty.py").write_text(_BUGGY.replace("raise RuntimeError(", "open('data/x.parquet') #"))
    ended = python(project, "hasty.py")
    said = "error: a stage's input is missing: data/x.parquet; `dvc repro` makes what comes before\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", said)


def test_a_bug_is_told_with_its_traceback_and_without_a_secret(project: Path) -> None:
    (project / "buggy.py").write_text(_BUGGY)
    for_people = python(project, "buggy.py")
    assert for_people.returncode == 1
    assert for_people.stderr.startswith("Traceback (most recent call last):\n")
    assert for_people.stderr.endswith("RuntimeError: no answer from http://host/x\n")
    ended = python(project, "buggy.py", PSCLAP_LOG="json")
    line = json.loads(ended.stderr)
    assert line["message"] == "RuntimeError: no answer from http://host/x"
    assert "in main" in line["fields"]["traceback"]
    assert "secret" not in for_people.stderr + ended.stderr


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("path", ["pipe", "/dev/full"])
def test_nobody_to_read_it_and_no_room_for_it_are_no_end(project: Path, form: str, path: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stdout = writing if path == "pipe" else os.open(path, os.O_WRONLY)
    ended = python(project, "-m", "stages.prepare", stdout=stdout, PSCLAP_LOG=form)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (project / "data/corpus/utterances.parquet").is_file()


_TELLING = "from psclap import log; log.begin('tell'); log.info('Wörter 🎙', größe=1); log.error('aus')"


def test_a_stream_of_any_encoding_takes_any_line(tmp_path: Path) -> None:
    ended = python(tmp_path, "-c", _TELLING, PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "W\\xf6rter \\U0001f399\n", "aus\n")
    line = json.loads(python(tmp_path, "-c", _TELLING, PYTHONIOENCODING="ascii", PSCLAP_LOG="json").stdout)
    assert (line["message"], line["fields"]) == ("Wörter 🎙", {"größe": 1})
    closed = python(tmp_path, "-c", f"import sys; sys.stdout.close(); sys.stderr = None; {_TELLING}")
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, "", "")


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_fields_are_what_json_has(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PSCLAP_LOG", "json")
    log.warning(
        "100 %s done\n",
        message="a field of that name",
        numbers=[np.float32(0.5), np.int64(7), True, None, 10**30],
        none=(float("nan"), -np.inf),
        nested={1: {"path": Path("a/b")}, "http://me:secret@h": "s3://key:secret@bucket/x"},
        unknown=Unspeakable(),
        surrogate="\udcff",
    )
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    line = json.loads(out)
    assert (line["level"], line["message"]) == ("warning", "100 %s done\n")
    assert line["fields"] == {
        "message": "a field of that name",
        "numbers": [0.5, 7, True, None, 10**30],
        "none": ["nan", "-inf"],
        "nested": {"1": {"path": "a/b"}, "http://h": "s3://bucket/x"},
        "unknown": "<Unspeakable>",
        "surrogate": "\udcff",
    }


def test_a_module_of_ours_may_use_the_standard_logging(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("first")
    logging.getLogger("psclap.some.module").warning("%d of %d", 2, 3)
    assert capsys.readouterr().out == "first\n2 of 3\n"


@pytest.fixture
def own_handler() -> Iterator[list[logging.LogRecord]]:
    """What a handler of the user's gets, who gave the logger one before anything was told."""
    records: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("psclap"), logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    before, logger.handlers = logger.handlers, [handler]
    yield records
    logger.handlers = before


def test_the_handlers_of_a_user_take_the_place_of_ours(
    own_handler: list[logging.LogRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("psclap").setLevel(logging.INFO)
    log.info("one", step=3)
    assert [(record.getMessage(), record.__dict__["fields"]) for record in own_handler] == [("one", {"step": 3})]
    assert capsys.readouterr() == ("", "")


def test_where_lines_go(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("info")
    log.warning("warning")
    log.progress("progress")
    log.error("error")
    with log.answering():
        log.info("beside the answer")
    log.info("after it")
    assert capsys.readouterr() == ("info\nwarning\nafter it\n", "progress\nerror\nbeside the answer\n")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PSCLAP_LOG", "jsn", "PSCLAP_LOG 'jsn' must be one of text, json"),
        ("PSCLAP_RUN_ID", "two words", "PSCLAP_RUN_ID 'two words' must be 1 to 100 letters"),
        ("PSCLAP_RUN_ID", "x" * 101, "must be 1 to 100 letters"),
    ],
)
def test_an_environment_that_says_nothing_is_refused(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(PsclapError, match=said):
        log.begin("prepare")


def test_processes_elsewhere_are_given_run_and_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PSCLAP_LOG", "PSCLAP_RUN_ID", "PSCLAP_STAGE"):
        monkeypatch.setenv(name, "")
    assert (log.run_id(), log.tags(), log.environment()) == (None, {}, {})
    log.begin("train/combined")
    first = log.run_id()
    log.begin("register/combined")
    assert first is not None
    assert log.environment() == {"PSCLAP_RUN_ID": first, "PSCLAP_STAGE": "register/combined"}
    assert log.tags() == {"psclap.run_id": first}
