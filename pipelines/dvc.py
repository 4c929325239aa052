"""DVC as a child process, in the project's folder, which is the current one."""

from __future__ import annotations

import collections
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from psclap.errors import PsclapError
from psclap.storage import redacted

_PASSING = re.compile(
    r"acquire lock|is busy, it is being blocked|is at work on the same|the Ray cluster at \S+ is lost", re.IGNORECASE
)
_LINES_KEPT = 30


class DvcError(PsclapError):
    """A command of DVC failed; `passing` where it may succeed later, as nothing is wrong with the project."""

    def __init__(self, message: str, passing: bool = False):
        super().__init__(message)
        self.passing = passing


def dvc(*arguments: str) -> None:
    """Runs a command of DVC to its end, what it says goes where ours goes.

    An interrupt is passed on, upon which a stage may first save its state, and raised when all of it has ended. Raises
    DvcError where the command fails.
    """
    # In a session of its own, or Ctrl-C would reach it twice: from the terminal, and from here.
    process = subprocess.Popen(
        _command(arguments), stderr=subprocess.PIPE, text=True, start_new_session=True, errors="replace"
    )
    last: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
    stopped: BaseException | None = None
    while True:
        try:
            _pass_on(process, last)
            status = process.wait()
            break
        except BaseException as error:  # whatever ends this process, no child of it goes on alone
            stopped = stopped or error
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
    if stopped:
        raise stopped
    if status:
        what = f"`dvc {' '.join(arguments)}` failed with status {status}; what it says stands above"
        raise DvcError(what, bool(_PASSING.search("".join(last))))


def _pass_on(process: subprocess.Popen[str], last: collections.deque[str]) -> None:
    assert process.stderr
    for line in process.stderr:
        last.append(line)
        with suppress(OSError, ValueError):  # nobody reads it any more
            sys.stderr.write(redacted(line))
            sys.stderr.flush()


def stages_to_run(targets: Sequence[str]) -> list[str]:
    """The stages that `dvc repro` would run now, without running them."""
    command = _command(["repro", "--dry", *targets])
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise DvcError(f"`dvc repro --dry` failed: {done.stderr.strip()}", bool(_PASSING.search(done.stderr)))
    return re.findall(r"^Running stage '([^']+)'", done.stdout, re.MULTILINE)


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "dvc", *arguments]
