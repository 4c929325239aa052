"""Which corpus, and how its clips become shards, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from psclap.errors import ConfigError
from psclap.strict import above, at_least, between


def check_url(url: str | None, example: str) -> None:
    """Raises ConfigError for what is neither null nor a URL."""
    if url is not None and "://" not in url:
        raise ConfigError(f"url {url!r} must be a URL, such as {example}")


@dataclass(frozen=True)
class CorpusConfig:
    """Which corpus, and its own options (psclap/corpora/NAME.py lists them)."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ShardConfig:
    """How clips become shards. A clip outside the durations, or that cannot be decoded, is rejected.

    A shard is full at `max_samples_per_shard` clips or `max_bytes_per_shard` bytes, whichever comes first.
    `loudness_lufs` normalises each clip to that loudness (EBU R128; -23 is its level); null leaves it as it is.
    `url` is where shards go that are too large for this machine (such as s3://bucket/shards); null: data/shards.
    `phonemes` says each transcript, for text to speech; a clip whose transcript cannot be said is rejected.
    """

    url: str | None
    sample_rate_hz: int = field(metadata=between(8000, 48000))
    loudness_lufs: float | None = field(metadata=between(-70, 0))
    max_samples_per_shard: int = field(metadata=at_least(1))
    max_bytes_per_shard: int = field(metadata=at_least(1_000_000))
    min_duration_s: float = field(metadata=above(0))
    max_duration_s: float = field(metadata=above(0))
    max_reject_rate: float = field(metadata=between(0, 1))
    phonemes: bool = False

    def __post_init__(self) -> None:
        check_url(self.url, "s3://bucket/shards; null is data/shards")
        if self.min_duration_s >= self.max_duration_s:
            raise ConfigError(
                f"min_duration_s {self.min_duration_s} must be below max_duration_s {self.max_duration_s}"
            )
