"""The folder of a scoring job: what it is, which blocks of it are done, and what came of it all.

OUTPUT/clips/part-000000.parquet ...      a row for each clip: metadata, scores, tags, embedding
OUTPUT/windows/part-000000.parquet ...    a row for each window of the recordings that were cut
OUTPUT/rejects/part-000000.parquet ...    a row for each clip that could not be scored
OUTPUT/_summary.json                      counts, model and options; there when all is done
OUTPUT/_job.json                          what the folder is the output of
OUTPUT/_items, OUTPUT/_attempts           while it runs
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from psclap import storage
from psclap.config import ScoreOptions
from psclap.errors import PsclapError
from psclap.scoring.attempts import ATTEMPTS
from psclap.scoring.inputs import Input
from psclap.scoring.items import ITEMS, Items, count_items, write_items
from psclap.scoring.tables import CLIPS, REJECTS, Statistics, done_blocks, path, statistics_of

SUMMARY_NAME = "_summary.json"
_JOB_NAME = "_job.json"


@dataclass(frozen=True)
class ScoringModel:
    """A model by the name that rows bear, where workers load it from, and the hash of its weights."""

    name: str
    location: str
    weights_sha256: str


@dataclass(frozen=True)
class ScoreJob:
    """What to score, with what, and where to."""

    model: ScoringModel
    input: Input
    output: str
    options: ScoreOptions

    def begin(self, overwrite: bool = False, retry_rejects: bool = False) -> Items:
        """Writes the items of a new job, or finds that the folder is of this very job, to go on with.

        With `retry_rejects`, blocks that have rejects are taken as not done. Raises PsclapError where the folder holds
        anything else, and for a URL with credentials; with `overwrite`, what another job wrote is removed.
        """
        storage.check_no_credentials(self.output, "output")
        started = _read(storage.join(self.output, _JOB_NAME))
        if started is not None:
            items = count_items(self.input.tables(), self.options.block_clips)
            differing = _differences(started, json.loads(json.dumps(self._identity(items))))
            if not differing:
                self._take_up(items, retry_rejects)
                return items
            if not overwrite:
                raise PsclapError(
                    f"{self.output} holds another scoring job: {'; '.join(differing)}. Choose another output, or "
                    "overwrite it (--overwrite)"
                )
            self._remove()
        self._refuse_foreign_files()
        items = write_items(self.input.tables(), self.options.block_clips, self.output)
        _write(storage.join(self.output, _JOB_NAME), self._identity(items))
        return items

    def _take_up(self, items: Items, retry_rejects: bool) -> None:
        for number in done_blocks(self.output) if retry_rejects else ():
            if statistics_of(self.output, [number]).rejected:
                storage.remove(path(self.output, CLIPS, number))
        # Workers that died with the earlier run tell nothing about the clips.
        storage.remove(storage.join(self.output, ATTEMPTS))
        is_whole = len(done_blocks(self.output)) == items.blocks
        if not is_whole and not storage.sizes(storage.join(self.output, ITEMS)):  # parts were removed since it finished
            write_items(self.input.tables(), self.options.block_clips, self.output)

    def _remove(self) -> None:
        """Everything, and last what says that it is ours: killed in between, it can be removed again."""
        for name in (*storage.folders(self.output), SUMMARY_NAME):
            storage.remove(storage.join(self.output, name))
        storage.remove(self.output)

    def finish(self, items: Items) -> dict[str, Any]:
        """Writes the summary once every block is committed; returns it.

        Raises PsclapError where parts are missing, and where more clips than allowed are rejects; what is scored stays.
        """
        done = done_blocks(self.output)
        found = statistics_of(self.output, done)
        if done != [*range(items.blocks)] or found.clips + found.rejected != items.clips:
            raise PsclapError(
                f"{self.output} holds {found.clips + found.rejected} clips in {len(done)} blocks, not {items.clips} in "
                f"{items.blocks}: parts were removed or added meanwhile; run it again, or score to another folder"
            )
        summary = self._summary(found)
        allowed = self.options.max_reject_rate
        if found.rejected > allowed * items.clips:
            raise PsclapError(
                f"{found.rejected} of {items.clips} clips could not be scored ({_listing(found.rejects)}), more than "
                f"max_reject_rate {allowed:g}; {self.output}/{REJECTS} says which and why. Mend them and "
                "run it with --retry-rejects, or raise max_reject_rate and run it again: what is scored stays"
            )
        _write(storage.join(self.output, SUMMARY_NAME), summary)
        for name in (ITEMS, ATTEMPTS):
            storage.remove(storage.join(self.output, name))
        return summary

    def _identity(self, items: Items) -> dict[str, Any]:
        options = {k: v for k, v in asdict(self.options).items() if k != "max_reject_rate"}
        model = {"name": self.model.name, "weights_sha256": self.model.weights_sha256}
        place = {} if self.input.tells_content else {"root": self.input.root}
        return {"input": {**asdict(items), **place}, "model": model, "options": options}

    def _summary(self, found: Statistics) -> dict[str, Any]:
        return {
            "model": self.model.name,
            "weights_sha256": self.model.weights_sha256,
            **{name: getattr(self.options, name) for name in ("captions", "attributes", "embedding_type")},
            "clips": found.clips,
            "windows": found.windows,
            "audio_hours": round(found.audio_s / 3600, 4),
            "rejects": found.rejects,
            "computed_in": found.computed_in,
        }

    def _refuse_foreign_files(self) -> None:
        known = {ITEMS, ATTEMPTS}  # left by a job that was killed while it wrote its items
        foreign = sorted({*storage.sizes(self.output), *storage.folders(self.output)} - known)
        if foreign:
            raise PsclapError(
                f"the output {self.output} is not empty ({', '.join(foreign[:3])}) and of no scoring job; choose "
                "another folder"
            )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    for section, values in new.items():
        before = old.get(section, {})
        if section == "input" and before != values:
            found.append(
                f"other clips ({before.get('clips')} then, {values['clips']} now, or some that changed or moved)"
            )
            continue
        found += [
            f"{section}.{key} was {before.get(key)!r} and is {value!r}"
            for key, value in values.items()
            if before.get(key) != value
        ]
    return found


def _listing(rejects: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in rejects.items())


def _read(location: str) -> dict[str, Any] | None:
    try:
        return json.loads(storage.read(location))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise PsclapError(f"{location} is damaged ({error}); score to another folder") from error


def _write(location: str, value: Mapping[str, Any]) -> None:
    with storage.writing(location) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")
