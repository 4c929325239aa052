"""The section `tts` of params.yaml, Speech-Clip and Clip-TTS, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from psclap.data_config import CorpusConfig, ShardConfig
from psclap.errors import ConfigError
from psclap.loop_config import LoopConfig
from psclap.schema import Split
from psclap.strict import above, at_least, between

Objective = Literal["speech_clip", "clip_tts"]
GRIFFIN_LIM = "griffin-lim"
"""The vocoder that needs no weights; its name, as others are folders or names on the Hub."""


@dataclass(frozen=True)
class SpeechModelConfig:
    """The sizes of both models; the defaults are the paper's (Clip-TTS, section 5, model structure)."""

    hidden_size: int = field(default=256, metadata=at_least(8))
    num_blocks: int = field(default=4, metadata=at_least(1))
    num_heads: int = field(default=2, metadata=at_least(1))
    conv_size: int = field(default=1024, metadata=at_least(8))
    conv_kernels: tuple[int, ...] = (9, 1)
    dropout: float = field(default=0.1, metadata=between(0, 0.9))
    duration_dropout: float = field(default=0.5, metadata=between(0, 0.9))
    aligner_size: int = field(default=80, metadata=at_least(1))
    aligner_temperature: float = field(default=0.05, metadata=above(0))
    decoder_attention: Literal["causal", "full"] = "causal"

    def __post_init__(self) -> None:
        if len(self.conv_kernels) != 2 or not all(kernel % 2 == 1 for kernel in self.conv_kernels):
            raise ConfigError(f"conv_kernels {list(self.conv_kernels)} must be two odd numbers, such as [9, 1]")
        if self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                f"hidden_size {self.hidden_size} must be divisible by twice the {self.num_heads} num_heads"
            )


@dataclass(frozen=True, kw_only=True)
class SpeechTrainConfig(LoopConfig):
    """One training of Speech-Clip or Clip-TTS: the weights of its losses, and the loop's keys.

    `objective` says which. A weight of 0 leaves a loss out: without `alignment_weight` the aligner keeps what it was
    started with. `binarisation_weight` makes alignments sharp sooner on short and clean clips; on real sentences, from
    the first step on, it makes the aligner sure of a path that it has not learnt, and durations collapse. clip_tts
    starts from the text encoder and the aligner of the voice's speech_clip where `start_from` names that.
    """

    objective: Objective
    start_from: Literal["speech_clip"] | None = None
    max_clip_s: float = field(metadata=above(0))
    alignment_weight: float = field(default=1.0, metadata=at_least(0))
    binarisation_weight: float = field(default=0.0, metadata=at_least(0))
    frame_weight: float = field(default=1.0, metadata=at_least(0))
    pooled_weight: float = field(default=1.0, metadata=at_least(0))
    duration_weight: float = field(default=1.0, metadata=above(0))
    mel_weight: float = field(default=1.0, metadata=above(0))

    BEST_METRICS: ClassVar[tuple[str, ...]] = (
        *("val/MRR", "val/R@1", "val/R@5", "val/R@10", "val/text_to_mel/MRR", "val/text_to_mel/R@1"),
        *("val/mel_mae", "val/duration_mae"),
    )
    LOWER_IS_BETTER: ClassVar[tuple[str, ...]] = ("val/mel_mae", "val/duration_mae")

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss, by its name in the report."""
        return {
            "alignment": self.alignment_weight,
            "binarisation": self.binarisation_weight,
            "frames": self.frame_weight,
            "pooled": self.pooled_weight,
            "duration": self.duration_weight,
            "mel": self.mel_weight,
        }

    def __post_init__(self) -> None:
        super().__post_init__()
        of_clip_tts = self.best_metric in self.LOWER_IS_BETTER
        if of_clip_tts != (self.objective == "clip_tts"):
            raise ConfigError(
                f"best_metric {self.best_metric!r} is not measured for {self.objective}; choose "
                + ("val/mel_mae" if self.objective == "clip_tts" else "val/MRR")
            )
        compute = self.compute
        if compute.compile or compute.gradient_checkpointing or compute.micro_batch_size is not None:
            raise ConfigError("compute: text to speech knows precision alone; leave the other keys out")
        sampling = self.sampling
        if sampling.class_balance != "none" or sampling.distinct_captions or sampling.mixing_corpora:
            raise ConfigError(
                "sampling: class_balance, distinct_captions and mixing_corpora are of captions and tags; leave them out"
            )
        if not self.alignment_weight and self.start_from is None:
            raise ConfigError("alignment_weight 0 needs the aligner of a speech_clip: name it in start_from")


@dataclass(frozen=True)
class SpeechEvaluateConfig:
    """What evaluation says and measures: at most `max_clips` of the split, through `vocoder`.

    `vocoder` is griffin-lim, a folder, or a name on the Hugging Face Hub; `psclap say --vocoder` takes the same.
    """

    split: Split
    max_clips: int = field(metadata=at_least(2))
    vocoder: str = GRIFFIN_LIM


@dataclass(frozen=True)
class SayConfig:
    """Best-of-N by a reward model, shown on prompts of the demo's attributes; 0 prompts leave it out.

    `reward` is the variant of the dual encoder that chooses.
    """

    reward: str
    prompts: int = field(metadata=at_least(0))
    candidates: int = field(metadata=between(1, 128))
    calibration_clips: int = field(metadata=at_least(24))


@dataclass(frozen=True)
class VoiceConfig:
    """A voice: a corpus, its shards, and the Speech-Clip and Clip-TTS that are trained on it.

    `mel` is the spectrogram's definition (`psclap.tts.mel.MelConfig`), whose sample rate the shards have. Both
    trainings have `cpu_workers` in place of those of `resources`, where that is not null.
    """

    corpus: CorpusConfig
    shard: ShardConfig
    mel: Mapping[str, Any]
    model: SpeechModelConfig
    speech_clip: SpeechTrainConfig
    clip_tts: SpeechTrainConfig
    evaluate: SpeechEvaluateConfig
    say: SayConfig
    cpu_workers: int | None = field(default=None, metadata=at_least(0))

    def __post_init__(self) -> None:
        if not self.shard.phonemes:
            raise ConfigError(
                "shard.phonemes must be true: models of speech are trained on what transcripts are said as, which is "
                "found when the clips are sharded"
            )
        for name in ("speech_clip", "clip_tts"):
            objective = getattr(self, name).objective
            if objective != name:
                raise ConfigError(f"{name}.objective {objective!r} must be {name}")
