"""Two models on the same test sets: by how much they differ, and how sure that is.

Every resample draws the same units (see psclap.evaluation.bootstrap) for both, so what makes a query hard for both
cancels out, and the interval of the difference is narrower than those of the two models suggest. The p-values are of
one comparison each: of 20 metrics of equal models, one has a p-value below 0.05.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psclap.errors import PsclapError
from psclap.evaluation import PAIRED_RESAMPLES
from psclap.evaluation.bootstrap import check_resamples, interval, p_value, resampled
from psclap.evaluation.outcomes import metrics_of
from psclap.evaluation.queries import SCHEMA, QuerySet, from_table, numbered
from psclap.evaluation.report import EVALUATION_NAME, QUERIES_NAME

_LOWER_IS_BETTER = ("median_rank", "mean_rank")


@dataclass(frozen=True)
class Difference:
    """One metric of two models, a and b, on one test set and direction."""

    kind: str  # as in psclap.evaluation.queries
    set: str
    direction: str
    metric: str
    a: float
    b: float
    difference: float  # b - a
    low: float  # the difference's 95 % interval
    high: float
    p_value: float  # of no difference, two-sided
    higher_is_better: bool
    queries: int
    units: int  # that were resampled

    @property
    def name(self) -> str:
        """What names the metric, as in `report_metrics`."""
        return _metric_name((self.kind, self.set, self.direction), self.metric)

    @property
    def gain(self) -> tuple[float, float, float]:
        """The difference and its interval with the sign turned, if need be, such that above 0 means b is better."""
        if self.higher_is_better:
            return self.difference, self.low, self.high
        return -self.difference, -self.high, -self.low


@dataclass(frozen=True)
class Comparison:
    """The differences of all that both reports have, and what one of them lacks."""

    a: str  # the models' names
    b: str
    unit: str
    differences: list[Difference]
    left_out: list[str]


@dataclass(frozen=True)
class _Report:
    folder: Path
    about: Mapping[str, Any]
    query_sets: dict[tuple[str, str, str], QuerySet]

    @classmethod
    def read(cls, folder: Path) -> _Report:
        try:
            about = json.loads((folder / EVALUATION_NAME).read_text())["about"]
            table = pq.read_table(folder / QUERIES_NAME)
        except FileNotFoundError as error:
            raise PsclapError(f"{folder} is no report: {Path(error.filename).name} is missing; {_MAKE}") from error
        except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise PsclapError(f"the report {folder} is damaged, or of another version ({error!r}); {_MAKE}") from error
        if table.schema.names != SCHEMA.names:
            raise PsclapError(f"{folder / QUERIES_NAME} has the columns {table.schema.names}; {_MAKE}")
        return cls(folder, about, {of_set.place: of_set.in_order() for of_set in from_table(table)})

    def fingerprint(self, place: tuple[str, str, str]) -> str:
        """Of the test set that the queries of a place are of."""
        kind, name, _ = place
        return self.about["test_sets"][f"{kind.removesuffix('_ensemble')}/{name}"]


_MAKE = "`psclap evaluate MODEL SHARDS --output FOLDER` makes one"


def report_metrics(folder: Path | str) -> dict[str, float]:
    """Every metric of a report folder by its name, such as retrieval/combined/audio_to_text/R@10.

    Classification has one direction only, so its names leave it out: classification/gender/UAR. Raises PsclapError
    where there is no report.
    """
    query_sets = _Report.read(Path(folder)).query_sets
    return {
        _metric_name(place, metric): value
        for place, of_set in query_sets.items()
        for metric, value in metrics_of(of_set.outcome).items()
    }


def _metric_name(place: tuple[str, str, str], metric: str) -> str:
    kind, name, direction = place
    return "/".join([kind, name, *([] if kind.startswith("classification") else [direction]), metric])


def compare_reports(a: Path | str, b: Path | str, resamples: int = PAIRED_RESAMPLES, seed: int = 0) -> Comparison:
    """Compares two report folders of `psclap evaluate` or the evaluate stage.

    Raises PsclapError where one is no report, or where they are of different test sets or resample different units.
    """
    check_resamples(resamples)
    one, other = _Report.read(Path(a)), _Report.read(Path(b))
    _check_same_test_sets(one, other)
    differences: list[Difference] = []
    left_out = []
    for place in {**one.query_sets, **other.query_sets}:
        if place in one.query_sets and place in other.query_sets and one.fingerprint(place) == other.fingerprint(place):
            differences += _differences(one.query_sets[place], other.query_sets[place], resamples, seed)
        else:
            left_out.append("/".join(place))
    return Comparison(one.about["model"], other.about["model"], one.about["unit"], differences, left_out)


def _check_same_test_sets(one: _Report, other: _Report) -> None:
    """Composition may differ: it follows from the attributes that were scored."""
    ours, theirs = one.about["test_sets"], other.about["test_sets"]
    common = {name for name in ours.keys() & theirs.keys() if not name.startswith("composition/")}
    different = sorted(name for name in common if ours[name] != theirs[name])
    if different or not common:
        what = (
            f"{', '.join(different)} differ in their clips or candidates" if different else "they have none in common"
        )
        raise PsclapError(
            f"{one.folder} and {other.folder} are of different test sets: {what}; evaluate both models on the same "
            "split of the same shards"
        )
    if one.about["unit"] != other.about["unit"]:
        raise PsclapError(
            f"{one.folder} resamples {one.about['unit']}s and {other.folder} {other.about['unit']}s; evaluate both "
            "with the same --resample"
        )


def _differences(one: QuerySet, other: QuerySet, resamples: int, seed: int) -> Iterator[Difference]:
    units = numbered(one.units)
    ours, theirs = metrics_of(one.outcome), metrics_of(other.outcome)
    of_one, of_other = resampled([one.outcome, other.outcome], units, resamples, seed)
    for metric in ["R@1"] if one.kind == "composition" else ours:
        differences_R = of_other[metric] - of_one[metric]
        low, high = interval(differences_R)
        yield Difference(
            *one.place,
            metric=metric,
            a=ours[metric],
            b=theirs[metric],
            difference=theirs[metric] - ours[metric],
            low=low,
            high=high,
            p_value=p_value(differences_R),
            higher_is_better=metric not in _LOWER_IS_BETTER,
            queries=len(one.queries),
            units=int(units.max()) + 1,
        )
