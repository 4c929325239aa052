"""Small contrastive tasks and batches for tests: no dropout unless asked for, no files."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from conftest import WAVLM

from psclap import distributed
from psclap.config import PRESETS_FOLDER, EncoderConfig, load_params
from psclap.loop_config import ComputeConfig
from psclap.models.build import build_model
from psclap.tags import training_prompts
from psclap.training.batch import Batch, Example
from psclap.training.task import ContrastiveTask

TAGS = ("deep", "raspy", "loud", "British", "female")
CAPTIONS = (
    "A deep, raspy voice.",
    "A loud woman from Britain.",
    "A woman speaks.",
    "A British man whose voice is deep.",
    "Somebody talks.",
)
WITHOUT_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout"), 0.0
)


@dataclass(frozen=True)
class Case:
    """The options of a task that the tests vary."""

    contrastive_loss: str = "info_nce"
    duplicate_captions: str = "positives"
    tag_loss_weight: float = 0.5
    micro_batch_size: int | None = None
    precision: str = "fp32"
    wavlm: bool = False
    gradient_checkpointing: bool = False
    dropout: float = 0.0
    dtype: torch.dtype = torch.float32

    @property
    def tolerance(self) -> float:
        """Of gradients that are equal but for rounding, as `relative_error` has it."""
        return 1e-6 if self.dtype == torch.float32 else 1e-12

    def __str__(self) -> str:
        differing = (f"{name}={value}" for name, value in vars(self).items() if value != getattr(Case, name))
        return ",".join(differing) or "default"


def build_task(case: Case) -> ContrastiveTask:
    """Equal cases give equal weights."""
    params = load_params(PRESETS_FOLDER / "demo.yaml")
    model_config = replace(params.model, projection_dropout=case.dropout)
    if case.wavlm:
        model_config = replace(
            model_config, speech=EncoderConfig(pooling="mean", config=WAVLM | WITHOUT_DROPOUT), normalise_audio=True
        )
    bias = -3.0 if case.contrastive_loss == "sigmoid" else None
    changes: dict[str, Any] = {
        name: getattr(case, name) for name in ("contrastive_loss", "duplicate_captions", "tag_loss_weight")
    }
    compute = ComputeConfig(
        precision=case.precision,  # type: ignore[arg-type]
        gradient_checkpointing=case.gradient_checkpointing,
        micro_batch_size=case.micro_batch_size,
    )
    config = replace(params.train["combined"], initial_logit_bias=bias, compute=compute, **changes)
    texts = [*CAPTIONS, *(prompt for tag in TAGS for prompt in training_prompts(tag))]
    model, processor = build_model(model_config, texts, 16000, seed=3, initial_logit_bias=bias)
    if case.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return ContrastiveTask(model, processor, config, TAGS).to(case.dtype)


def examples(count: int = 16) -> list[Example]:
    """Clips of different lengths, captions that repeat, and clips with no, one and several tags."""
    rng = np.random.default_rng(1)
    return [
        Example(
            clip=rng.normal(0, 0.1, int(rng.integers(4000, 9000))).astype(np.float32),
            caption=CAPTIONS[int(rng.integers(len(CAPTIONS)))],
            tags=tuple(rng.permutation(TAGS)[: rng.integers(4)]),
        )
        for _ in range(count)
    ]


def batch_of_rank(task: ContrastiveTask, of_all: list[Example]) -> Batch:
    """This rank's share of the global batch."""
    size = len(of_all) // distributed.world_size()
    own = of_all[distributed.rank() * size : (distributed.rank() + 1) * size]
    batch = task.collator().collate(own, np.random.default_rng(2))
    return replace(batch, audio=batch.audio.to(task.model.logit_scale.dtype))


def gradients(task: ContrastiveTask) -> dict[str, torch.Tensor]:
    """By parameter name, of those that have one."""
    return {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


def relative_error(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest error of one parameter's gradient, against the norm of all: some gradients, such as that of
    attention's key biases, are zero but for rounding.
    """
    assert got.keys() == expected.keys()
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    return max((got[name] - expected[name]).norm().item() for name in expected) / whole.item()
