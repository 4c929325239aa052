"""The index folder: an output of the scoring job in a form that is searched without being read first.

index.json         the model, the counts, the sizes of the files, and the fingerprint of the output
vectors.npy        (N, D) the embeddings as scored, float16 or float32
metadata.arrow     every other column, as an Arrow file
approximate.faiss  where it was asked for
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from psclap import storage
from psclap.errors import PsclapError
from psclap.files import atomic_folder, write_json
from psclap.search import approximate
from psclap.search.exact import BLOCK_ROWS, Block
from psclap.search.listing import Listing
from psclap.search.metadata import Metadata, MetadataWriter
from psclap.search.scored import EMBEDDING, ScoredOutput

FACTS_NAME = "index.json"
_VECTORS_NAME, _METADATA_NAME = "vectors.npy", "metadata.arrow"
_VERSION = 1


def build_index(
    output: Path | str, folder: Path | str, windows: bool = False, with_approximate: bool = False
) -> dict[str, Any]:
    """Builds the index of an output of the scoring job (its windows, instead of its clips) in `folder`.

    One pass, in constant memory; with `with_approximate`, see `approximate.build`. `folder` appears when it is
    whole, in the place of an older index; returns index.json. Raises PsclapError for an output that cannot be
    read, and where `folder` is something else than an index.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / FACTS_NAME).is_file():
        raise PsclapError(f"{folder} exists and is no index; move it, or give another name")
    if with_approximate:
        approximate.import_faiss()  # missing, it is said before the work
    source = ScoredOutput(output, windows)
    with atomic_folder(folder) as partial:
        _write_rows(source, partial)
        facts = _facts(source)
        if with_approximate:
            vectors = _map_vectors(partial / _VECTORS_NAME)
            facts["approximate"] = approximate.build(vectors, partial / approximate.APPROXIMATE_NAME)
        facts["bytes"] = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        write_json(partial / FACTS_NAME, facts)
    return facts


def _facts(source: ScoredOutput) -> dict[str, Any]:
    location = source.listing.location
    here = location if storage.is_remote(location) else str(Path(location).absolute())
    return {
        "version": _VERSION,
        "model": source.model,
        "weights_sha256": source.weights_sha256,
        "rows": source.num_rows,
        "dim": source.dim,
        "dtype": source.dtype.name,
        "source": storage.redacted(here),
        "windows": source.listing.windows,
        "fingerprint": source.listing.fingerprint,
    }


def _write_rows(source: ScoredOutput, folder: Path) -> None:
    header = {"descr": source.dtype.str, "fortran_order": False, "shape": (source.num_rows, source.dim)}
    with (
        open(folder / _VECTORS_NAME, "wb") as stream,
        closing(MetadataWriter(folder / _METADATA_NAME, source)) as metadata,
    ):
        np.lib.format.write_array_header_2_0(stream, header)
        start = 0
        for batch in source.batches([*source.schema.names, EMBEDDING]):
            stream.write(np.ascontiguousarray(source.vectors(batch, start)).data)
            metadata.write(batch)
            start += len(batch)


def _map_vectors(path: Path) -> np.ndarray:
    # Copy-on-write: nothing writes to it, but torch takes no array that cannot be written to.
    return np.load(path, mmap_mode="c", allow_pickle=False)


class VectorIndex:
    """An index, opened in a moment and in little memory, whatever its size. It may be used by several threads."""

    def __init__(self, folder: Path | str):
        """Raises PsclapError for an index that is damaged, and for one older than the output that it is of."""
        self.folder = Path(folder)
        self.facts = self._read_facts()
        self._check_fresh()
        try:
            self.vectors = _map_vectors(self.folder / _VECTORS_NAME)
            self.metadata = Metadata(self.folder / _METADATA_NAME)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(str(error)) from error
        shape = (self.facts["rows"], self.facts["dim"])
        if self.vectors.shape != shape or self.vectors.dtype != self.facts["dtype"]:
            raise self._damaged(f"{_VECTORS_NAME} is {self.vectors.shape} of {self.vectors.dtype}, not {shape}")
        if self.metadata.num_rows != self.num_rows:
            raise self._damaged(f"{_METADATA_NAME} has {self.metadata.num_rows} rows, not {self.num_rows}")
        self.schema = self.metadata.schema
        self.approximate = self._open_approximate()

    @property
    def model(self) -> str:
        """The model that made the embeddings."""
        return self.facts["model"]

    @property
    def weights_sha256(self) -> str:
        """The hash of its weights."""
        return self.facts["weights_sha256"]

    @property
    def num_rows(self) -> int:
        """N, the number of clips or windows."""
        return self.facts["rows"]

    @property
    def dim(self) -> int:
        """D, the number of dimensions."""
        return self.facts["dim"]

    def blocks_of(self, rows: np.ndarray | None) -> Iterator[Block]:
        """Some rows (ascending), or all, with their vectors."""
        for start in range(0, self.num_rows if rows is None else len(rows), BLOCK_ROWS):
            if rows is None:
                vectors = self.vectors[start : start + BLOCK_ROWS]
                yield np.arange(start, start + len(vectors)), vectors
            else:
                block = rows[start : start + BLOCK_ROWS]
                yield block, self.vectors[block]

    def rows(self, numbers: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of some rows, in the order asked for."""
        return self.metadata.rows(numbers, columns)

    def _read_facts(self) -> dict[str, Any]:
        try:
            facts = json.loads((self.folder / FACTS_NAME).read_text())
            if facts["version"] != _VERSION:
                raise PsclapError(
                    f"{self.folder} is an index of version {facts['version']}, not {_VERSION}; build it anew with "
                    "`psclap index`"
                )
            sizes = {name: (self.folder / name).stat().st_size for name in facts["bytes"]}
        except PsclapError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        if sizes != facts["bytes"]:
            raise self._damaged(f"the sizes of its files are {sizes}, not {facts['bytes']}")
        return facts

    def _check_fresh(self) -> None:
        """Looks at the output, where that is a folder that is still there; nothing remote is asked."""
        source = self.facts["source"]
        if storage.is_remote(source) or not Path(source).exists():
            return
        try:
            current = Listing(source, self.facts["windows"]).fingerprint
        except PsclapError:  # whatever is there now, it is not what the index is of
            current = None
        if current != self.facts["fingerprint"]:
            raise PsclapError(
                f"{self.folder} is older than {source}, which was written again since; build it anew: "
                f"`{self._command()}`"
            )

    def _command(self) -> str:
        """What builds this index again, of the same rows and with the same parts."""
        flags = {"--windows": self.facts["windows"], "--approximate": "approximate" in self.facts}
        arguments = [self.facts["source"], str(self.folder), *(name for name, given in flags.items() if given)]
        return f"psclap index {shlex.join(arguments)}"

    def _open_approximate(self) -> approximate.ApproximateIndex | None:
        if "approximate" not in self.facts:
            return None
        return approximate.ApproximateIndex(self.folder / approximate.APPROXIMATE_NAME, self.num_rows, self.dim)

    def _damaged(self, reason: str) -> PsclapError:
        return PsclapError(f"the index {self.folder} is damaged ({reason}); build it anew with `psclap index`")
