"""Models of Speech-Clip and Clip-TTS: new ones, those in a folder, and what one takes over from another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from psclap.errors import PsclapError
from psclap.models.build import check_is_ours, load_weights
from psclap.models.fetch import fetch
from psclap.tts.clip_tts import ClipTTSModel
from psclap.tts.config import ClipTTSConfig, SpeechClipConfig
from psclap.tts.mel import MelConfig
from psclap.tts.speech_clip import SpeechClipModel, SpeechPreTrainedModel
from psclap.tts.vocabulary import Vocabulary
from psclap.tts_config import Objective, SpeechModelConfig

MODELS: dict[str, type[SpeechPreTrainedModel]] = {"speech_clip": SpeechClipModel, "clip_tts": ClipTTSModel}
_CONFIGS: dict[str, type[SpeechClipConfig]] = {"speech_clip": SpeechClipConfig, "clip_tts": ClipTTSConfig}


def new_model(
    objective: Objective, sizes: SpeechModelConfig, mel: MelConfig, vocabulary: Vocabulary, seed: int
) -> SpeechPreTrainedModel:
    """A model with random weights, equal for equal arguments."""
    values = asdict(sizes)
    decoder_attention = values.pop("decoder_attention")
    if objective == "clip_tts":
        values |= {
            "speakers": [*vocabulary.speakers],
            "styles": [*vocabulary.styles],
            "style_sets": [[*styles] for styles in vocabulary.style_sets],
            "decoder_attention": decoder_attention,
        }
    config = _CONFIGS[objective](
        symbols=[*vocabulary.symbols],
        languages=[*vocabulary.languages],
        mel=mel.to_dict(),
        num_mel_bins=mel.num_mel_bins,
        **values,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[objective](config)


def load(model: Path | str) -> SpeechPreTrainedModel:
    """The model of a folder, a models:/ URI or a name on the Hub, in evaluation mode.

    Raises CheckpointError for a folder that holds no whole model of this package, PsclapError where there is none.
    """
    folder = fetch(model)
    return load_weights(MODELS[check_is_ours(folder, MODELS)], folder)


def take_over(start: SpeechPreTrainedModel, model: SpeechPreTrainedModel) -> None:
    """Copies to `model` what it has in common with `start`: of a Speech-Clip its text encoder and its aligner.

    The symbols keep their places, as `model` is built with those of `start`. Raises PsclapError where the sizes
    differ.
    """
    if start.config.mel != model.config.mel:
        pairs = [(key, start.config.mel.get(key), value) for key, value in model.config.mel.items()]
        others = ", ".join(f"{key} {theirs} (here: {ours})" for key, theirs, ours in pairs if theirs != ours)
        raise PsclapError(f"start_from: the model to start from takes other mels: {others}; give both one definition")
    weights, own = start.state_dict(), model.state_dict()
    common = {name: weight for name, weight in weights.items() if name in own}
    differing = [name for name, weight in common.items() if weight.shape != own[name].shape]
    if differing:
        name = differing[0]
        raise PsclapError(
            f"start_from: {name} is {tuple(weights[name].shape)} in the model to start from and "
            f"{tuple(own[name].shape)} in this one; give tts.model and tts.mel the sizes that it was trained with"
        )
    model.load_state_dict(common, strict=False)
