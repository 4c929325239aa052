"""params.yaml as frozen dataclasses, one per section.

Built once, at the door: an unknown, missing, mistyped or out-of-range key raises one ConfigError that lists
every such key. A training variant is the section `train.base` with the keys of `train.<variant>` over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from psclap.data_config import CorpusConfig, ShardConfig, check_url
from psclap.errors import ConfigError, PsclapError
from psclap.files import atomic_file
from psclap.licences import LICENCE_RULE, OTHER, is_licence
from psclap.loop_config import LoopConfig, ResourcesConfig
from psclap.schema import CaptionSet, Split
from psclap.storage import NO_CREDENTIALS, has_credentials, redacted
from psclap.strict import above, at_least, between, from_mapping, not_empty
from psclap.tags import ATTRIBUTES
from psclap.tts_config import VoiceConfig

T = TypeVar("T")

PRESETS_FOLDER = Path(__file__).parent / "presets"


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


_RANKS = ("MRR", "R@1", "R@5", "R@10")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """One variant of the dual encoder: its captions, crops and losses, and the loop's keys."""

    caption_sets: tuple[CaptionSet, ...] = field(metadata=not_empty())
    max_crop_s: float = field(metadata=at_least(0.1))
    contrastive_loss: Literal["info_nce", "sigmoid"]
    initial_logit_bias: float | None
    duplicate_captions: Literal["positives", "negatives"]
    tag_loss_weight: float = field(metadata=at_least(0))
    validation_set: CaptionSet

    # Retrieval is speech to caption where not said.
    BEST_METRICS = ("val/UAR", *(f"val/{prefix}{name}" for prefix in ("", "text_to_audio/") for name in _RANKS))

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.caption_sets)) != len(self.caption_sets):
            raise ConfigError(f"caption_sets {list(self.caption_sets)} names a set twice")
        if (self.initial_logit_bias is None) == (self.contrastive_loss == "sigmoid"):
            raise ConfigError(
                f"initial_logit_bias {self.initial_logit_bias}: the sigmoid loss needs one, such as -10.0; "
                "info_nce has none, leave it null"
            )
        sources = len(self.caption_sets) * len(self.sampling.mixing_corpora or (None,))
        if len(self.sampling.mixing_probabilities or range(sources)) != sources:
            raise ConfigError(
                f"sampling.mixing_probabilities {list(self.sampling.mixing_probabilities or ())}: one is needed for "
                f"each of the {sources} sources (caption sets x corpora)"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """What evaluation scores; the attributes whose candidates the test set carries, of `attributes`."""

    split: Split
    caption_sets: tuple[CaptionSet, ...] = field(metadata=not_empty())
    attributes: tuple[str, ...] = field(metadata=not_empty())

    def __post_init__(self) -> None:
        _check_attributes(self.attributes)


def _check_attributes(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in ATTRIBUTES]:
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
class ScoreOptions:
    """What batch scoring makes of each clip.

    Cosines with `captions`; the nearest tag of each of `attributes`. Recordings longer than `window_s` are cut into
    windows, `hop_s` apart (null: one after the other); with a null `window_s` every clip is embedded whole.
    `embedding_type` is that of the table. `precision`: see Embedder. A block of `block_clips` clips is scored and
    committed at a time. Above `max_reject_rate` of clips that cannot be scored the job fails, when all is written.
    """

    captions: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    window_s: float | None = field(default=30.0, metadata=above(0))
    hop_s: float | None = field(default=None, metadata=above(0))
    embedding_type: Literal["float32", "float16"] = "float32"
    precision: Literal["stored", "bf16", "auto"] = "auto"
    block_clips: int = field(default=256, metadata=at_least(1))
    max_reject_rate: float = field(default=0.5, metadata=between(0, 1))

    def __post_init__(self) -> None:
        _check_attributes(self.attributes)
        if repeated := sorted({text for text in self.captions if self.captions.count(text) > 1}):
            raise ConfigError(f"captions {repeated} stand there twice; leave one of each")
        if empty := [text for text in self.captions if not text.strip()]:
            raise ConfigError(f"captions {empty} say nothing; leave them out")
        if self.hop_s is not None and not (self.window_s and self.hop_s <= self.window_s):
            raise ConfigError(
                f"hop_s {self.hop_s:g} must be at most window_s {self.window_s}, or sound would be left out"
            )


@dataclass(frozen=True)
class ScoreConfig:
    """Which split the registered model of which variant scores, and how.

    Where the workers' machines share no file system they write to a folder under `url`, which is brought here in the
    end; null: to the run's folder.
    """

    variant: str
    split: Split
    options: ScoreOptions
    url: str | None = None

    def __post_init__(self) -> None:
        check_url(self.url, "s3://bucket/scored; null is the run's folder")


@dataclass(frozen=True)
class RewardConfig:
    """Best-of-N by the models of `variants`, shown on the demo's voices; with other corpora leave `variants` empty.

    Each candidate follows each attribute that its prompt asks for with `follow_probability`, else takes any value. The
    judge is calibrated on `calibration_clips` of train, and its accuracy is measured on test.
    """

    variants: tuple[str, ...]
    prompts: int = field(metadata=at_least(4))
    candidates: int = field(metadata=between(2, 128))
    follow_probability: float = field(metadata=between(0, 1))
    calibration_clips: int = field(metadata=at_least(24))


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml; `train` maps each variant's name to its configuration, `voices` each voice's."""

    seed: int
    corpus: CorpusConfig
    shard: ShardConfig
    model: ModelConfig
    train: Mapping[str, TrainConfig]
    resources: ResourcesConfig
    evaluate: EvaluateConfig
    register: RegisterConfig
    score: ScoreConfig
    reward: RewardConfig
    voices: Mapping[str, VoiceConfig]


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
    score: ScoreConfig
    reward: RewardConfig
    voices: tuple[str, ...]
    tts: Mapping[str, Any] = field(default_factory=dict)


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
    voices: dict[str, VoiceConfig] = {}
    if raw is not None:
        try:
            voices = _voices(raw)
        except ConfigError as error:
            problems.append(str(error))
    if raw is not None and variants and raw.score.variant not in variants:
        problems.append(f"score.variant: {raw.score.variant!r} must be one of the variants {list(variants)}")
    problems += _reward_problems(raw, variants) if raw is not None and variants else []
    problems += [f"{name} has {NO_CREDENTIALS}" for name in _names_with_credentials(mapping)]
    if problems or raw is None:
        raise ConfigError(redacted("\n".join(problems)))
    sections = {f.name: getattr(raw, f.name) for f in fields(Params) if f.name not in ("train", "voices")}
    return Params(train=variants, voices=voices, **sections)


def _names_with_credentials(value: Any, name: str = "") -> Iterator[str]:
    """The names of the values, in sections in sections, that are URLs with credentials."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _names_with_credentials(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _names_with_credentials(item, f"{name}[{number}]")
    elif isinstance(value, str) and has_credentials(value):
        yield name


def _reward_problems(raw: _RawParams, variants: Mapping[str, TrainConfig]) -> list[str]:
    problems = [
        f"reward.variants: {name!r} must be one of the variants {list(variants)}"
        for name in raw.reward.variants
        if name not in variants
    ]
    if raw.reward.variants and raw.corpus.name != "demo":
        problems.append(
            f"reward.variants: {list(raw.reward.variants)} must be [] with the corpus {raw.corpus.name!r}: best-of-N "
            "is shown on the voices of the corpus 'demo'; for candidates of your own there is `psclap rank`"
        )
    return problems


def _variants(train: Mapping[str, Any], names: Any) -> dict[str, TrainConfig]:
    sections = _over_base(train, names, "train", "variants")
    return _built(sections, train, "train", lambda section, where: from_mapping(TrainConfig, section, where))


def _voices(raw: _RawParams) -> dict[str, VoiceConfig]:
    if not raw.voices and not raw.tts:
        return {}
    voices = _built(_over_base(raw.tts, raw.voices, "tts", "voices"), raw.tts, "tts", _voice)
    problems = [
        f"tts.{name}.say.reward: {voice.say.reward!r} must be one of the variants {list(raw.variants)}"
        for name, voice in voices.items()
        if voice.say.reward not in raw.variants
    ]
    problems += [
        f"tts.{name}.say.prompts: {voice.say.prompts} must be 0 with the corpus {voice.corpus.name!r}: best-of-N is "
        "shown and judged on the voices of the corpus 'demo_tts', with the styles of 'demo'"
        for name, voice in voices.items()
        if voice.say.prompts and (voice.corpus.name, raw.corpus.name) != ("demo_tts", "demo")
    ]
    for name in raw.voices:
        own = raw.tts[name].get("say")
        if isinstance(own, Mapping) and "reward" in own:
            problems.append(f"tts.{name}.say.reward: all voices have one reward; write it in tts.base.say")
        if "corpus" not in raw.tts[name]:
            problems.append(f"tts.{name}.corpus: missing section; a voice has a corpus of its own, not tts.base")
    if problems:
        raise ConfigError("\n".join(problems))
    return voices


def _voice(section: Mapping[str, Any], where: str) -> VoiceConfig:
    """A voice; both of its trainings lie over what they share, its section `train`."""
    shared, own = section.get("train"), {name: value for name, value in section.items() if name != "train"}
    for name in ("speech_clip", "clip_tts"):
        if isinstance(shared, Mapping) and isinstance(own.get(name), Mapping):
            own[name] = _laid_over(shared, own[name])
    return from_mapping(VoiceConfig, own, where)


def _over_base(section: Mapping[str, Any], names: Any, where: str, listed: str) -> dict[str, Mapping[str, Any]]:
    """The sections that `names` lists, each laid over the section `base`."""
    overrides = {name: value for name, value in section.items() if name != "base"}
    if not isinstance(names, (list, tuple)) or sorted(map(str, names)) != sorted(overrides):
        raise ConfigError(f"{listed}: {names!r} must list the sections of {where} besides base: {list(overrides)}")
    base = section.get("base")
    if not isinstance(base, Mapping):
        raise ConfigError(f"{where}.base: missing section; it holds what the {listed} share")
    if wrong := [name for name, value in overrides.items() if not isinstance(value, Mapping)]:
        value = overrides[wrong[0]]
        raise ConfigError(f"{where}.{wrong[0]}: {value!r} is not a section; write {{}} to change nothing")
    return {name: _laid_over(base, value) for name, value in overrides.items()}


def _built(
    sections: Mapping[str, Mapping[str, Any]],
    written: Mapping[str, Any],
    where: str,
    build: Callable[[Mapping[str, Any], str], T],
) -> dict[str, T]:
    """Each section as a dataclass; every broken key is named where it is written, in the section's own or in base."""
    problems: list[str] = []
    built = {}
    for name, section in sections.items():
        try:
            built[name] = build(section, f"{where}.{name}")
        except ConfigError as error:
            own = written[name]
            problems += [
                _where_written(line, f"{where}.{name}.", f"{where}.base.", own) for line in str(error).splitlines()
            ]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return built


def _laid_over(base: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `section` over it, in sections within sections too."""
    both = {**base, **section}
    for name, value in section.items():
        if isinstance(value, Mapping) and isinstance(base.get(name), Mapping):
            both[name] = _laid_over(base[name], value)
    return both


def _where_written(problem: str, prefix: str, base: str, section: Mapping[str, Any]) -> str:
    """A section's problem under the section in which its key is written: its own, or the base."""
    value: Any = section
    for key in problem.removeprefix(prefix).split(":", 1)[0].split("."):
        if not isinstance(value, Mapping):
            break
        if problem.startswith(prefix) and key not in value:
            return problem.replace(prefix, base, 1)
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
