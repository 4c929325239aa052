"""Whether newly built shards are fit to train on, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.compute as pc

from psclap.errors import PsclapError
from psclap.retraining.config import DataConfig, TestSetConfig
from psclap.shards.index import ShardIndex
from psclap.soundness.integrity import check_location


class UnsoundError(PsclapError):
    """Data that breaks the written minima, or whose check finds errors."""


def check_data(config: DataConfig, test_sets: Mapping[str, TestSetConfig]) -> None:
    """Raises UnsoundError that lists everything that is wrong with the shards, as data to train on for these tests."""
    index = ShardIndex(config.shards)
    summary = index.summary
    report = check_location(config.shards)
    faults = [f"{finding.title} ({finding.advice})" for finding in report.findings if finding.severity == "error"]
    faults += [*_too_little(config, summary["splits"]), *_too_many_rejects(config, summary)]
    faults += _leaks(index, test_sets)
    if faults:
        raise UnsoundError(f"the data in {config.shards} is not sound:\n  " + "\n  ".join(faults))


def _leaks(index: ShardIndex, test_sets: Mapping[str, TestSetConfig]) -> Iterator[str]:
    trained = _keys(index, "train")
    for name, config in test_sets.items():
        if common := sorted(trained & _keys(ShardIndex(config.shards), config.split)):
            yield f"{len(common)} clips of the test set {name} are in train, such as {common[0]}; take them out of it"


def _keys(index: ShardIndex, split: str) -> set[str]:
    chosen = pc.equal(index.column("split"), split)
    return {*index.column("key").filter(chosen).to_pylist()}


def _too_little(config: DataConfig, splits: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    minima = {"clips": config.min_clips, "hours": config.min_hours, "speakers": config.min_speakers}
    for unit, by_split in minima.items():
        for split, minimum in by_split.items():
            found = splits.get(split, {}).get(unit, 0)
            if found < minimum:
                yield f"{split} has {found:g} {unit}, and min_{unit} asks for {minimum:g}"


def _too_many_rejects(config: DataConfig, summary: Mapping[str, Any]) -> Iterator[str]:
    kept = sum(split["clips"] for split in summary["splits"].values())
    share = summary["rejected"] / max(kept + summary["rejected"], 1)
    if share > config.max_reject_rate:
        yield f"{share:.2%} of the clips were rejected, and max_reject_rate allows {config.max_reject_rate:.2%}"
