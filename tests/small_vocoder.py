"""A tiny HiFi-GAN's training for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_mel import sound

from psclap import distributed
from psclap.loop_config import CheckpointConfig, ComputeConfig, SamplingConfig
from psclap.training.spec import Training
from psclap.tts.hifigan import build_gan
from psclap.tts.vocoder_batch import Batch
from psclap.tts.vocoder_recipe import VocoderRecipe
from psclap.tts.vocoder_settings import DiscriminatorConfig, GeneratorConfig, VocoderConfig, VocoderTrainConfig
from psclap.tts.vocoder_task import VocoderTask

CONFIG = VocoderConfig(
    generator=GeneratorConfig(
        upsample_initial_channel=16,
        upsample_rates=(16, 16),
        upsample_kernel_sizes=(32, 32),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
    ),
    discriminators=DiscriminatorConfig(
        periods=(2, 3), period_channels=(4, 8), num_scales=2, scale_channels=(4, 4, 8, 8, 8, 8, 8)
    ),
)


def train_config(**changes: Any) -> VocoderTrainConfig:
    settings: dict[str, Any] = {
        "sampling": SamplingConfig(),
        "global_batch_size": 4,
        "max_steps": 4,
        "max_epochs": None,
        "freeze": (),
        "optimizer": "adamw",
        "learning_rate": 2e-4,
        "adam_betas": (0.8, 0.99),
        "weight_decay": 0.01,
        "schedule": "constant",
        "warmup_steps": 0,
        "max_grad_norm": None,
        "ema_decay": None,
        "max_skipped_steps": 0,
        "compute": ComputeConfig(),
        "log_every": 1,
        "validate_every": 2,
        "best_metric": "val/mel_l1",
        "patience": None,
        "segment_length": 2048,
        "max_crop_s": 0.5,
        "validation_clips": 3,
    }
    return VocoderTrainConfig(**settings | changes)


def vocoder_training(shards: Path, config: VocoderConfig = CONFIG, **changes: Any) -> Training:
    checkpoints = changes.pop("checkpoints", CheckpointConfig())
    return Training(shards, VocoderRecipe(config, train_config(**changes)), seed=3, checkpoints=checkpoints)


def vocoder_task(**changes: Any) -> VocoderTask:
    return VocoderTask(build_gan(CONFIG, seed=1), train_config(**changes))


def batch_of_rank(task: VocoderTask, num_clips: int = 4) -> Batch:
    """This rank's share of a batch that is the same for however many ranks."""
    collator = task.collator()
    examples = [
        collator.example({}, sound(6000, seed=number), np.random.default_rng(number)) for number in range(num_clips)
    ]
    own = num_clips // distributed.world_size()
    first = distributed.rank() * own
    return collator.collate(examples[first : first + own], np.random.default_rng(0))


def gan_step() -> dict[str, Any]:
    """The losses and gradients of one step, on this rank of however many there are."""
    task = vocoder_task().train()
    parallel = torch.nn.parallel.DistributedDataParallel(task) if distributed.world_size() > 1 else task
    losses = parallel(batch_of_rank(task))
    losses.total.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in task.model.named_parameters()}  # type: ignore[union-attr]
    return {"total": losses.total.detach(), **losses.report, "gradients": gradients}
