"""Shows a run while it goes on: on the screen and, for as long as it answers, on the tracking server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from pipelines.delivery import Delivery
from pipelines.tracking import TrackingStore, impatient
from psclap import log
from psclap.errors import PsclapError
from psclap.storage import redacted
from psclap.training.journal import Journal, JournalTracker
from psclap.training.journal_copy import JournalCopy
from psclap.training.progress import shown

PERIOD_S = 1.0
"""How often new records are sent."""
MAX_BACKOFF_S = 30.0
"""How long a store that fails is left alone at most."""
COPY_PERIOD_S = 10.0
"""How often the journal is copied beside checkpoints at a URL, where they lie at one."""
CLOSING_S = 10.0
"""How long the end of a run waits for what is not sent yet."""


@contextmanager
def reported(
    journal: Journal, store: TrackingStore, tags: Mapping[str, str], copy: JournalCopy | None = None
) -> Iterator[None]:
    """Sends and shows what a journal gains in a `with` block, and writes how the run stands into it."""
    tracker = JournalTracker(journal)
    with Sender(store, journal, copy), shown(journal):
        tracker.tags({**tags, **log.tags()})
        tracker.status("RUNNING")
        try:
            yield
        except BaseException as error:
            with suppress(PsclapError):  # a disk that is full may be what failed: that is the sentence to end with
                tracker.status("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        tracker.status("FINISHED")


class Sender:
    """Delivers a journal from a thread of its own: a store that is away, slow or ill holds nobody up.

    Leaving the `with` block waits `CLOSING_S` for what is not sent; the rest stays in the journal. Of a journal with
    a copy no more is sent than the copy has: who goes on from the copy must not send a step a second time.
    """

    def __init__(self, store: TrackingStore, journal: Journal, copy: JournalCopy | None = None):
        self._store, self._journal, self._copy = store, journal, copy
        self._copied, self._copy_at = 0, 0.0
        self._name = journal.run.name
        self._delivery = Delivery(store, journal, self._warn)
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"sender of {self._name}", daemon=True)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._thread.join(CLOSING_S)
        if self._thread.is_alive():
            self._given_up.set()
            log.warning(
                f"[{self._name}] the tracking store {self._store} has not taken everything; the rest is in "
                f"{self._journal.folder} and is sent when the run goes on or is registered",
                name=self._name,
            )

    def _work(self) -> None:
        with impatient():
            failures = 0
            while not self._given_up.is_set():
                closing = self._closing.is_set()  # asked first: what is written before closing is sent
                failures = 0 if self._send(is_first_failure=failures == 0) else failures + 1
                if closing and not failures:
                    return
                if closing:
                    time.sleep(PERIOD_S)
                else:
                    self._closing.wait(min(MAX_BACKOFF_S, PERIOD_S * 2**failures) if failures else PERIOD_S)

    def _send(self, is_first_failure: bool) -> bool:
        """Whether everything is delivered; says when that begins to fail, and when it works again."""
        try:
            self._delivery.send(self._end())
        except Exception as error:  # whatever fails in here, the training goes on
            if is_first_failure:
                reason = f"cannot be reached ({_brief(error)}); metrics are kept in {self._journal.folder}"
                self._warn(f"[{self._name}] the tracking store {self._store} {reason}")
            return False
        if not is_first_failure:
            self._tell(log.info, f"[{self._name}] the tracking store {self._store} is back and has all metrics")
        return True

    def _end(self) -> int | None:
        """Up to which byte the journal may be sent."""
        if self._copy is None:
            return None
        if self._closing.is_set() or time.monotonic() >= self._copy_at:
            self._copied, self._copy_at = self._copy.update(), time.monotonic() + COPY_PERIOD_S
        return self._copied

    def _warn(self, line: str) -> None:
        self._tell(log.warning, line)

    def _tell(self, write: Callable[..., None], line: str) -> None:
        if not self._given_up.is_set():
            write(line, name=self._name)


def _brief(error: Exception, max_chars: int = 200) -> str:
    text = " ".join(redacted(str(error)).split()) or type(error).__name__
    return text if len(text) <= max_chars else text[:max_chars] + "..."
