"""The gate before a registered model: challenger and champion on fixed test sets, a decision, and what follows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines.lease import leased
from pipelines.notes import DECIDED_TAG, DECISION_TAG, Note
from pipelines.promotion import CHALLENGER, CHAMPION, WEIGHTS_TAG, promote, settle, standing, vetoes
from pipelines.tracking import TrackingStore
from psclap import log, storage
from psclap.config import EvaluateConfig
from psclap.embedding import Embedder
from psclap.errors import ConfigError, PsclapError
from psclap.evaluation.classification import carried_attributes
from psclap.evaluation.evaluate import TestSets
from psclap.evaluation.retrieval import carried_caption_sets
from psclap.evaluation.run import evaluate_to_folder
from psclap.retraining.config import RetrainConfig, TestSetConfig, VariantConfig, metric_set
from psclap.retraining.policy import Reports, decide
from psclap.retraining.record import Candidate, Grounds, Record
from psclap.shards import INDEX_NAME
from psclap.shards.index import ShardIndex
from psclap.storage import redacted

_REGISTERED = Path("registered")
_TOLD_TAGS = ("git_revision", "git_dirty", "dvc_lock_sha256", "data_index_sha256")

ALIASES_WAIT_S = 120.0
"""For whoever moves an alias at the same time, which takes a moment."""

Outcome = Literal["promoted", "kept", "nothing new"]


@dataclass(frozen=True)
class Challenge:
    """A challenger, the champion that it meets, the test sets, and the grounds that these make up."""

    policy: VariantConfig
    version: str
    champion_version: str | None
    test_sets: Mapping[str, TestSets]
    grounds: Grounds

    @classmethod
    def of(cls, config: RetrainConfig, client: MlflowClient, variant: str) -> Challenge | None:
        """What `dvc repro` registered last against what is in use; None where they are the same version.

        Raises PsclapError where nothing was registered under the policy's name, or a test set is not what it was.
        """
        policy = config.variants[variant]
        challenger = _registered(client, variant, policy.model)
        now = standing(client, policy.model)
        if now.champion == str(challenger.version):
            return None
        champion = client.get_model_version(policy.model, now.champion) if now.champion else None
        test_sets = open_test_sets(config, variant)
        grounds = Grounds(
            policy.model,
            _candidate(challenger),
            _candidate(champion) if champion else None,
            {name: {metric: asdict(rule) for metric, rule in rules.items()} for name, rules in policy.policy.items()},
            {name: _described(config.test_sets[name], test_set) for name, test_set in test_sets.items()},
            vetoes(client, challenger, champion),
        )
        return cls(policy, str(challenger.version), now.champion, test_sets, grounds)

    @property
    def folder_name(self) -> str:
        """Of the decision's folder."""
        return f"{self.policy.model}-v{self.version}-{self.grounds.id}"

    def judge(self, folder: Path, links: Mapping[str, str]) -> Record:
        """Evaluates both models, unless their reports are in `folder` already, and decides."""
        reports = {
            name: Reports(self._report(folder, name, CHALLENGER, self.grounds.challenger), self._champion(folder, name))
            for name in self.test_sets
        }
        decision = decide(self.policy.policy, reports, self.grounds.vetoes)
        return Record(self.grounds, decision, datetime.now(UTC).isoformat(timespec="seconds"), dict(links))

    def _champion(self, folder: Path, test_set: str) -> Path | None:
        champion = self.grounds.champion
        return self._report(folder, test_set, CHAMPION, champion) if champion else None

    def _report(self, folder: Path, test_set: str, who: str, candidate: Candidate) -> Path:
        report = folder / "reports" / test_set / who
        if not report.exists():  # it appears when it is whole
            evaluate_to_folder(report, candidate.uri, self.test_sets[test_set], Embedder(candidate.uri))
        return report


def pass_gate(config: RetrainConfig, store: TrackingStore, variant: str) -> Outcome:
    """Takes what `dvc repro` registered of a variant through the gate; each step may be repeated.

    The decision is recorded on disk, then in the tracking store, and carried out last.
    """
    client = store.client()
    challenge = Challenge.of(config, client, variant)
    if challenge is None:
        with leased(store, aliases_lease(config), ALIASES_WAIT_S):
            settle(client, config.variants[variant].model)
        log.info(f"retrain: {variant}: the champion is of the newest training; nothing new")
        return "nothing new"
    model, version = challenge.policy.model, challenge.version
    client.set_registered_model_alias(model, CHALLENGER, version)
    folder = Path(config.work).absolute() / "decisions" / challenge.folder_name
    record = Record.read(folder)
    if record is None:
        record = challenge.judge(folder, _links(store, client, challenge.grounds))
        record.write(folder)
    run_id = log_decision(store, config.experiment, record, folder)
    log.info(f"retrain: {record.title}; {folder} and run {run_id} say why:")
    for reason in record.decision.reasons:
        log.info(f"retrain:     {reason}")
    if not record.decision.promote:
        return "kept"
    with leased(store, aliases_lease(config), ALIASES_WAIT_S) as lease:
        promote(lease, model, version, challenge.champion_version)
    log.info(f"retrain: {record.grounds.challenger.uri} is {model}@{CHAMPION} now")
    return "promoted"


def open_test_sets(config: RetrainConfig, variant: str) -> dict[str, TestSets]:
    """The test sets of a variant's policy: all that their shards can ask a model.

    Raises PsclapError for other data than was pinned, and for metrics that a test set cannot measure.
    """
    policy = config.variants[variant].policy
    return {name: _open_test_set(name, config.test_sets[name], rules) for name, rules in policy.items()}


def _open_test_set(name: str, config: TestSetConfig, metrics: Iterable[str]) -> TestSets:
    index = ShardIndex(config.shards)
    if config.index_sha256 is not None:
        found = hashlib.sha256(storage.read(storage.join(index.location, INDEX_NAME))).hexdigest()
        if found != config.index_sha256:
            raise PsclapError(
                f"test set {name}: the index of {config.shards} has the hash {found} and not {config.index_sha256}; "
                "a test set stays fixed: give back the old one, or correct index_sha256, which judges champions anew"
            )
    caption_sets = carried_caption_sets(index, config.split)
    attributes = carried_attributes(index, config.split)
    for metric in metrics:
        caption_set, attribute = metric_set(metric)
        if caption_set not in (None, *caption_sets) or attribute not in (None, *attributes):
            raise ConfigError(
                f"policy of {name}: {metric}: the {config.split} clips of {config.shards} have the caption sets "
                f"{list(caption_sets)} and tags of the attributes {list(attributes)}"
            )
    return TestSets(index, EvaluateConfig(config.split, caption_sets, attributes))


def aliases_lease(config: RetrainConfig) -> str:
    """What whoever moves an alias holds meanwhile."""
    return f"{config.experiment}-aliases-lock"


def log_decision(store: TrackingStore, experiment: str, record: Record, folder: Path) -> str:
    """The id of the decision's run, which is made once: numbers, record and reports. The version is tagged with it."""
    decision, candidate = record.grounds.id, record.grounds.challenger
    verdict = "promote" if record.decision.promote else "keep"
    note = Note(
        tag=DECISION_TAG,
        value=decision,
        name=record.title,
        time_ms=int(datetime.fromisoformat(record.decided_at).timestamp() * 1000),
        tags={DECIDED_TAG: verdict, "model": candidate.uri, **log.tags(), **record.links},
        metrics=record.metrics(),
        files=folder,
    )
    run_id = note.write(store, experiment)
    name, version = candidate.uri.removeprefix("models:/").split("/")
    store.client().set_model_version_tag(name, version, DECISION_TAG, decision)
    return run_id


def is_registered(variant: str) -> bool:
    """Whether a model of the variant was registered from this folder at all."""
    return _registration(variant).is_file()


def _registration(variant: str) -> Path:
    return _REGISTERED / f"{variant}.json"


def _registered(client: MlflowClient, variant: str, model: str) -> ModelVersion:
    path = _registration(variant)
    try:
        registered = json.loads(path.read_text())
        name, version, run_id, weights = (registered[key] for key in ("name", "version", "run_id", WEIGHTS_TAG))
    except (OSError, ValueError, KeyError) as error:
        raise PsclapError(f"{path} does not name a registered version ({error!r}); run `dvc repro`") from error
    if name != model:
        raise PsclapError(f"variants.{variant}.model is {model!r}, and {path} registered {name!r}; correct the former")
    try:
        found = client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        found = None
    if found is None or (found.run_id, found.tags.get(WEIGHTS_TAG)) != (run_id, weights):
        raise PsclapError(
            f"{path} names version {version} of {name}, which this registry does not have, or has of another training; "
            f"run `dvc repro -f register@{variant}` against it"
        )
    return found


def _candidate(version: ModelVersion) -> Candidate:
    uri = f"models:/{version.name}/{version.version}"
    return Candidate(uri, version.tags.get(WEIGHTS_TAG, ""), version.run_id or "")


def _described(config: TestSetConfig, test_set: TestSets) -> dict[str, str]:
    return {"shards": redacted(config.shards), "split": config.split, "index_sha256": test_set.index.sha256}


def _links(store: TrackingStore, client: MlflowClient, grounds: Grounds) -> dict[str, str]:
    """Where to look further: the code and the data that the challenger is of, its run, and pages of a server."""
    candidate = grounds.challenger
    links = {"challenger_run": candidate.run_id}
    if candidate.run_id:
        tags = client.get_run(candidate.run_id).data.tags
        links |= {name: tags[name] for name in _TOLD_TAGS if name in tags}
    if store.uri.startswith("http"):
        model, version = candidate.uri.removeprefix("models:/").split("/")
        links["challenger_page"] = f"{store}/#/models/{model}/versions/{version}"
    return links
