"""Registered models: from a checkpoint folder to a version in MLflow, and back."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

import psclap
from pipelines.served import SERVED
from pipelines.tracking import STORE_NAME, TrackingStore
from psclap import log
from psclap.errors import PsclapError
from psclap.files import atomic_folder, sha256_file
from psclap.models.build import check_is_ours, load_model, load_weights
from psclap.models.fetch import weights_sha256
from psclap.schema import TRAINER_STATE_NAME
from psclap.shards.cache import cache_folder
from psclap.storage import redacted
from psclap.tts.clip_tts import ClipTTSModel

CARD_NAME = "README.md"
PUSH_EXPERIMENT = "psclap-pushed"
_CONTENT_TAG = "psclap.content"
"""Of a version: the hash of all files of its model, taken before they leave this machine."""
_WEIGHTS_TAG = "weights_sha256"
_ARTIFACT = "model"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_ALIAS = re.compile(r"(?!latest$|v\d+$)[A-Za-z0-9][\w-]*", re.IGNORECASE)


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

    Files that the run has registered already with this card keep their version, so that a rerun adds none. Raises
    PsclapError where the registry does not take it.
    """
    with _registering(model_folder, store):
        return _register(store, run_id, model_folder, name, alias, tags, card)


@contextmanager
def _registering(folder: Path, store: TrackingStore) -> Iterator[None]:
    """Makes what the registry raises a sentence."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise PsclapError(
            f"{folder} cannot be registered at {store} ({redacted(str(error))}); start that server, or unset "
            "MLFLOW_TRACKING_URI to use the embedded registry, and run this again: nothing is registered twice"
        ) from error


def _register(
    store: TrackingStore,
    run_id: str,
    model_folder: Path,
    name: str,
    alias: str | None,
    tags: Mapping[str, str],
    card: Card | None,
) -> Registered:
    client, by = store.client(), SERVED[check_is_ours(model_folder, SERVED)]
    weights = weights_sha256(model_folder)
    hashes = {_WEIGHTS_TAG: weights, _CONTENT_TAG: _content_sha256(model_folder, card)}
    version = _known_version(client, name, run_id, hashes)
    if version is None:
        with mlflow.start_run(run_id=run_id), tempfile.TemporaryDirectory() as folder:
            files = Path(folder) / _ARTIFACT
            shutil.copytree(model_folder, files, ignore=shutil.ignore_patterns(TRAINER_STATE_NAME))
            if card:
                (files / CARD_NAME).write_text(card.readme, encoding="utf-8")
            logged = mlflow.pyfunc.log_model(
                name=_ARTIFACT,
                python_model=by.code,
                artifacts={_ARTIFACT: str(files)},
                code_paths=[str(Path(psclap.__file__).parent)],
                signature=by.signature,
                input_example=by.example(),
                pip_requirements=by.pinned_requirements(),
            )
            # The hashes are there from the first moment: a rerun after a kill finds this version by them.
            mlflow.register_model(logged.model_uri, name, tags=hashes)
        version = _known_version(client, name, run_id, hashes)
        assert version is not None
    if card:
        client.update_model_version(name, version.version, card.description)
    if client.get_run(run_id).info.status == "RUNNING":  # whoever logged the model was killed then
        client.set_terminated(run_id)
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    if alias is not None:
        client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version), run_id, weights)


def _known_version(client: Any, name: str, run_id: str, hashes: Mapping[str, str]) -> ModelVersion | None:
    """The version of a run with these hashes, and only that one.

    MLflow's client sends a request again whose answer was lost, which makes a second version: the first one stays.
    """
    versions = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    same = sorted((v for v in versions if hashes.items() <= v.tags.items()), key=lambda v: int(v.version))
    for other in same[1:]:
        client.delete_model_version(name, other.version)
    return same[0] if same else None


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
    _check_whole(folder)
    store = TrackingStore.at(tracking_folder)
    content = _content_sha256(folder)
    with _registering(folder, store):
        run_id = _run_of_push(store, name, content)
    return register(store, run_id, folder, name, alias, {}).uri


def _check_whole(folder: Path) -> None:
    """Raises CheckpointError for a folder that holds no whole model of a type that is served."""
    if check_is_ours(folder, SERVED) == ClipTTSModel.config_class.model_type:
        load_weights(ClipTTSModel, folder)
    else:
        load_model(folder)


def _run_of_push(store: TrackingStore, name: str, content: str) -> str:
    """The id of the run that stands for one folder's content under one name."""
    client, experiment_id = store.client(), store.experiment_id(PUSH_EXPERIMENT)
    tags = {_CONTENT_TAG: content, "psclap.pushed_to": name}
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    search = partial(client.search_runs, [experiment_id], query, order_by=["attributes.start_time"])
    if not search():
        client.create_run(experiment_id, tags={**tags, **log.tags()}, run_name=name)
    first, *others = search()
    for other in others:  # of a request that was sent again because its answer was lost
        client.delete_run(other.info.run_id)
    return first.info.run_id


def _content_sha256(folder: Path, card: Card | None = None) -> str:
    """A hash of the names and bytes of what `register` takes of a folder, with a card where one is put there."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    hashes = {name: sha256_file(path) for name, path in files.items() if name.name != TRAINER_STATE_NAME}
    if card:
        hashes[Path(CARD_NAME)] = card.sha256
    digest = hashlib.sha256()
    for name, sha256 in sorted(hashes.items()):
        digest.update(f"{name}\0{sha256}\n".encode())
    return digest.hexdigest()


def fetch_model(uri: str, tracking_folder: Path = Path("mlflow")) -> Path:
    """The checkpoint folder of a `models:/NAME/VERSION` or `models:/NAME@ALIAS` URI.

    What a server holds is downloaded once a version, to `models` in the cache folder (PSCLAP_CACHE_DIR). Nothing of
    the model is run or unpickled, and its files are those that were registered, by the version's hash. Raises
    PsclapError for a URI that names nothing, where there is no registry, for a model that is not ours, and for one
    whose files were changed.
    """
    with _version_of(uri, tracking_folder) as (store, found):
        folder = _downloaded(store, found)
    model = _checked(folder, found)
    if _CONTENT_TAG not in found.tags:
        what = "only its weights are" if _WEIGHTS_TAG in found.tags else "nothing of it is"
        log.warning(
            f"{uri} carries no hash of its files: {what} checked against what was registered; `dvc repro -f register` "
            "or `psclap push` registers it with one",
            model=uri,
        )
    return model


def versioned(uri: str, tracking_folder: Path = Path("mlflow")) -> str:
    """`models:/NAME/VERSION` of a URI that may name the version by an alias. Raises as `fetch_model`."""
    with _version_of(uri, tracking_folder) as (_, found):
        return f"models:/{found.name}/{found.version}"


@contextmanager
def _version_of(uri: str, tracking_folder: Path) -> Iterator[tuple[TrackingStore, ModelVersion]]:
    """The registered version that a URI names, and its store, whose errors become a PsclapError within the block."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise PsclapError(f"{uri!r} is no model URI; write models:/NAME/VERSION or models:/NAME@ALIAS")
    name, version, alias = match.group("name", "version", "alias")
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (tracking_folder / STORE_NAME).is_file():
        raise PsclapError(
            f"{uri}: there is no registry in {tracking_folder.absolute()}; run from the folder where `dvc repro` "
            "ran, or set MLFLOW_TRACKING_URI"
        )
    store = TrackingStore.at(tracking_folder)
    try:
        client = store.client()
        yield (
            store,
            client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version),
        )
    except (MlflowException, OSError) as error:
        raise PsclapError(
            f"{uri} is not to be had from the registry {store} ({redacted(str(error))}); "
            "`dvc repro` registers the demo's models, MLFLOW_TRACKING_URI chooses another registry"
        ) from error


def _downloaded(store: TrackingStore, found: ModelVersion) -> Path:
    """The folder of a version: where it lies if that is on this machine, else in the cache."""
    uri = f"models:/{found.name}/{found.version}"
    if store.client().get_model_version_download_uri(found.name, found.version).startswith(("file:", "/")):
        return Path(mlflow.artifacts.download_artifacts(uri))
    # A version of this name may be deleted and made anew; its source has an id.
    identity = hashlib.sha256(f"{store} {uri} {found.source}".encode()).hexdigest()[:16]
    target = cache_folder() / "models" / f"{found.name}-{found.version}-{identity}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "download.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with atomic_folder(target) as partial:
                mlflow.artifacts.download_artifacts(uri, dst_path=str(partial))
                _checked(partial, found)  # what arrives damaged is not kept
    return target


def _checked(folder: Path, found: ModelVersion) -> Path:
    """The checkpoint folder in a version's folder. Raises PsclapError where its files are not what was registered."""
    uri = f"models:/{found.name}/{found.version}"
    model = _model_inside(folder, uri)
    for tag, digest in ((_CONTENT_TAG, _content_sha256), (_WEIGHTS_TAG, weights_sha256)):
        expected = found.tags.get(tag)
        if expected is None:
            continue
        if (actual := digest(model)) != expected:
            raise PsclapError(
                f"{uri} is not what was registered: the files in {model} have the hash {actual[:12]}..., its tag {tag} "
                f"is {expected[:12]}...; remove {folder} if it is still there, to fetch it anew. If that has the same "
                "end, its artefact store was changed: register the model again"
            )
        break
    return model


def _model_inside(folder: Path, uri: str) -> Path:
    """The checkpoint folder that the MLmodel file of a downloaded model names. Raises PsclapError where it is none."""
    artifacts = mlflow.models.Model.load(folder).flavors.get("python_function", {}).get("artifacts") or {}
    if "path" not in artifacts.get(_ARTIFACT, {}):
        raise PsclapError(f"{uri} was not registered by psclap: it carries no artefact {_ARTIFACT!r}")
    path = (folder / artifacts[_ARTIFACT]["path"]).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise PsclapError(f"{uri} is not to be trusted: its MLmodel file names {path}, which is no part of it")
    return path
