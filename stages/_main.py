"""How every stage runs: read params.yaml, do the work, and end with a sentence instead of a traceback."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

from psclap import log
from psclap.config import Params, load_params
from psclap.errors import PsclapError
from stages import PARAMS

INTERRUPTED = 130


def variants(params: Params) -> Collection[str]:
    """What a stage of the dual encoder may be called with."""
    return params.train


def voices(params: Params) -> Collection[str]:
    """What a stage of text to speech may be called with."""
    return params.voices


def run_stage(stage: Callable[..., None], names: Callable[[Params], Collection[str]] = variants) -> NoReturn:
    """Calls `stage(params)`, or `stage(params, name)` where the command line has one of `names`, and exits.

    The status is 0, 1 for bad input and for bugs, 130 when interrupted.
    """
    # A scheduler's SIGTERM ends a stage as Ctrl-C does: temporary output is removed, Ray is shut down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        log.begin("/".join([Path(inspect.getfile(stage)).stem, *sys.argv[1:]]))
        if log.is_json():  # MLflow prints where its runs are to be seen
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        params: Params = load_params(PARAMS)
        for name in sys.argv[1:]:
            if name not in names(params):
                known = ", ".join(names(params)) or "none"
                raise PsclapError(f"no {names.__name__[:-1]} {name!r} in {PARAMS}; {names.__name__}: {known}")
        stage(params, *sys.argv[1:])
    except FileNotFoundError as error:
        missing = error.filename or error
        log.failed(PsclapError(f"a stage's input is missing: {missing}; `dvc repro` makes what comes before"))
        sys.exit(1)
    except KeyboardInterrupt:
        log.error("interrupted; nothing half-written is left, `dvc repro` goes on from here")
        sys.exit(INTERRUPTED)
    except Exception as error:
        log.failed(error)
        sys.exit(1)
    sys.exit(0)
