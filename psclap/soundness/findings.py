"""What a check found: findings with examples and advice, and the report that they add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """One kind of fault: how many `unit` have it, a few of them, and what to do about it."""

    name: str
    severity: Literal["error", "warning"]
    count: int
    unit: str
    examples: tuple[str, ...]
    advice: str

    @property
    def title(self) -> str:
        """The finding in a few words.

        >>> error("missing shards", "shards", 1, ["train-00000.tar"], "").title
        'missing shards: 1 shard'
        """
        return f"{self.name}: {_plural(self.count, self.unit.removesuffix('s'))}"


@dataclass(frozen=True)
class Report:
    """What a check found, errors first, and the data set's statistics."""

    findings: tuple[Finding, ...]
    statistics: dict[str, Any]

    @property
    def errors(self) -> int:
        """How many kinds of errors there are."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def sound(self) -> bool:
        """Whether there are no errors; warnings are allowed."""
        return not self.errors

    @property
    def verdict(self) -> str:
        """The report in one line.

        >>> Report((), {}).verdict
        'sound'
        """
        warnings = len(self.findings) - self.errors
        counts = [_plural(self.errors, "error")] if self.errors else []
        counts += [_plural(warnings, "warning")] if warnings else []
        return ("sound" if self.sound else "not sound") + (f": {', '.join(counts)}" if counts else "")

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, free of NaN."""
        return {
            "sound": self.sound,
            "errors": self.errors,
            "warnings": len(self.findings) - self.errors,
            "findings": [{**asdict(finding), "examples": list(finding.examples)} for finding in self.findings],
            "statistics": self.statistics,
        }


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def report(findings: Iterable[Finding], numbers: dict[str, Any]) -> Report:
    """The report of those findings that found something, errors first."""
    found = [finding for finding in findings if finding.count]
    return Report(tuple(sorted(found, key=lambda finding: finding.severity)), numbers)


def error(name: str, unit: str, count: int, examples: Iterable[Any], advice: str) -> Finding:
    """An error; of `examples`, the first few are kept."""
    return _finding(name, "error", unit, count, examples, advice)


def warning(name: str, unit: str, count: int, examples: Iterable[Any], advice: str) -> Finding:
    """A warning; of `examples`, the first few are kept."""
    return _finding(name, "warning", unit, count, examples, advice)


def _finding(
    name: str, severity: Literal["error", "warning"], unit: str, count: int, examples: Iterable[Any], advice: str
) -> Finding:
    shown = tuple(str(example) for example in islice(examples, MAX_EXAMPLES))
    return Finding(name, severity, int(count), unit, shown, advice)
