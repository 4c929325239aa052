"""A model by its name, to a folder: a folder here, a URI of a registry, or a repository of the Hugging Face Hub.

The library itself knows no registry. Packages that do name themselves as entry points: `psclap.model_fetchers`
holds, by the scheme of a URI, functions from a URI to a folder; `psclap.model_stores`, one function that registers
a folder under a name.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from pathlib import Path

from psclap.errors import CheckpointError, PsclapError, first_line
from psclap.files import atomic_folder, check_folder_writable, sha256_file
from psclap.remote_code import write_code

_HUB_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.json", "*.txt", "*.safetensors", "*.model", "*.md"]  # no pickles, and no code
_MAX_PATH_LENGTH = 250  # of a name in a folder, as file systems have it
_FETCHERS, _STORES = "psclap.model_fetchers", "psclap.model_stores"


def fetch(model: Path | str, *, pickled: bool = False) -> Path:
    """The checkpoint folder of a model, downloaded where need be; what is in the folder is not looked at.

    `model` is a folder, a URI such as models:/NAME/VERSION or models:/NAME@ALIAS, or a name on the Hub
    (USER/NAME, or USER/NAME@REVISION) where there is no such folder. `pickled`: weights that the Hub has only as
    pytorch_model.bin come, too; who asks for them reads tensors of them and runs nothing. Raises PsclapError where it
    cannot be had.
    """
    if isinstance(model, Path) or (len(model) < _MAX_PATH_LENGTH and Path(model).exists()):
        return Path(model)
    if ":/" in model:
        return _fetch_uri(model)
    if name := _HUB_NAME.fullmatch(model):
        return _download(name["repository"], name["revision"], ["pytorch_model.bin"] if pickled else [])
    return Path(model)


def weights_sha256(folder: Path) -> str:
    """The SHA-256 of a checkpoint's weights, by which models are told apart, whatever they are called.

    Raises CheckpointError where they are not one file.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(
            f"{folder} holds no model.safetensors; give a checkpoint folder with its weights in one file"
        )
    return sha256_file(weights)


def pull(model: str, folder: Path) -> None:
    """Copies a model's checkpoint folder to `folder`, which appears whole or not at all.

    Raises PsclapError where the model cannot be had, and where `folder` is a file or holds files already.
    """
    check_folder_writable(folder)
    if folder.exists() and any(folder.iterdir()):
        raise PsclapError(f"{folder} is not empty; give a folder that does not exist yet")
    source = fetch(model)
    if not source.is_dir():
        raise PsclapError(f"there is no model {model!r}: it is no folder, no models:/ URI and no name on the Hub")
    from psclap.models.build import OUR_TYPES, check_is_ours

    is_dual_encoder = check_is_ours(source, OUR_TYPES) == OUR_TYPES[0]
    with atomic_folder(folder) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        if is_dual_encoder and not any(
            partial.glob("*.py")
        ):  # the Hub's is left there; ours lets the folder load without psclap
            write_code(partial)


def push(folder: Path, name: str, alias: str | None = None) -> str:
    """Registers a checkpoint folder as a new version of `name`, with an alias where one is given; returns its URI.

    Raises PsclapError for a folder that is no model of ours, for names that the registry refuses, and where no
    registry can be reached.
    """
    for store in importlib.metadata.entry_points(group=_STORES):
        return store.load()(folder, name, alias)
    raise PsclapError(f"no installed package keeps models (entry points {_STORES}); install psclap with `make setup`")


def _fetch_uri(uri: str) -> Path:
    scheme = uri.split(":/", 1)[0]
    for fetcher in importlib.metadata.entry_points(group=_FETCHERS, name=scheme):
        return fetcher.load()(uri)
    raise PsclapError(
        f"no installed package can fetch {uri!r}; give a checkpoint folder, a models:/ URI, or a name on the Hub"
    )


def _download(repository: str, revision: str | None, more: list[str]) -> Path:
    """The folder of a repository's safe files, and `more`, in the Hub's cache, downloaded where they are missing."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_HUB_FILES + more))
    except (OSError, ValueError) as error:
        raise PsclapError(
            f"{repository} is no checkpoint folder here, and no model that the Hugging Face Hub or its cache gives: "
            f"{first_line(error)}; correct the path or the name, or give a models:/ URI"
        ) from error
