"""What stands in an output of the scoring job, without a look into its tables."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from psclap import storage
from psclap.errors import PsclapError
from psclap.scoring.job import SUMMARY_NAME
from psclap.scoring.tables import CLIPS, WINDOWS

WAY_OUT = "`python -m pipelines.score` and `dvc repro score` write one"


class Listing:
    """The summary of an output, local or at a URL, and the files of its clips or windows."""

    def __init__(self, location: Path | str, windows: bool):
        """Raises PsclapError where no scoring job wrote."""
        self.location = str(location)
        self.windows = windows
        self.folder = storage.join(location, WINDOWS if windows else CLIPS)
        self.summary, self._summary_bytes = self._read_summary()
        self.sizes = {
            name: size for name, size in sorted(storage.sizes(self.folder).items()) if name.endswith(".parquet")
        }
        if not self.sizes:
            why = "no recording was cut into windows" if windows else WAY_OUT
            raise PsclapError(f"{storage.redacted(self.folder)} holds no Parquet files; {why}")

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the job's summary, or a name or size of a file changes."""
        files = json.dumps([*self.sizes.items()]).encode()
        return hashlib.sha256(self._summary_bytes + files).hexdigest()

    def _read_summary(self) -> tuple[dict[str, Any], bytes]:
        try:
            data = storage.read(storage.join(self.location, SUMMARY_NAME))
            summary = json.loads(data)
            if not all(isinstance(summary[name], str) for name in ("model", "weights_sha256")):
                raise ValueError("its summary names no model")
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{SUMMARY_NAME} is missing" if isinstance(error, FileNotFoundError) else error
            raise PsclapError(
                f"{storage.redacted(self.location)} is no output of the scoring job ({reason}); {WAY_OUT}"
            ) from error
        return summary, data
