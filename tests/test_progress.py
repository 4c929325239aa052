"""What a training shows: lines in a pipe, a bar on a terminal."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from psclap.training.journal import Journal, JournalTracker
from psclap.training.progress import shown


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.start(tmp_path, "psclap", "combined")


def log(journal: Journal, *steps: int) -> None:
    tracker = JournalTracker(journal)
    tracker.params({"total_steps": 40})
    for step in steps:
        values = {"loss/total": 2.5, "lr": 0.002, "logit_scale": 14.29, "speed/clips_per_s": 100.2}
        values |= {"speed/audio_s_per_s": 301.7, "speed/data_wait_share": 0.25, "speed/eta_s": 61.2}
        tracker.metrics(step, {**values, "batch_share/loud": 0.5, "grad_norm": 3.0})
        tracker.system({"system/cpu_utilization_percentage": 99.0})
    tracker.metrics(steps[-1], {"val/R@10": 0.75})
    tracker.tags({"checkpoint.latest": "file:///x"})


FIGURES = "loss 2.5000  lr 0.002  scale 14.3  100 clips/s  302 audio-s/s  data wait 25%"


def test_a_pipe_gets_a_line_for_each_record(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    with shown(journal):
        log(journal, 10, 20)
    assert capsys.readouterr().out.splitlines() == [
        f"[combined] step 10/40  {FIGURES}  ETA 0:01:01",
        f"[combined] step 20/40  {FIGURES}  ETA 0:01:01",
        "[combined] step 20/40  validation: R@10 0.75",
    ]


def test_what_was_shown_before_is_not_shown_again(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    log(journal, 10)
    with shown(journal):
        log(journal, 10, 20)
    assert capsys.readouterr().out.splitlines()[0] == f"[combined] step 20/40  {FIGURES}  ETA 0:01:01"


def read_all(terminal: int) -> str:
    """What was written to a terminal whose other end is closed; one read may give the first of it."""
    written = b""
    with suppress(OSError):
        while part := os.read(terminal, 100_000):
            written += part
    os.close(terminal)
    return written.decode()


@pytest.mark.parametrize("lines", [40, 0])
def test_a_terminal_gets_a_bar_where_it_has_room(journal: Journal, monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
    log(journal, 10)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 80 if lines else 0, 0, 0))
    with open(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        with shown(journal):
            log(journal, 20)
    written = read_all(ours)
    if lines:
        assert re.search(r"combined  50%\|\S+ +\| 20/40, ETA 0:01:01", written)
        assert FIGURES in written
        assert "[combined] step 20  validation: R@10 0.75" in written
    else:
        assert written.splitlines()[0] == f"[combined] step 20/40  {FIGURES}  ETA 0:01:01"
