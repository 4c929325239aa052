"""What a training shows: lines in a pipe, a bar on a terminal."""

import io
import sys
from pathlib import Path

import pytest

from psclap.training.journal import Journal, JournalTracker
from psclap.training.progress import shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


FIGURES = "ETA 0:01:01  loss 2.5000  lr 0.002  scale 14.3  100 clips/s  302 audio-s/s  data wait 25%"


def test_a_pipe_gets_a_line_for_each_record(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    with shown(journal):
        log(journal, 10, 20)
    assert capsys.readouterr().out.splitlines() == [
        f"[combined] step 10/40  {FIGURES}",
        f"[combined] step 20/40  {FIGURES}",
        "[combined] step 20/40  validation: R@10 0.75",
    ]


def test_what_was_shown_before_is_not_shown_again(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    log(journal, 10)
    with shown(journal):
        log(journal, 10, 20)
    assert capsys.readouterr().out.splitlines()[0] == f"[combined] step 20/40  {FIGURES}"


def test_a_terminal_gets_a_bar(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    log(journal, 10)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    with shown(journal):
        log(journal, 20)
    shown_last = terminal.getvalue().split("\r")[-1]
    assert "combined  50%|" in shown_last
    assert f"20/40, {FIGURES}" in shown_last
    assert "[combined] step 20  validation: R@10 0.75\n" in terminal.getvalue()
