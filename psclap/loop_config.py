"""How the training loop runs, as frozen dataclasses: order, steps, optimiser, loading, checkpoints, resources.

These sections of params.yaml are the same whatever is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from psclap.data_config import check_url
from psclap.errors import ConfigError
from psclap.strict import above, at_least, between, not_empty


@dataclass(frozen=True)
class SamplingConfig:
    """In which order the clips come.

    The sources that are mixed are the caption sets, or each of them within each corpus of `mixing_corpora`.
    `class_balance` draws clips by their intrinsic tags, see `psclap.sampling.class_balance`; `bucket_batches` sorts
    that many batches at a time by length; `shuffle_block_shards` mixes the clips of that many shards at a time.
    `max_batch_s` ends a batch before its clips, each padded to the longest, have more seconds than that, and at
    `global_batch_size` clips at the latest; their number is a multiple of `batch_multiple`, so that as many workers
    share it equally.
    """

    mixing: Literal["interleave", "concatenate"] = "interleave"
    mixing_corpora: tuple[str, ...] | None = field(default=None, metadata=not_empty())
    mixing_probabilities: tuple[float, ...] | None = None
    mixing_stop: Literal["all", "first"] = "all"
    class_balance: Literal["none", "inverse", "sqrt", "log"] = "none"
    min_rare_samples: int = field(default=2, metadata=at_least(0))
    rare_block_size: int = field(default=32, metadata=at_least(1))
    rare_below_share: float = field(default=0.05, metadata=between(0, 1))
    distinct_captions: bool = False
    bucket_batches: int | None = field(default=None, metadata=at_least(2))
    shuffle_block_shards: int | None = field(default=None, metadata=at_least(1))
    max_batch_s: float | None = field(default=None, metadata=above(0))
    batch_multiple: int = field(default=1, metadata=at_least(1))

    def __post_init__(self) -> None:
        balanced = self.class_balance != "none"
        if balanced and self.min_rare_samples > self.rare_block_size:
            raise ConfigError(
                f"min_rare_samples {self.min_rare_samples} exceeds rare_block_size {self.rare_block_size}"
            )
        corpora = self.mixing_corpora or ()
        if len(set(corpora)) != len(corpora):
            raise ConfigError(f"mixing_corpora {list(corpora)} names a corpus twice")
        if any(probability <= 0 for probability in self.mixing_probabilities or ()):
            raise ConfigError(f"mixing_probabilities {list(self.mixing_probabilities or ())} must all be above 0")
        if self.mixing_probabilities is not None and (balanced or self.mixing == "concatenate"):
            raise ConfigError("mixing_probabilities are for mixing: interleave without class_balance; set them to null")
        regroups = self.bucket_batches is not None or self.max_batch_s is not None
        if regroups and (balanced or self.distinct_captions):
            raise ConfigError(
                "bucket_batches and max_batch_s regroup batches, and would undo class_balance and distinct_captions; "
                "choose one"
            )
        if self.distinct_captions and (balanced or self.shuffle_block_shards is not None):
            raise ConfigError(
                "distinct_captions spreads the clips of a caption over the whole epoch, which class_balance and "
                "shuffle_block_shards do not allow; choose one"
            )


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed; but for rounding, nothing in here changes what it computes.

    `precision` bf16: the encoders under autocast; weights, embeddings and losses stay fp32. `micro_batch_size`: the
    clips, and the texts, that a worker embeds at a time (gradient caching); null: all of its share at once.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    gradient_checkpointing: bool = False
    micro_batch_size: int | None = field(default=None, metadata=at_least(1))


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How the training loop runs, whatever it trains. Exactly one of `max_steps` and `max_epochs` is given.

    Batches are global. `freeze` names parameters, or modules with all of theirs, that keep their weights
    (`text_model`, `audio_model.feature_extractor`). With `ema_decay`, what is validated and kept as the model is the
    moving average of the weights. A step whose loss or gradient is not finite is not taken; after
    `max_skipped_steps` of them the training stops. `patience`: it ends after that many validations without a better
    `best_metric`. `schedule` inverse_sqrt is the Transformer's: after the warm-up as 1 / sqrt(step).
    """

    sampling: SamplingConfig
    global_batch_size: int = field(metadata=at_least(2))
    max_steps: int | None = field(metadata=at_least(1))
    max_epochs: int | None = field(metadata=at_least(1))
    freeze: tuple[str, ...]
    optimizer: Literal["adam", "adamw"]
    learning_rate: float = field(metadata=above(0))
    adam_betas: tuple[float, ...]
    weight_decay: float = field(metadata=at_least(0))
    schedule: Literal["constant", "cosine", "inverse_sqrt"]
    warmup_steps: int = field(metadata=at_least(0))
    max_grad_norm: float | None = field(metadata=above(0))
    ema_decay: float | None = field(metadata=between(0, 0.999999))
    max_skipped_steps: int = field(metadata=at_least(0))
    compute: ComputeConfig
    log_every: int = field(metadata=at_least(1))
    validate_every: int = field(metadata=at_least(1))
    best_metric: str
    patience: int | None = field(metadata=at_least(1))

    BEST_METRICS: ClassVar[tuple[str, ...]] = ()
    """What the best checkpoint can be chosen by."""
    LOWER_IS_BETTER: ClassVar[tuple[str, ...]] = ()

    def score(self, metrics: Mapping[str, float]) -> float:
        """What `best_metric` says of a validation: higher is better."""
        value = metrics[self.best_metric]
        return -value if self.best_metric in self.LOWER_IS_BETTER else value

    def __post_init__(self) -> None:
        if (self.max_steps is None) == (self.max_epochs is None):
            raise ConfigError(
                f"max_steps {self.max_steps} and max_epochs {self.max_epochs}: give one, leave the other null"
            )
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ConfigError(f"adam_betas {list(self.adam_betas)} must be two numbers in [0, 1), such as [0.9, 0.999]")
        if self.best_metric not in self.BEST_METRICS:
            raise ConfigError(f"best_metric {self.best_metric!r} must be one of {', '.join(self.BEST_METRICS)}")
        if self.schedule == "inverse_sqrt" and not self.warmup_steps:
            raise ConfigError(
                "schedule inverse_sqrt falls from the end of the warm-up on: warmup_steps must be 1 at least"
            )
        if self.global_batch_size % self.sampling.batch_multiple:
            raise ConfigError(
                f"global_batch_size {self.global_batch_size} must be a multiple of sampling.batch_multiple "
                f"{self.sampling.batch_multiple}"
            )


@dataclass(frozen=True)
class LoadingConfig:
    """How each training worker gets its batches; nothing in here changes what they are.

    `processes` prepare them, or a thread of the worker where that is 0. Shards on a remote come by way of a cache
    folder on each machine (PSCLAP_CACHE_DIR), which never holds more than `shard_cache_gb`.
    """

    processes: int = field(default=0, metadata=at_least(0))
    start_method: Literal["fork", "forkserver"] = "forkserver"
    shard_cache_gb: float = field(default=10.0, metadata=above(0))


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints are written at each validation and, where `every_steps` is given, that often besides.

    Kept are the `keep_last` newest and the `keep_best` best by `train.*.best_metric`; under `url` (such as
    s3://bucket/checkpoints) where the machines share no file system, null: in the run's folder.
    """

    url: str | None = None
    every_steps: int | None = field(default=None, metadata=at_least(1))
    keep_last: int = field(default=2, metadata=at_least(1))
    keep_best: int = field(default=1, metadata=at_least(1))

    def __post_init__(self) -> None:
        check_url(self.url, "s3://bucket/checkpoints; null is the run's folder")


@dataclass(frozen=True)
class ResourcesConfig:
    """Where there are GPUs, one worker each (`gpu_workers` null: all of them); else `cpu_workers`.

    With 0 `cpu_workers` the process that was started trains, without Ray: for models so small that their training is
    shorter than the start of workers. Nothing then starts it anew, but running it again goes on all the same.
    `threads_per_cpu_worker` are those of evaluating voices, too.

    A worker that makes no progress for `hang_timeout_s` is ended and the training goes on from its last checkpoint, as
    after a worker's death; `max_failures` times in all.
    """

    cpu_workers: int = field(metadata=at_least(0))
    threads_per_cpu_worker: int = field(metadata=at_least(1))
    gpu_workers: int | None = field(metadata=at_least(1))
    loading: LoadingConfig
    checkpoints: CheckpointConfig
    hang_timeout_s: float = field(metadata=between(1, 1e6))
    max_failures: int = field(metadata=at_least(0))
