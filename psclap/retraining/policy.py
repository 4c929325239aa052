"""The gate: whether a challenger may take the champion's place, by a written policy.

A regression is judged by the paired bootstrap of psclap.evaluation.compare: the challenger must be shown to be no
worse than the policy allows (a test of non-inferiority), so a test set that is too small to tell keeps the champion.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from psclap.errors import PsclapError
from psclap.evaluation.compare import Difference, compare_reports, report_metrics
from psclap.retraining.config import Criterion


@dataclass(frozen=True)
class Reports:
    """The report folders of both models on one test set; the first model of a name has no champion before it."""

    challenger: Path
    champion: Path | None


@dataclass(frozen=True)
class Check:
    """One rule of the policy and how it came out. `gain` and its 95 % interval are above 0 where the new is better."""

    test_set: str
    metric: str
    rule: str
    passed: bool
    challenger: float
    champion: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def sentence(self) -> str:
        """The check in a line.

        >>> Check("night", "classification/gender/UAR", "at least 0.9", False, 0.85).sentence
        'classification/gender/UAR on night is 0.85, and must be at least 0.9'
        """
        found = f"{self.metric} on {self.test_set} is {self.challenger:.4g}"
        if self.champion is not None:
            found += f" (champion {self.champion:.4g}, gain {self.gain:+.4g}, 95 % {self.low:+.4g} to {self.high:+.4g})"
        return f"{found}, {'as it must be' if self.passed else 'and must be'} {self.rule}"


@dataclass(frozen=True)
class Decision:
    """Whether the challenger is to become the champion, and why or why not."""

    promote: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]


def decide(
    policy: Mapping[str, Mapping[str, Criterion]], reports: Mapping[str, Reports], vetoes: Iterable[str] = ()
) -> Decision:
    """Judges a challenger by all rules of its policy; one that fails, or a veto, keeps the champion.

    Raises PsclapError for a metric that the reports lack.
    """
    checks = tuple(check for name, criteria in policy.items() for check in _checks(name, criteria, reports[name]))
    against = (*vetoes, *(check.sentence for check in checks if not check.passed))
    if against:
        return Decision(False, against, checks)
    if all(of.champion is None for of in reports.values()):
        return Decision(True, ("it is the first, and meets every minimum",), checks)
    return Decision(True, (f"all {len(checks)} rules of the policy are met",), checks)


def _checks(name: str, criteria: Mapping[str, Criterion], reports: Reports) -> Iterator[Check]:
    values = report_metrics(reports.challenger)
    differences: dict[str, Difference] = {}
    if reports.champion is not None:
        compared = compare_reports(reports.champion, reports.challenger)
        differences = {difference.name: difference for difference in compared.differences}
    for metric, criterion in criteria.items():
        if metric not in values or (reports.champion is not None and metric not in differences):
            near = difflib.get_close_matches(metric, values, n=1) or sorted(values)[:1]
            raise PsclapError(f"the reports on {name} have no metric {metric!r}; there is {near}: correct the policy")
        yield from _checks_of_metric(name, metric, criterion, values[metric], differences.get(metric))


def _checks_of_metric(
    name: str, metric: str, criterion: Criterion, value: float, difference: Difference | None
) -> Iterator[Check]:
    if math.isnan(value):
        raise PsclapError(f"{metric} on {name} is not a number: the challenger is damaged, or its report is")
    if criterion.min is not None:
        yield Check(name, metric, f"at least {criterion.min:g}", value >= criterion.min, value)
    if criterion.max is not None:
        yield Check(name, metric, f"at most {criterion.max:g}", value <= criterion.max, value)
    if difference is None:
        return
    gain, low, high = difference.gain
    found = (value, difference.a, gain, low, high)
    if criterion.max_regression is not None:
        rule = f"worse by no more than {criterion.max_regression:g}, with 95 % confidence"
        yield Check(name, metric, rule, low >= -criterion.max_regression, *found)
    if criterion.min_gain is not None:
        rule = f"better by {criterion.min_gain:g} or more, with 95 % confidence"
        yield Check(name, metric, rule, low >= criterion.min_gain, *found)
