"""retrain.yaml as frozen dataclasses: what is fetched, what data must be like, and what a model must be like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from psclap.errors import ConfigError
from psclap.schema import Split
from psclap.strict import at_least, between, from_mapping, not_empty

SECTION = "retrain"
_METRIC = re.compile(
    r"(retrieval/(?P<set>\w+)/(audio_to_text|text_to_audio)/(R@1|R@5|R@10|MRR|mean_rank|median_rank)"
    r"|classification/(?P<attribute>[\w-]+)/(UAR|macro_F1))"
)
_METRIC_RULE = (
    "must be retrieval/CAPTION_SET/DIRECTION/METRIC, such as retrieval/combined/audio_to_text/R@10, or "
    "classification/ATTRIBUTE/METRIC, such as classification/gender/UAR"
)


@dataclass(frozen=True)
class Copy:
    """A file, such as a manifest, that is copied from a URL to a path of the project."""

    url: str
    path: str


@dataclass(frozen=True)
class FetchConfig:
    """How new data comes in, in this order; DVC then sees what has changed.

    `pull`: targets of `dvc pull`, from the project's DVC remote. `update`: .dvc files of `dvc import-url` and
    `dvc import`, for `dvc update`. `copies`: files from URLs; where one has changed, `prepare` is run again.
    """

    pull: tuple[str, ...] = ()
    update: tuple[str, ...] = ()
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class DriftConfig:
    """Two outputs of `pipelines.score`: of the training set, and of new data. Without drift, nothing is trained.

    `start_above`, where given, takes the place of psclap.drift's threshold.
    """

    reference: str
    new: str
    start_above: float | None = field(default=None, metadata=between(0, 1))


@dataclass(frozen=True)
class DataConfig:
    """What the shards must be like before anything is trained on them; the minima are by split."""

    shards: str = "data/shards"
    min_clips: Mapping[str, int] = field(default_factory=dict)
    min_hours: Mapping[str, float] = field(default_factory=dict)
    min_speakers: Mapping[str, int] = field(default_factory=dict)
    max_reject_rate: float = field(default=1.0, metadata=between(0, 1))


@dataclass(frozen=True)
class TestSetConfig:
    """Shards that models are compared on. `index_sha256`, where given, pins them: other data is an error."""

    __test__ = False  # not a class of pytest's

    shards: str
    split: Split = "test"
    index_sha256: str | None = None


@dataclass(frozen=True)
class Criterion:
    """What one metric has to be like; null asks for nothing.

    `min` and `max` are of the challenger alone. `max_regression`: the 95 % interval of the paired difference to the
    champion reaches no further to the worse than that. `min_gain`: its lower end is at least that much to the better.
    """

    min: float | None = None
    max: float | None = None
    max_regression: float | None = field(default=None, metadata=at_least(0))
    min_gain: float | None = field(default=None, metadata=at_least(0))

    def __post_init__(self) -> None:
        if (self.min, self.max, self.max_regression, self.min_gain) == (None, None, None, None):
            raise ConfigError("asks for nothing; give min, max, max_regression or min_gain")


@dataclass(frozen=True)
class VariantConfig:
    """The registered model that a variant of params.yaml becomes, and its policy: by test set, by metric."""

    model: str
    policy: Mapping[str, Mapping[str, Criterion]]

    def __post_init__(self) -> None:
        if not self.policy or not all(self.policy.values()):
            raise ConfigError("policy: each variant needs a test set, and each of these a metric")
        if not any(rule.min is not None or rule.max is not None for of in self.policy.values() for rule in of.values()):
            raise ConfigError("policy: needs a min or a max, or the first model of a name would pass unseen")
        names = [name for criteria in self.policy.values() for name in criteria]
        wrong = [name for name in names if not _METRIC.fullmatch(name)]
        if wrong:
            raise ConfigError("\n".join(f"policy: {name!r} {_METRIC_RULE}" for name in wrong))


@dataclass(frozen=True)
class RetrainConfig:
    """The whole of retrain.yaml. `work` keeps reports and decision records; `targets` of `dvc repro`, default all."""

    variants: Mapping[str, VariantConfig] = field(metadata=not_empty())
    test_sets: Mapping[str, TestSetConfig]
    data: DataConfig = field(default_factory=DataConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    drift: DriftConfig | None = None
    targets: tuple[str, ...] = ()
    work: str = "runs/retrain"
    experiment: str = "psclap-retrain"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.experiment):
            raise ConfigError(f"experiment: {self.experiment!r} must be of letters, digits, dots, - and _")
        named = {name for variant in self.variants.values() for name in variant.policy}
        if unknown := sorted(named - self.test_sets.keys()):
            raise ConfigError(f"policy: {unknown} must be among the test_sets {sorted(self.test_sets)}")


def metric_set(metric: str) -> tuple[str | None, str | None]:
    """(the caption set, the attribute) that a metric of a policy is of; one of them is None.

    >>> metric_set("classification/gender/UAR"), metric_set("retrieval/combined/audio_to_text/R@10")
    ((None, 'gender'), ('combined', None))
    """
    match = _METRIC.fullmatch(metric)
    assert match
    return match["set"], match["attribute"]


def load_retrain_config(path: Path) -> RetrainConfig:
    """Reads and checks a file. Raises ConfigError that lists every broken key."""
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the file {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return from_mapping(RetrainConfig, mapping, SECTION)
