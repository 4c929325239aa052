"""Registered models: from a checkpoint folder to a version in MLflow, and back."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Map

import psclap
from pipelines import serving
from pipelines.tracking import STORE_NAME, TrackingStore
from psclap import audio
from psclap.errors import PsclapError
from psclap.files import atomic_folder, sha256_file
from psclap.models.build import load_model
from psclap.schema import TRAINER_STATE_NAME
from psclap.shards.cache import cache_folder
from psclap.storage import redacted

CARD_NAME = "README.md"
PUSH_EXPERIMENT = "psclap-pushed"
_CONTENT_TAG = "psclap.content"
_ARTIFACT = "model"
_REQUIREMENTS = (
    *("aiohttp", "av", "fsspec", "mlflow", "numpy", "pandas", "pyarrow", "pyyaml", "safetensors", "soundfile", "soxr"),
    *("tokenizers", "torch", "transformers", "wrapt"),
)
_CLOUDS = ("adlfs", "gcsfs", "s3fs")  # for audio at URLs of theirs; required where they are installed here
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_ALIAS = re.compile(r"(?!latest$|v\d+$)[A-Za-z0-9][\w-]*", re.IGNORECASE)
_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, name, required=False) for name in ("audio", "text")]),
    outputs=Schema(
        [
            ColSpec(DataType.double, "score", required=False),
            ColSpec(Array(DataType.float), "embedding", required=False),
            ColSpec(DataType.string, "tag", required=False),
            ColSpec(Map(DataType.double), "scores", required=False),
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("task", DataType.string, "score"),
            ParamSpec("candidates", DataType.string, [], shape=(-1,)),
            ParamSpec("ensemble", DataType.boolean, False),
        ]
    ),
)


@dataclass(frozen=True)
class Card:
    """The model card that a registered version carries, and its short form, which the registry lists."""

    readme: str
    description: str

    @property
    def sha256(self) -> str:
        """The hash of the card's text."""
        return hashlib.sha256(self.readme.encode()).hexdigest()


@dataclass(frozen=True)
class Registered:
    """A registered version; `uri` names it for good."""

    name: str
    version: str
    run_id: str
    weights_sha256: str

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.name}/{self.version}"


def register(
    store: TrackingStore,
    run_id: str,
    model_folder: Path,
    name: str,
    alias: str | None,
    tags: Mapping[str, str],
    card: Card | None = None,
) -> Registered:
    """Logs the model to its run and registers it as a new version of `name`, with tags and, where given, the alias.

    Weights that the run has registered already with this card keep their version, so that a rerun adds none.
    """
    client = store.client()
    weights_sha256 = sha256_file(model_folder / "model.safetensors")
    hashes = {"weights_sha256": weights_sha256, **({"card_sha256": card.sha256} if card else {})}
    version = _known_version(client, name, run_id, hashes)
    if version is None:
        with mlflow.start_run(run_id=run_id), tempfile.TemporaryDirectory() as folder:
            served = Path(folder) / _ARTIFACT
            shutil.copytree(model_folder, served, ignore=shutil.ignore_patterns(TRAINER_STATE_NAME))
            if card:
                (served / CARD_NAME).write_text(card.readme, encoding="utf-8")
            logged = mlflow.pyfunc.log_model(
                name=_ARTIFACT,
                python_model=serving.__file__,
                artifacts={_ARTIFACT: str(served)},
                code_paths=[str(Path(psclap.__file__).parent)],
                signature=_SIGNATURE,
                input_example=_input_example(),
                pip_requirements=_pinned_requirements(),
            )
            # The hashes are there from the first moment: a rerun after a kill finds this version by them.
            version = mlflow.register_model(logged.model_uri, name, tags=hashes)
    if card:
        client.update_model_version(name, version.version, card.description)
    if client.get_run(run_id).info.status == "RUNNING":  # whoever logged the model was killed then
        client.set_terminated(run_id)
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    if alias is not None:
        client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version), run_id, weights_sha256)


def _input_example() -> pd.DataFrame:
    """A second of noise as base64, and a caption."""
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    flac = base64.b64encode(audio.encode_flac(wave, 16000)).decode()
    return pd.DataFrame({"audio": [flac], "text": ["A calm, quiet voice."]})


def _known_version(client: Any, name: str, run_id: str, hashes: Mapping[str, str]) -> ModelVersion | None:
    versions = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    return next((v for v in versions if hashes.items() <= v.tags.items()), None)


def _pinned_requirements() -> list[str]:
    """What the served model imports. The rest of its environment follows from the requirements of these."""
    names = [*_REQUIREMENTS, *(name for name in _CLOUDS if importlib.util.find_spec(name))]
    # Without the local part ("+cpu"), which a package index does not serve.
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in names]


def push_model(folder: Path, name: str, alias: str | None = None, tracking_folder: Path = Path("mlflow")) -> str:
    """Registers a checkpoint folder, trained here or imported, as a new version of `name`; returns its URI.

    The version belongs to a run of its own. A folder that is pushed to `name` once more keeps its version, so that a
    push that was killed can be repeated. The trainer's state stays behind.
    Raises CheckpointError for a folder that is no model of ours, PsclapError for names that MLflow would refuse, and
    where the registry cannot be reached.
    """
    if not _NAME.fullmatch(name):
        raise PsclapError(f"{name!r} cannot name a model: use letters, digits, dots, - and _")
    if alias is not None and not _ALIAS.fullmatch(alias):
        raise PsclapError(f"{alias!r} cannot be an alias: use letters, digits, - and _; not 'latest', not 'v1'")
    load_model(folder)
    store = TrackingStore.at(tracking_folder)
    content = _content_sha256(folder)
    try:
        run_id = _run_of_push(store, name, content)
        return register(store, run_id, folder, name, alias, {_CONTENT_TAG: content}).uri
    except (MlflowException, OSError) as error:
        raise PsclapError(
            f"{folder} cannot be registered at {store} ({redacted(str(error))}); start that server, or unset "
            f"MLFLOW_TRACKING_URI to use the registry in {tracking_folder}"
        ) from error


def _run_of_push(store: TrackingStore, name: str, content: str) -> str:
    """The id of the run that stands for one folder's content under one name."""
    client, experiment_id = store.client(), store.experiment_id(PUSH_EXPERIMENT)
    tags = {_CONTENT_TAG: content, "psclap.pushed_to": name}
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment_id], query, order_by=["attributes.start_time"])
    run = found[0] if found else client.create_run(experiment_id, tags=tags, run_name=name)
    return run.info.run_id


def _content_sha256(folder: Path) -> str:
    """A hash of the names and bytes of what `register` takes of a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != TRAINER_STATE_NAME):
        digest.update(f"{path.relative_to(folder)}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def fetch_model(uri: str, tracking_folder: Path = Path("mlflow")) -> Path:
    """The checkpoint folder of a `models:/NAME/VERSION` or `models:/NAME@ALIAS` URI.

    What a server holds is downloaded once a version, to `models` in the cache folder (PSCLAP_CACHE_DIR). Nothing of
    the model is run or unpickled. Raises PsclapError for a URI that names nothing, where there is no registry, and
    for a model that is not ours.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise PsclapError(f"{uri!r} is no model URI; write models:/NAME/VERSION or models:/NAME@ALIAS")
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (tracking_folder / STORE_NAME).is_file():
        raise PsclapError(
            f"{uri}: there is no registry in {tracking_folder.absolute()}; run from the folder where `dvc repro` "
            "ran, or set MLFLOW_TRACKING_URI"
        )
    store = TrackingStore.at(tracking_folder)
    try:
        folder = _downloaded(store, **match.groupdict())
    except (MlflowException, OSError) as error:
        raise PsclapError(
            f"{uri} is not to be had from the registry {store} ({redacted(str(error))}); "
            "`dvc repro` registers the demo's models, MLFLOW_TRACKING_URI chooses another registry"
        ) from error
    return _model_inside(folder, uri)


def _downloaded(store: TrackingStore, name: str, version: str | None, alias: str | None) -> Path:
    """The folder of a version: where it lies if that is on this machine, else in the cache."""
    client = store.client()
    found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
    uri = f"models:/{name}/{found.version}"
    if client.get_model_version_download_uri(name, found.version).startswith(("file:", "/")):
        return Path(mlflow.artifacts.download_artifacts(uri))
    # A version of this name may be deleted and made anew; its source has an id.
    identity = hashlib.sha256(f"{store} {uri} {found.source}".encode()).hexdigest()[:16]
    target = cache_folder() / "models" / f"{name}-{found.version}-{identity}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "download.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with atomic_folder(target) as partial:
                mlflow.artifacts.download_artifacts(uri, dst_path=str(partial))
    return target


def _model_inside(folder: Path, uri: str) -> Path:
    """The checkpoint folder that the MLmodel file of a downloaded model names. Raises PsclapError where it is none."""
    artifacts = mlflow.models.Model.load(folder).flavors.get("python_function", {}).get("artifacts") or {}
    if "path" not in artifacts.get(_ARTIFACT, {}):
        raise PsclapError(f"{uri} was not registered by psclap: it carries no artefact {_ARTIFACT!r}")
    path = (folder / artifacts[_ARTIFACT]["path"]).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise PsclapError(f"{uri} is not to be trusted: its MLmodel file names {path}, which is no part of it")
    return path
