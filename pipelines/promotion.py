"""Which version of a registered model is in use: the aliases `challenger`, `champion` and `previous`.

The champion's alias is one row of the registry, so there is one champion at every moment, and moving it is the one step
that counts. What a version replaced is a tag of it, set before; `previous` follows from that. Killed in between, the
next call puts right what is behind. Whoever moves an alias holds a lease of the store (pipelines.lease).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines.lease import Lease, LeaseError
from pipelines.tracking import impatient
from psclap.errors import PsclapError

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
WEIGHTS_TAG = "weights_sha256"
REPLACED_TAG = "psclap.replaced"
"""The version that was the champion before this one was; of the first, nothing."""
PROMOTED_TAG = "psclap.promoted"
"""When a version was made the champion."""
ROLLED_BACK_TAG = "psclap.rolled_back"
"""When a version was taken out of use; the gate never promotes its weights again."""


@dataclass(frozen=True)
class Standing:
    """The versions that the aliases of a registered model name; a model that does not exist yet has none."""

    model: str
    challenger: str | None
    champion: str | None
    previous: str | None


def standing(client: MlflowClient, model: str) -> Standing:
    """Where a registered model stands now."""
    try:
        aliases = client.get_registered_model(model).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        aliases = {}
    found = (aliases.get(alias) for alias in (CHALLENGER, CHAMPION, PREVIOUS))
    return Standing(model, *(str(version) if version else None for version in found))


def vetoes(client: MlflowClient, version: ModelVersion, champion: ModelVersion | None) -> tuple[str, ...]:
    """Why a version must not become the champion, whatever its metrics are.

    Its weights were taken out of use, under this version or another; or it is older than the champion, as after a
    checkout of an old revision.
    """
    weights = version.tags.get(WEIGHTS_TAG)
    namesakes = client.search_model_versions(f"name = '{version.name}'") if weights else []
    found = [
        f"version {other.version}, of the same weights, was rolled back at {other.tags[ROLLED_BACK_TAG]}"
        for other in sorted(namesakes, key=lambda other: int(other.version))
        if other.tags.get(WEIGHTS_TAG) == weights and ROLLED_BACK_TAG in other.tags
    ]
    if champion and int(version.version) < int(champion.version):
        found.append(
            f"version {version.version} is older than the champion, version {champion.version}; "
            f"`--rollback --to {version.version}` goes back to it"
        )
    return tuple(found)


def promote(lease: Lease, model: str, version: str, champion: str | None) -> None:
    """Makes a version the champion in the place of `champion`.

    Raises LeaseError where another one is the champion by now, or the lease was lost; no alias has moved then.
    """
    client, now = lease.client, standing(lease.client, model)
    if now.champion != champion:
        raise LeaseError(
            f"the champion of {model} is version {now.champion} and no longer {champion}, which version {version} was "
            "compared with; run it again"
        )
    client.set_model_version_tag(model, version, REPLACED_TAG, _replaced(client, model, version, champion) or "")
    _move(lease, model, version)
    settle(client, model)


def _replaced(client: MlflowClient, model: str, version: str, champion: str | None) -> str | None:
    """What a rollback from `version` is to go back to: not to the same weights in another cover."""
    if champion is None:
        return None
    before, after = (client.get_model_version(model, number).tags for number in (champion, version))
    if before.get(WEIGHTS_TAG) is not None and before.get(WEIGHTS_TAG) == after.get(WEIGHTS_TAG):
        return before.get(REPLACED_TAG) or None
    return champion


def _move(lease: Lease, model: str, version: str) -> None:
    with impatient():  # a request that is repeated for minutes may arrive when the lease is another's
        lease.check()
        lease.client.set_registered_model_alias(model, CHAMPION, version)


def settle(client: MlflowClient, model: str) -> None:
    """Brings up to date what follows from the champion's alias: `previous`, and since when."""
    now = standing(client, model)
    if now.champion is None:
        return
    tags = client.get_model_version(model, now.champion).tags
    if PROMOTED_TAG not in tags:
        client.set_model_version_tag(model, now.champion, PROMOTED_TAG, _now())
    previous = tags.get(REPLACED_TAG)
    if previous and previous != now.previous:
        client.set_registered_model_alias(model, PREVIOUS, previous)
    elif not previous and now.previous is not None:
        client.delete_registered_model_alias(model, PREVIOUS)


def roll_back(lease: Lease, model: str, to: str | None = None) -> tuple[str, str]:
    """Takes the champion out of use for good: back to what it replaced, or to version `to`. Returns (from, to).

    The version that is left is marked first, so that killed in between nothing promotes it again. Raises PsclapError
    where there is nothing to go back to.
    """
    client, now = lease.client, standing(lease.client, model)
    if now.champion is None:
        raise PsclapError(f"{model} has no {CHAMPION} to roll back")
    target = to or client.get_model_version(model, now.champion).tags.get(REPLACED_TAG)
    if not target:
        raise PsclapError(f"version {now.champion} of {model} replaced no other; name one with --to VERSION")
    _check_is_version(client, model, target)
    if target != now.champion:
        client.set_model_version_tag(model, now.champion, ROLLED_BACK_TAG, _now())
        _move(lease, model, target)
    client.delete_model_version_tag(model, target, ROLLED_BACK_TAG)
    settle(client, model)
    if target == now.champion:
        raise PsclapError(f"version {target} of {model} is the champion already")
    return now.champion, target


def _check_is_version(client: MlflowClient, model: str, version: str) -> None:
    try:
        client.get_model_version(model, version)
    except MlflowException as error:
        raise PsclapError(f"{model} has no version {version!r} ({error.message})") from error


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
