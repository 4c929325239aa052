"""How a training goes, on the screen: a bar on a terminal, else a line for each record of its journal."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from tqdm import tqdm

from psclap import log
from psclap.parallel import in_background
from psclap.training.journal import Journal, Record, Tail

PERIOD_S = 0.5
"""How often the journal is looked at."""

_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


@contextmanager
def shown(journal: Journal) -> Iterator[None]:
    """Shows what a journal gains in a `with` block; what is in it already tells how far the run is."""
    display: Display = Bar(journal.run.name) if _has_room() else Lines(journal.run.name)
    tail = Tail(journal)
    for record in tail.new():
        display.know(record)
    try:
        with in_background(partial(_follow, tail, display), "progress"):
            yield
    finally:
        display.close()


def _has_room() -> bool:
    """Whether a person looks at a terminal: some that nobody looks at say that they have no lines."""
    return not log.is_json() and sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).lines > 0


def _follow(tail: Tail, display: Display, done: threading.Event) -> None:
    last = False
    while not last:
        last = done.wait(PERIOD_S)  # what was written before it is set is still shown
        for record in tail.new():
            display.know(record)
            display.show(record)


class Display(Protocol):
    """Shows the records of a run."""

    def know(self, record: Record) -> None:
        """Learns from a record how far the run is."""

    def show(self, record: Record) -> None:
        """Shows a record that is new."""

    def close(self) -> None:
        """The run is over."""


class Lines:
    """One line for each record with a loss and for each validation."""

    def __init__(self, name: str):
        self._name = name
        self._total: int | None = None

    def know(self, record: Record) -> None:
        self._total = total_steps(record) or self._total

    def show(self, record: Record) -> None:
        if text := figures(record) or validation(record):
            of_total = f"/{self._total}" if self._total else ""
            line = "  ".join([f"[{self._name}] step {record['step']}{of_total}", text, *time_left(record)])
            where = {"name": self._name, "step": record["step"], "total_steps": self._total}
            log.info(line, **{**record["values"], **where})
        _show_note(self._name, record)

    def close(self) -> None:
        pass


class Bar:
    """A bar with the newest figures under it, and a line above it for each validation."""

    def __init__(self, name: str):
        self._name = name
        self._bar = tqdm(desc=name, bar_format=_BAR, file=sys.stdout, dynamic_ncols=True)
        self._figures = tqdm(bar_format="{desc}", file=sys.stdout, dynamic_ncols=True, position=1)

    def know(self, record: Record) -> None:
        self._bar.total = total_steps(record) or self._bar.total
        if record["kind"] == "metrics":
            self._bar.n = max(self._bar.n, record["step"])

    def show(self, record: Record) -> None:
        if text := validation(record):
            log.info(f"[{self._name}] step {record['step']}  {text}")
        _show_note(self._name, record)
        if text := figures(record):
            self._figures.set_description_str(text)
            self._bar.set_postfix_str(*time_left(record))

    def close(self) -> None:
        self._bar.close()
        self._figures.close()


def _show_note(name: str, record: Record) -> None:
    if record["kind"] == "note":
        log.info(f"[{name}] {record['text']}", name=name)


def total_steps(record: Record) -> int | None:
    """The steps of the whole run, where a record says so."""
    return record["values"].get("total_steps") if record["kind"] == "params" else None


def figures(record: Record) -> str:
    """The loss and what goes with it; empty for a record without a loss.

    >>> values = {"loss/total": 2.31, "lr": 2e-3, "logit_scale": 14.3, "speed/clips_per_s": 412.0}
    >>> values |= {"speed/audio_s_per_s": 1200.4, "speed/data_wait_share": 0.031}
    >>> figures({"kind": "metrics", "step": 10, "values": values})
    'loss 2.3100  lr 0.002  scale 14.3  412 clips/s  1200 audio-s/s  data wait 3%'
    """
    values = record["values"] if record["kind"] == "metrics" else {}
    if "loss/total" not in values:
        return ""
    return "  ".join(form(values[name]) for name, form in _FIGURES.items() if name in values)


def time_left(record: Record) -> list[str]:
    """The time left, where a record says so.

    >>> time_left({"kind": "metrics", "step": 10, "values": {"speed/eta_s": 3754.0}})
    ['ETA 1:02:34']
    """
    seconds = record["values"].get("speed/eta_s")
    return [] if seconds is None else [f"ETA {duration(seconds)}"]


def validation(record: Record) -> str:
    """The main figures of a validation; empty for a record without any.

    >>> validation({"kind": "metrics", "step": 10, "values": {"val/R@1": 0.25, "val/MRR": 0.5, "val/mean_rank": 7}})
    'validation: MRR 0.5  R@1 0.25'
    """
    return headline(record["values"]) if record["kind"] == "metrics" else ""


def headline(metrics: Mapping[str, float]) -> str:
    """The main figures of a validation, where there are any."""
    found = [f"{name} {metrics[f'val/{name}']:.4g}" for name in _VALIDATION if f"val/{name}" in metrics]
    return "validation: " + "  ".join(found) if found else ""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(93784.4), duration(float("nan"))
    ('26:03:04', '?')
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


_VALIDATION = (
    *("MRR", "R@1", "R@10", "text_to_audio/R@1", "text_to_audio/R@10", "UAR"),
    *("text_to_mel/R@1", "mel_mae", "duration_mae", "mel_l1"),
)

_FIGURES: dict[str, Callable[[float], str]] = {
    "loss/total": lambda value: f"loss {value:.4f}",
    "lr": lambda value: f"lr {value:.3g}",
    "logit_scale": lambda value: f"scale {value:.3g}",
    "speed/clips_per_s": lambda value: f"{value:.0f} clips/s",
    "speed/audio_s_per_s": lambda value: f"{value:.0f} audio-s/s",
    "speed/data_wait_share": lambda value: f"data wait {value:.0%}",
}
