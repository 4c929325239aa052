"""A file of tensors that torch.save wrote, read without trust: no code of it is run. It is mapped where it can be."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from psclap.errors import CheckpointError, first_line

_ZIP_MAGIC = b"PK\x03\x04"


def read_state_dict(file: Path | str) -> dict[str, torch.Tensor]:
    """The tensors by name. A zip (torch 1.6 and later) is mapped into memory; an older file is read.

    Raises CheckpointError for everything that is not a plain dictionary of names and tensors.
    """
    file = Path(file)
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}; give a released .pth.tar file") from error
    if len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < file.stat().st_size:
        raise CheckpointError(
            f"{file} is a safetensors file, and the released checkpoints are torch files (.pth.tar); a model folder "
            "with such a file needs no import: give it to --model"
        )
    return _checked(file, _load(file, is_zip=start.startswith(_ZIP_MAGIC)))


def _load(file: Path, is_zip: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's protocols, before what they lead to is refused
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"code ({code[1]})" if code else "something other than tensors"
        raise CheckpointError(
            f"{file} holds {what}; it was not run, and cannot be imported: fetch the release"
        ) from error
    except Exception as error:  # torch raises whatever a broken file brings it to: EOFError, KeyError, OSError, ...
        reason = first_line(error).split(". This is")[0]
        raise CheckpointError(f"{file} is truncated, or no torch file ({reason}); fetch it again") from error


def _checked(file: Path, loaded: Any) -> dict[str, torch.Tensor]:
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{file} holds a {type(loaded).__name__}, not a state_dict (a dictionary of tensors by name)"
        )
    others = [key for key, value in loaded.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    if others or not loaded:
        found = ", ".join(map(repr, others[:5])) or "nothing"
        raise CheckpointError(
            f"{file} is no plain state_dict: it holds {found} that {'are' if others else 'is'} no tensor by name; "
            "take the state_dict out of it with torch.save"
        )
    return dict(loaded)
