"""The `psclap` command as a user runs it, but in this process, which has imported everything already."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from psclap import cli


def psclap(*arguments: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What a process of the command would have ended with, and said."""
    words = [*map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["psclap", *words]),
        mock.patch.dict(os.environ),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = _status_of_main()
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def psclap_process(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "psclap.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _status_of_main() -> int:
    """As Python makes it of an exit: text is told and means 1."""
    try:
        cli.main()
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
            return 1
        return exit.code or 0
    return 0
