"""How every stage runs: read params.yaml, do the work, and end with a sentence instead of a traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from psclap.config import Params, load_params
from psclap.errors import PsclapError
from stages import PARAMS

INTERRUPTED = 130


def run_stage(stage: Callable[..., None]) -> NoReturn:
    """Calls `stage(params)`, or `stage(params, variant)` where the command line names one, and exits.

    The status is 0, 1 for bad input, 130 when interrupted.
    """
    # A scheduler's SIGTERM ends a stage as Ctrl-C does: temporary output is removed, Ray is shut down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        params: Params = load_params(PARAMS)
        for variant in sys.argv[1:]:
            if variant not in params.train:
                raise PsclapError(f"no variant {variant!r} in {PARAMS}; variants: {', '.join(params.train)}")
        stage(params, *sys.argv[1:])
    except PsclapError as error:
        sys.exit(f"error: {error}")
    except FileNotFoundError as error:
        sys.exit(f"error: a stage's input is missing: {error.filename or error}; `dvc repro` makes what comes before")
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left, `dvc repro` goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(0)
