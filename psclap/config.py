"""params.yaml as frozen dataclasses, one per section.

Built once, at the door: an unknown, missing, mistyped or out-of-range key raises one ConfigError that lists
every such key. A training variant is the section `train.base` with the keys of `train.<variant>` over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from psclap.errors import ConfigError, PsclapError
from psclap.files import atomic_file
from psclap.licences import LICENCE_RULE, OTHER, is_licence
from psclap.schema import CaptionSet, Split
from psclap.strict import above, at_least, between, from_mapping, not_empty
from psclap.tags import ATTRIBUTES

PRESETS_FOLDER = Path(__file__).parent / "presets"


def _check_url(url: str | None, example: str) -> None:
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
    """

    url: str | None
    sample_rate_hz: int = field(metadata=between(8000, 48000))
    loudness_lufs: float | None = field(metadata=between(-70, 0))
    max_samples_per_shard: int = field(metadata=at_least(1))
    max_bytes_per_shard: int = field(metadata=at_least(1_000_000))
    min_duration_s: float = field(metadata=above(0))
    max_duration_s: float = field(metadata=above(0))
    max_reject_rate: float = field(metadata=between(0, 1))

    def __post_init__(self) -> None:
        _check_url(self.url, "s3://bucket/shards; null is data/shards")
        if self.min_duration_s >= self.max_duration_s:
            raise ConfigError(
                f"min_duration_s {self.min_duration_s} must be below max_duration_s {self.max_duration_s}"
            )


@dataclass(frozen=True)
class EncoderConfig:
    """A transformers encoder: pretrained weights by name or path, or a fresh one from `config`; not both."""

    pooling: Literal["mean", "mean_std", "cls"]
    pretrained: str | None = None
    config: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.pretrained is None) == (self.config is None):
            raise ConfigError("give either `pretrained` (a name or path) or `config` (with a model_type)")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ConfigError("`config` needs a model_type, such as wavlm, logmel_conv or bert")


@dataclass(frozen=True)
class ModelConfig:
    """The dual encoder. `normalise_audio`: zero mean and unit variance per clip, as the paper does."""

    speech: EncoderConfig
    text: EncoderConfig
    projection_dim: int = field(metadata=at_least(1))
    projection_dropout: float = field(metadata=between(0, 0.99))
    initial_logit_scale: float = field(metadata=between(1, 100))
    normalise_audio: bool
    max_text_tokens: int = field(metadata=at_least(8))
    tokenizer_vocab_size: int | None = field(default=None, metadata=at_least(64))

    def __post_init__(self) -> None:
        if self.speech.pooling == "cls":
            raise ConfigError("speech.pooling 'cls': speech encoders have no CLS frame; use mean or mean_std")
        if self.text.pooling == "mean_std":
            raise ConfigError("text.pooling 'mean_std' is for speech; use cls or mean")
        if (self.text.pretrained is None) == (self.tokenizer_vocab_size is None):
            raise ConfigError(
                "tokenizer_vocab_size is needed with a fresh text encoder, whose tokenizer is trained on the "
                "captions, and must be null with a pretrained one, which brings its own"
            )


@dataclass(frozen=True)
class SamplingConfig:
    """In which order the clips come.

    The sources that are mixed are the caption sets, or each of them within each corpus of `mixing_corpora`.
    `class_balance` draws clips by their intrinsic tags, see `psclap.sampling.class_balance`; `bucket_batches` sorts
    that many batches at a time by length; `shuffle_block_shards` mixes the clips of that many shards at a time.
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
        if self.bucket_batches is not None and (balanced or self.distinct_captions):
            raise ConfigError(
                "bucket_batches regroups batches, and would undo class_balance and distinct_captions; choose one"
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


_RANKS = ("MRR", "R@1", "R@5", "R@10")
BEST_METRICS = ("val/UAR", *(f"val/{prefix}{name}" for prefix in ("", "text_to_audio/") for name in _RANKS))
"""What the best checkpoint can be chosen by: higher is better. Retrieval is speech to caption where not said."""


@dataclass(frozen=True)
class TrainConfig:
    """One variant's training. Exactly one of `max_steps` and `max_epochs` is given; batches are global.

    `freeze` names parameters, or modules with all of theirs, that keep their weights (`text_model`,
    `audio_model.feature_extractor`). With `ema_decay`, what is validated and kept as the model is the moving average
    of the weights. A step whose loss or gradient is not finite is not taken; after `max_skipped_steps` of them the
    training stops. `patience`: it ends after that many validations without a better `best_metric`.
    """

    caption_sets: tuple[CaptionSet, ...] = field(metadata=not_empty())
    sampling: SamplingConfig
    global_batch_size: int = field(metadata=at_least(2))
    max_steps: int | None = field(metadata=at_least(1))
    max_epochs: int | None = field(metadata=at_least(1))
    max_crop_s: float = field(metadata=at_least(0.1))
    contrastive_loss: Literal["info_nce", "sigmoid"]
    initial_logit_bias: float | None
    duplicate_captions: Literal["positives", "negatives"]
    tag_loss_weight: float = field(metadata=at_least(0))
    freeze: tuple[str, ...]
    optimizer: Literal["adam", "adamw"]
    learning_rate: float = field(metadata=above(0))
    adam_betas: tuple[float, ...]
    weight_decay: float = field(metadata=at_least(0))
    schedule: Literal["constant", "cosine"]
    warmup_steps: int = field(metadata=at_least(0))
    max_grad_norm: float | None = field(metadata=above(0))
    ema_decay: float | None = field(metadata=between(0, 0.999999))
    max_skipped_steps: int = field(metadata=at_least(0))
    compute: ComputeConfig
    log_every: int = field(metadata=at_least(1))
    validate_every: int = field(metadata=at_least(1))
    validation_set: CaptionSet
    best_metric: str
    patience: int | None = field(metadata=at_least(1))

    def __post_init__(self) -> None:
        if (self.max_steps is None) == (self.max_epochs is None):
            raise ConfigError(
                f"max_steps {self.max_steps} and max_epochs {self.max_epochs}: give one, leave the other null"
            )
        if len(set(self.caption_sets)) != len(self.caption_sets):
            raise ConfigError(f"caption_sets {list(self.caption_sets)} names a set twice")
        if (self.initial_logit_bias is None) == (self.contrastive_loss == "sigmoid"):
            raise ConfigError(
                f"initial_logit_bias {self.initial_logit_bias}: the sigmoid loss needs one, such as -10.0; "
                "info_nce has none, leave it null"
            )
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ConfigError(f"adam_betas {list(self.adam_betas)} must be two numbers in [0, 1), such as [0.9, 0.999]")
        if self.best_metric not in BEST_METRICS:
            raise ConfigError(f"best_metric {self.best_metric!r} must be one of {', '.join(BEST_METRICS)}")
        sources = len(self.caption_sets) * len(self.sampling.mixing_corpora or (None,))
        if len(self.sampling.mixing_probabilities or range(sources)) != sources:
            raise ConfigError(
                f"sampling.mixing_probabilities {list(self.sampling.mixing_probabilities or ())}: one is needed for "
                f"each of the {sources} sources (caption sets x corpora)"
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
        _check_url(self.url, "s3://bucket/checkpoints; null is the run's folder")


@dataclass(frozen=True)
class ResourcesConfig:
    """Where there are GPUs, one worker each (`gpu_workers` null: all of them); else `cpu_workers`.

    A worker that makes no progress for `hang_timeout_s` is ended and the training goes on from its last checkpoint, as
    after a worker's death; `max_failures` times in all.
    """

    cpu_workers: int = field(metadata=at_least(1))
    threads_per_cpu_worker: int = field(metadata=at_least(1))
    gpu_workers: int | None = field(metadata=at_least(1))
    loading: LoadingConfig
    checkpoints: CheckpointConfig
    hang_timeout_s: float = field(metadata=between(1, 1e6))
    max_failures: int = field(metadata=at_least(0))


@dataclass(frozen=True)
class EvaluateConfig:
    """What evaluation scores; the attributes whose candidates the test set carries, of `attributes`."""

    split: Split
    caption_sets: tuple[CaptionSet, ...] = field(metadata=not_empty())
    attributes: tuple[str, ...] = field(metadata=not_empty())
    batch_size: int = field(metadata=at_least(1))

    def __post_init__(self) -> None:
        unknown = [name for name in self.attributes if name not in ATTRIBUTES]
        if unknown:
            raise ConfigError(f"attributes {unknown} must be among {', '.join(ATTRIBUTES)}")


@dataclass(frozen=True)
class RegisterConfig:
    """Registered models are named `{name_prefix}-{variant}`; the newest version gets the alias.

    `license` is what the model card says the weights may be used under: a licence of the Hugging Face Hub. Where that
    is `other`, `license_name` and `license_link` say which.
    """

    experiment: str
    name_prefix: str
    alias: str
    license: str = field(metadata={"rule": (is_licence, LICENCE_RULE)})
    license_name: str | None = None
    license_link: str | None = None

    def __post_init__(self) -> None:
        named = [name for name in ("license_name", "license_link") if getattr(self, name) is not None]
        if named and self.license != OTHER:
            raise ConfigError(
                f"license {self.license!r} has its name and text on the Hub: set {' and '.join(named)} to null, "
                "or license to other"
            )


@dataclass(frozen=True)
class EmbedConfig:
    """Which split the registered model of which variant embeds."""

    variant: str
    split: Split
    batch_size: int = field(metadata=at_least(1))


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml; `train` maps each variant's name to its configuration."""

    seed: int
    corpus: CorpusConfig
    shard: ShardConfig
    model: ModelConfig
    train: Mapping[str, TrainConfig]
    resources: ResourcesConfig
    evaluate: EvaluateConfig
    register: RegisterConfig
    embed: EmbedConfig


@dataclass(frozen=True)
class _RawParams:
    """params.yaml as it is written, with the variants not yet laid over their base."""

    seed: int = field(metadata=between(0, 2**32 - 1))
    variants: tuple[str, ...] = field(metadata=not_empty())
    corpus: CorpusConfig
    shard: ShardConfig
    model: ModelConfig
    train: Mapping[str, Any]
    resources: ResourcesConfig
    evaluate: EvaluateConfig
    register: RegisterConfig
    embed: EmbedConfig


def load_params(path: Path | str) -> Params:
    """Reads and checks a params file. Raises ConfigError that lists every broken key."""
    path = Path(path)
    try:
        mapping = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the params file {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    try:
        return parse_params(mapping)
    except ConfigError as error:
        raise ConfigError(f"{path} breaks its rules:\n  " + str(error).replace("\n", "\n  ")) from error


def parse_params(mapping: Any) -> Params:
    """Params from a mapping of sections; errors as `load_params`."""
    problems: list[str] = []
    raw: _RawParams | None = None
    try:
        raw = from_mapping(_RawParams, mapping, "params")
    except ConfigError as error:
        problems += [line.removeprefix("params.") for line in str(error).splitlines()]
    variants: dict[str, TrainConfig] = {}
    if isinstance(mapping, Mapping) and isinstance(mapping.get("train"), Mapping):
        try:
            variants = _variants(mapping["train"], mapping.get("variants"))
        except ConfigError as error:
            problems.append(str(error))
    if raw is not None and variants and raw.embed.variant not in variants:
        problems.append(f"embed.variant: {raw.embed.variant!r} must be one of the variants {list(variants)}")
    if problems or raw is None:
        raise ConfigError("\n".join(problems))
    sections = {f.name: getattr(raw, f.name) for f in fields(Params) if f.name != "train"}
    return Params(train=variants, **sections)


def _variants(train: Mapping[str, Any], names: Any) -> dict[str, TrainConfig]:
    overrides = {name: section for name, section in train.items() if name != "base"}
    if not isinstance(names, list) or sorted(map(str, names)) != sorted(overrides):
        raise ConfigError(f"variants: {names!r} must list the sections of train besides base: {list(overrides)}")
    base = train.get("base")
    if not isinstance(base, Mapping):
        raise ConfigError("train.base: missing section; it holds what the variants share")
    problems: list[str] = []
    variants = {}
    for name, section in overrides.items():
        try:
            if not isinstance(section, Mapping):
                raise ConfigError(f"train.{name}: {section!r} is not a section; write {{}} to change nothing")
            variants[name] = from_mapping(TrainConfig, _laid_over(base, section), f"train.{name}")
        except ConfigError as error:
            problems += [_where_written(line, name, section or {}) for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return variants


def _laid_over(base: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `section` over it, in sections within sections too."""
    both = {**base, **section}
    for name, value in section.items():
        if isinstance(value, Mapping) and isinstance(base.get(name), Mapping):
            both[name] = _laid_over(base[name], value)
    return both


def _where_written(problem: str, variant: str, section: Mapping[str, Any]) -> str:
    """A variant's problem under the section in which its key is written: its own, or the base."""
    prefix = f"train.{variant}."
    value: Any = section
    for key in problem.removeprefix(prefix).split(":", 1)[0].split("."):
        if not isinstance(value, Mapping):
            break
        if problem.startswith(prefix) and key not in value:
            return problem.replace(prefix, "train.base.", 1)
        value = value.get(key)
    return problem


def preset_names() -> list[str]:
    """The presets that ship with psclap."""
    return sorted(path.stem for path in PRESETS_FOLDER.glob("*.yaml"))


def use_preset(name: str, target: Path, force: bool = False) -> None:
    """Makes `target` (params.yaml) a copy of a preset. Edited params are only overwritten with `force`."""
    if name not in preset_names():
        raise ConfigError(f"no preset {name!r}; presets: {', '.join(preset_names())}")
    presets = {path.read_text() for path in PRESETS_FOLDER.glob("*.yaml")}
    if target.exists() and target.read_text() not in presets and not force:
        raise PsclapError(
            f"{target} differs from every preset: your edits would be lost; commit or copy it, then use --force"
        )
    text = (PRESETS_FOLDER / f"{name}.yaml").read_text()
    with atomic_file(target) as partial:
        partial.write_text(text)
