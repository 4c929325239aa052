"""Where a training keeps its checkpoints: each whole or absent, the last and the best of them.

    LOCATION/step-00000200/...             a checkpoint, see psclap/training/checkpoint.py
    LOCATION/step-00000200/manifest.json   its step, its score, the size and hash of each file; on a remote it comes
                                           last, so a checkpoint that has one is whole

A checkpoint is removed only after a newer one is safe.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError

from psclap import storage
from psclap.errors import CheckpointError, PsclapError
from psclap.files import atomic_folder, sha256_file, sync_folder, write_json
from psclap.loop_config import CheckpointConfig

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint of the store. `score` is None where no validation was made; `files` maps names to (bytes, hash)."""

    step: int
    score: float | None
    files: Mapping[str, tuple[int, str]]

    @property
    def name(self) -> str:
        """Its folder in the store."""
        return _name(self.step)


class CheckpointStore:
    """The checkpoints of one training, in a folder or under a URL. One process writes, all may read."""

    def __init__(self, location: Path | str, config: CheckpointConfig | None = None):
        self.location, self.config = str(location), config or CheckpointConfig()

    def uri_of(self, step: int) -> str:
        """Where the checkpoint of a step lies."""
        return storage.join(self.location, _name(step))

    @contextmanager
    def saving(self, step: int, score: float | None) -> Iterator[Path]:
        """Yields a folder to write a checkpoint into; when it is safe, those that are no longer kept are removed.

        Raises PsclapError where it cannot be written; the checkpoints before it are then as they were.
        """
        try:
            if storage.is_remote(self.location):
                with tempfile.TemporaryDirectory(prefix="psclap-checkpoint-") as folder:
                    yield Path(folder)
                    self._upload(Path(folder), _manifest(Path(folder), step, score))
            else:
                with atomic_folder(Path(self.location) / _name(step)) as folder:
                    yield folder
                    write_json(folder / _MANIFEST, asdict(_manifest(folder, step, score)))
                    sync_folder(folder)
        except (OSError, SafetensorError) as error:
            raise PsclapError(
                f"the checkpoint of step {step} cannot be written to {self.location} "
                f"({getattr(error, 'strerror', None) or error}); those before it are unharmed: make room, run it "
                "again, and it goes on from the last of them"
            ) from error
        self._prune()

    def _upload(self, folder: Path, saved: Saved) -> None:
        for name in saved.files:
            storage.upload(folder / name, storage.join(self.uri_of(saved.step), name))
        write_json(folder / _MANIFEST, asdict(saved))
        storage.upload(folder / _MANIFEST, storage.join(self.uri_of(saved.step), _MANIFEST))

    def saved(self) -> list[Saved]:
        """The checkpoints with a manifest, by step."""
        found = (self._read_manifest(name) for name in storage.folders(self.location) if name.startswith("step-"))
        return sorted((saved for saved in found if saved is not None), key=lambda saved: saved.step)

    def newest(self) -> tuple[Saved | None, list[str]]:
        """The newest undamaged checkpoint, and what is wrong with each newer one."""
        problems: list[str] = []
        for saved in reversed(self.saved()):
            problem = self._problem(saved)
            if problem is None:
                return saved, problems
            problems.append(problem)
        return None, problems

    def best(self) -> Saved:
        """The checkpoint of the highest score; of equal scores the later one, which has seen more.

        Raises CheckpointError where none has a score, and where it is damaged.
        """
        best = _best(self.saved())
        if best is None:
            raise CheckpointError(f"{self.location} holds no checkpoint of a validation; train further")
        if problem := self._problem(best):
            raise CheckpointError(f"{problem}; remove that folder to take the next best")
        return best

    def tags(self) -> dict[str, str]:
        """Where the newest and the best checkpoint lie."""
        saved = self.saved()
        found = {"latest": saved[-1] if saved else None, "best": _best(saved)}
        return {f"checkpoint.{name}": self.uri_of(entry.step) for name, entry in found.items() if entry}

    @contextmanager
    def reading(self, saved: Saved) -> Iterator[Path]:
        """Yields a local folder with the checkpoint. Raises CheckpointError where a download is damaged."""
        if not storage.is_remote(self.location):
            yield Path(self.uri_of(saved.step))
            return
        with tempfile.TemporaryDirectory(prefix="psclap-checkpoint-") as folder:
            for name in saved.files:
                storage.download(storage.join(self.uri_of(saved.step), name), Path(folder) / name)
            if problem := _damage(Path(folder), saved):
                raise CheckpointError(f"{self.uri_of(saved.step)} is damaged: {problem}; remove that folder")
            yield Path(folder)

    def clear(self) -> None:
        """Removes all of them."""
        storage.remove(self.location)

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps."""
        for saved in self.saved():
            if saved.step > step:
                self._remove(saved.name)

    def _read_manifest(self, name: str) -> Saved | None:
        try:
            values = json.loads(storage.read(storage.join(storage.join(self.location, name), _MANIFEST)))
            return Saved(values["step"], values["score"], {name: tuple(file) for name, file in values["files"].items()})
        except FileNotFoundError:
            return None  # an upload that was cut off
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def _problem(self, saved: Saved) -> str | None:
        damage = _damage(self.uri_of(saved.step), saved)
        return f"{self.uri_of(saved.step)} is damaged: {damage}" if damage else None

    def _prune(self) -> None:
        saved = self.saved()
        by_merit = sorted((entry for entry in saved if entry.score is not None), key=_merit)
        kept = {entry.name for entry in saved[-self.config.keep_last :] + by_merit[-self.config.keep_best :]}
        for name in storage.folders(self.location):
            if name.startswith("step-") and name not in kept:
                self._remove(name)

    def _remove(self, name: str) -> None:
        # Its manifest first: if this is cut short, what is left is no checkpoint.
        storage.remove(storage.join(storage.join(self.location, name), _MANIFEST))
        storage.remove(storage.join(self.location, name))


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _merit(saved: Saved) -> tuple[float, int]:
    assert saved.score is not None
    return saved.score, saved.step


def _best(saved: list[Saved]) -> Saved | None:
    return max((entry for entry in saved if entry.score is not None), key=_merit, default=None)


def _manifest(folder: Path, step: int, score: float | None) -> Saved:
    files = {path.name: (path.stat().st_size, sha256_file(path)) for path in sorted(folder.iterdir())}
    return Saved(step, score, files)


def _damage(folder: str | Path, saved: Saved) -> str | None:
    """What is wrong with a checkpoint; on a remote, where hashing would be a download, by sizes alone."""
    there = storage.sizes(folder)
    for name, (size, digest) in saved.files.items():
        if there.get(name) != size:
            return f"{name} is missing or of the wrong size"
        if not storage.is_remote(folder) and sha256_file(Path(folder) / name) != digest:
            return f"{name} has other bytes than were written"
    return None
