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

from psclap.errors import PsclapError
from psclap.files import atomic_folder, check_folder_writable
from psclap.remote_code import write_code

_HUB_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.json", "*.txt", "*.safetensors", "*.model", "*.md"]  # no pickles, and no code
_MAX_PATH_LENGTH = 250  # of a name in a folder, as file systems have it
_FETCHERS, _STORES = "psclap.model_fetchers", "psclap.model_stores"


def fetch(model: Path | str) -> Path:
    """The checkpoint folder of a model, downloaded where need be; what is in the folder is not looked at.

    `model` is a folder, a URI such as models:/NAME/VERSION or models:/NAME@ALIAS, or a name on the Hub
    (USER/NAME, or USER/NAME@REVISION) where there is no such folder. Raises PsclapError where it cannot be had.
    """
    if isinstance(model, Path) or (len(model) < _MAX_PATH_LENGTH and Path(model).exists()):
        return Path(model)
    if ":/" in model:
        return _fetch_uri(model)
    if name := _HUB_NAME.fullmatch(model):
        return _download(name["repository"], name["revision"])
    return Path(model)


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
    from psclap.models.build import check_is_ours

    check_is_ours(source)
    with atomic_folder(folder) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        if not any(partial.glob("*.py")):  # the Hub's is left there; ours lets the folder load without psclap
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


def _download(repository: str, revision: str | None) -> Path:
    """The folder of a repository's safe files in the Hub's cache, downloaded where they are not there yet."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PsclapError(
            f"{repository} is no checkpoint folder here, and no model that the Hugging Face Hub or its cache gives: "
            f"{first_line}; correct the path or the name, or give a models:/ URI"
        ) from error
