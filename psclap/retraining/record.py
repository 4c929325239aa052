"""The decision record: what was decided about a challenger, on what grounds, and where everything lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from psclap.errors import PsclapError
from psclap.files import atomic_file, write_json
from psclap.markdown import table
from psclap.retraining.policy import Check, Decision
from psclap.strict import from_mapping

RECORD_NAME = "decision.json"
PAGE_NAME = "decision.md"


@dataclass(frozen=True)
class Candidate:
    """A registered version, as far as a decision depends on it."""

    uri: str
    weights_sha256: str
    run_id: str


@dataclass(frozen=True)
class Grounds:
    """All that a decision follows from: the same grounds give the same decision."""

    model: str
    challenger: Candidate
    champion: Candidate | None
    policy: Mapping[str, Any]  # by test set, by metric
    test_sets: Mapping[str, Mapping[str, str]]  # the location, split and index_sha256 of each
    vetoes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Twelve hex digits that name the decision."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Record:
    """A decision with its grounds, when it was made, and links to data, code and runs."""

    grounds: Grounds
    decision: Decision
    decided_at: str  # UTC, ISO 8601
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The record in a few words."""
        verdict = "promote" if self.decision.promote else "keep the champion"
        return f"{self.grounds.challenger.uri}: {verdict}"

    def write(self, folder: Path) -> None:
        """Writes decision.json and decision.md to a folder."""
        with atomic_file(folder / PAGE_NAME) as path:
            path.write_text("\n".join([*self._lines(), ""]), encoding="utf-8")
        write_json(folder / RECORD_NAME, {"id": self.grounds.id, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a folder, if there is one. Raises PsclapError for a damaged one."""
        try:
            values = json.loads((folder / RECORD_NAME).read_text())
            return from_mapping(cls, {name: value for name, value in values.items() if name != "id"}, "record")
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError) as error:
            raise PsclapError(
                f"the decision record {folder / RECORD_NAME} is damaged ({error}); remove {folder} to decide anew"
            ) from error

    def metrics(self) -> dict[str, float]:
        """The numbers of the decision by name, for a tracking store."""
        values: dict[str, float] = {}
        for check in self.decision.checks:
            found = {"challenger": check.challenger, "champion": check.champion, "gain": check.gain, "low": check.low}
            values |= {f"{check.test_set}/{check.metric}/{k}": v for k, v in found.items() if v is not None}
        return values

    def _lines(self) -> Iterator[str]:
        grounds, decision = self.grounds, self.decision
        yield f"# {self.title}"
        yield ""
        yield f"Decided at {self.decided_at}, because:"
        yield ""
        yield from (f"- {reason}" for reason in decision.reasons)
        yield ""
        champion = grounds.champion.uri if grounds.champion else "none yet"
        yield f"Challenger: `{grounds.challenger.uri}`; champion: `{champion}`; decision `{grounds.id}`."
        yield ""
        yield from table(_HEADER, [_row(check) for check in decision.checks])
        yield ""
        yield from (f"- {name}: `{value}`" for name, value in self.links.items())


_HEADER = ["test set", "metric", "rule", "challenger", "champion", "gain", "95 %", "met"]


def _row(check: Check) -> list[str]:
    values = [f"{check.challenger:.4f}", "", "", ""]
    if check.champion is not None:
        values[1:] = [f"{check.champion:.4f}", f"{check.gain:+.4f}", f"{check.low:+.4f} to {check.high:+.4f}"]
    return [check.test_set, check.metric, check.rule, *values, "yes" if check.passed else "**no**"]
