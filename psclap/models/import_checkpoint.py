"""The paper's released checkpoints (a `state_dict` in a `.pth.tar`) as model folders of ours.

Nothing of a file is run, and no key of it is passed over in silence: each one is taken, or left out by a rule that
stands here, or it refuses the import. The encoders' names give configuration and tokenizer, never weights.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from psclap.config import PRESETS_FOLDER, EncoderConfig, ModelConfig, load_params
from psclap.errors import CheckpointError
from psclap.files import atomic_folder, check_folder_writable, refuse_existing, share_files
from psclap.models.choice import dual_config_for, encoder_config_of, feature_extractor_for, tokenizer_for
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.models.quiet import no_progress_bars
from psclap.models.released import read_state_dict

SPEECH_ENCODER = "microsoft/wavlm-large"
TEXT_ENCODER = "ibm-granite/granite-embedding-278m-multilingual"
SAMPLE_RATE_HZ = 16000

_OUR_PREFIX = {"audio_branch.base.": "audio_model.", "text_branch.base.": "text_model."}
# A weight norm's two parts, as torch's older and newer classes call them.
_WEIGHT_NORM = {
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}
_LEFT_OUT = re.compile(
    r"text_branch\.base\.pooler\."  # the release takes the CLS vector, and never trained the pooler
    r"|text_branch\.base\.embeddings\.(position_ids|token_type_ids)$"  # buffers that count from 0, or are 0
)


@dataclass(frozen=True)
class Imported:
    """What an import took, and what it did not: `converted` counts tensors by the type that they had."""

    num_tensors: int
    num_parameters: int
    left_out: tuple[str, ...]
    converted: Mapping[str, int]


def import_checkpoint(
    file: Path | str,
    folder: Path | str,
    variant: str,
    speech_encoder: str = SPEECH_ENCODER,
    text_encoder: str = TEXT_ENCODER,
) -> Imported:
    """Makes the model folder of a released checkpoint, which must not exist yet. The weights become float32.

    The encoders are names of the Hub or folders. Raises CheckpointError for a file that is no plain state_dict or does
    not fit the encoders, with every key that is in the way, and PsclapError for the rest; neither leaves anything.
    """
    file, folder = Path(file), Path(folder)
    refuse_existing(folder)
    check_folder_writable(folder)
    released = read_state_dict(file)
    model, processor = _empty_model(variant, speech_encoder, text_encoder)
    left_out = tuple(sorted(key for key in released if _LEFT_OUT.match(key)))
    found = {key: tensor for key, tensor in released.items() if key not in left_out}
    weights = _fitting(file, found, model.state_dict())
    converted = Counter(str(weight.dtype).removeprefix("torch.") for weight in weights.values())
    del converted["float32"]
    model.load_state_dict(_unshared(weights), assign=True)
    with atomic_folder(folder) as partial, no_progress_bars():
        try:
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
            share_files(partial)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot write {folder}: {error}; is the disk full?") from error
    return Imported(len(weights), model.num_parameters(), left_out, dict(converted))


def _unshared(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in float32, no two of them in one place: safetensors does not write such."""
    places: set[int] = set()
    own = {}
    for key, weight in weights.items():
        own[key] = weight.clone() if weight.data_ptr() in places else weight
        places.add(weight.data_ptr())
    return {key: weight.float() for key, weight in own.items()}


def _empty_model(
    variant: str, speech_encoder: str, text_encoder: str
) -> tuple[ParaSpeechCLAPModel, ParaSpeechCLAPProcessor]:
    """The published model, whose tensors have shapes but no memory, and its processor."""
    config = _published(speech_encoder, text_encoder)
    audio_config, text_config = encoder_config_of(config.speech), encoder_config_of(config.text)
    tokenizer = tokenizer_for(config, ())
    _check_vocabulary(tokenizer, text_config.vocab_size, text_encoder)
    with torch.device("meta"):
        model = ParaSpeechCLAPModel(dual_config_for(config, audio_config, text_config, variant=variant))
    extractor = feature_extractor_for(audio_config, speech_encoder, SAMPLE_RATE_HZ, config.normalise_audio)
    return model, ParaSpeechCLAPProcessor(extractor, tokenizer)


def _published(speech_encoder: str, text_encoder: str) -> ModelConfig:
    published = load_params(PRESETS_FOLDER / "paper.yaml").model
    return replace(
        published,
        speech=EncoderConfig(pooling=published.speech.pooling, pretrained=speech_encoder),
        text=EncoderConfig(pooling=published.text.pooling, pretrained=text_encoder),
    )


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, text_encoder: str) -> None:
    if len(tokenizer) > vocab_size:
        raise CheckpointError(
            f"the tokenizer of {text_encoder!r} has {len(tokenizer)} tokens, its config.json only {vocab_size}; "
            "give the text encoder that the checkpoint was trained with"
        )


def _fitting(
    file: Path, released: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The released tensors under our names. Raises CheckpointError, which lists all, where any key does not fit."""
    our_name = {_released_name(name): name for name in expected}
    weights: dict[str, torch.Tensor] = {}
    problems: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for key, tensor in released.items():
        name = our_name.get(_newer_name(key))
        misfit = _misfit(tensor, None if name is None else expected[name], name in weights)
        if misfit is not None:
            problems[misfit[0]].append((key, misfit[1]))
        if name is not None:
            weights[name] = tensor
    problems["missing"] = [(key, _shape(expected[name])) for key, name in our_name.items() if name not in weights]
    listing = [line for kind in sorted(problems) if problems[kind] for line in _section(kind, problems[kind])]
    if listing:
        raise CheckpointError(
            f"{file} does not fit the encoders; nothing was imported. Give the encoders that it was trained with "
            "(--speech-encoder, --text-encoder), or fetch it again.\n" + "\n".join(listing)
        )
    return weights


def _misfit(tensor: torch.Tensor, expected: torch.Tensor | None, is_there: bool) -> tuple[str, str] | None:
    """What is wrong with a tensor, in general and in particular."""
    shape = _shape(tensor)
    if expected is None:
        return "unexpected", shape
    if is_there:
        return "there twice, by its older and its newer name", shape
    if tensor.shape != expected.shape:
        return "of the wrong shape", f"{shape} instead of {_shape(expected)}"
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        return "not of dense floating-point numbers", f"{tensor.dtype}, {tensor.layout}".replace("torch.", "")
    if not tensor.isfinite().all():
        return "not finite", shape
    return None


def _newer_name(key: str) -> str:
    for older, newer in _WEIGHT_NORM.items():
        if key.endswith(older):
            return key.removesuffix(older) + newer
    return key


def _released_name(name: str) -> str:
    for theirs, ours in _OUR_PREFIX.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _section(kind: str, entries: Sequence[tuple[str, str]]) -> list[str]:
    """A heading, and one line for all keys that differ in their layer's number alone."""
    alike: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for key, what in sorted(entries):
        number = re.search(r"(?<=\.)\d+(?=\.)", key)
        pattern = f"{key[: number.start()]}*{key[number.end() :]}" if number else key
        alike[pattern, what][int(number[0]) if number else 0] = key
    lines = [f"{kind} ({len(entries)}):"]
    for (pattern, what), keys in alike.items():
        if len(keys) == 1:
            lines += [f"  {key} ({what})" for key in keys.values()]
        else:
            lines.append(f"  {pattern} ({what}), * = {_ranges(sorted(keys))}")
    return lines


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers, runs of them shortened.

    >>> _ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
