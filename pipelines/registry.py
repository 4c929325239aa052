"""Registered models: from a checkpoint folder to a version in MLflow, and back."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
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
from mlflow.types.schema import Array

import psclap
from pipelines import serving
from pipelines.tracking import STORE_NAME, TrackingStore
from psclap import audio
from psclap.errors import PsclapError
from psclap.files import sha256_file
from psclap.schema import TRAINER_STATE_NAME

CARD_NAME = "README.md"
_ARTIFACT = "model"
_REQUIREMENTS = (
    *("mlflow", "numpy", "pandas", "pyarrow", "pyyaml", "safetensors", "soundfile", "soxr"),
    *("tokenizers", "torch", "transformers"),
)
_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, name, required=False) for name in ("audio", "text")]),
    outputs=Schema(
        [
            ColSpec(DataType.double, "score", required=False),
            ColSpec(Array(DataType.float), "embedding", required=False),
        ]
    ),
    params=ParamSchema([ParamSpec("task", DataType.string, "score")]),
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
    alias: str,
    tags: Mapping[str, str],
    card: Card | None = None,
) -> Registered:
    """Logs the model to its run and registers it as a new version of `name`, with tags and the alias.

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
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version), run_id, weights_sha256)


def _input_example() -> pd.DataFrame:
    """A second of noise as base64, and a caption."""
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    flac = base64.b64encode(audio.encode_flac(wave, 16000)).decode()
    return pd.DataFrame({"audio": [flac], "text": ["A calm, quiet voice."]})


def _known_version(client: Any, name: str, run_id: str, hashes: Mapping[str, str]) -> ModelVersion | None:
    versions = client.search_model_versions(f"name='{name}'")
    return next((v for v in versions if v.run_id == run_id and hashes.items() <= v.tags.items()), None)


def _pinned_requirements() -> list[str]:
    # Without the local part ("+cpu"), which a package index does not serve.
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in _REQUIREMENTS]


def fetch_model(uri: str, tracking_folder: Path = Path("mlflow")) -> Path:
    """The checkpoint folder of a `models:/NAME/VERSION` or `models:/NAME@ALIAS` URI, downloaded where need be.

    Raises PsclapError for a URI that names nothing, and where there is no registry.
    """
    if not re.fullmatch(r"models:/[^/@]+(/\d+|@[^/@]+)", uri):
        raise PsclapError(f"{uri!r} is no model URI; write models:/NAME/VERSION or models:/NAME@ALIAS")
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (tracking_folder / STORE_NAME).is_file():
        raise PsclapError(
            f"{uri}: there is no registry in {tracking_folder.absolute()}; run from the folder where `dvc repro` "
            "ran, or set MLFLOW_TRACKING_URI"
        )
    store = TrackingStore.at(tracking_folder)
    store.client()
    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri))
    except (MlflowException, OSError) as error:
        raise PsclapError(
            f"{uri} is not to be had from the registry {store} ({error}); "
            "`dvc repro` registers the demo's models, MLFLOW_TRACKING_URI chooses another registry"
        ) from error
    artifacts = mlflow.models.Model.load(folder).flavors["python_function"].get("artifacts", {})
    if _ARTIFACT not in artifacts:
        raise PsclapError(f"{uri} was not registered by psclap: it carries no artefact {_ARTIFACT!r}")
    return folder / artifacts[_ARTIFACT]["path"]
