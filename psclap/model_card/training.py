"""What a model was trained on, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from psclap import __version__
from psclap.config import TrainConfig
from psclap.markdown import table
from psclap.model_card.facts import Facts


def data(facts: Facts) -> Iterator[str]:
    """The section's lines on the corpus."""
    trained, summary = facts.trained, facts.summary
    yield (
        f"Corpus {', '.join(f'`{name}`' for name in facts.corpora)}: {trained['clips']:,} clips of "
        f"{trained['speakers']:,} speakers, {trained['hours']:.2f} hours in training; {_durations(trained)}."
    )
    groups = [[name, *_counts(counts)] for name, counts in summary["splits"].items()]
    yield from ("", *table(["split", "clips", "hours", "speakers"], groups), "")
    captions = [
        [name, *(f"{trained['captions'][name][key]:,}" for key in ("total", "distinct", "clips"))]
        for name in facts.train.caption_sets
        if name in trained["captions"]
    ]
    yield from ("Captions it was trained on:", "", *table(["captions", "number", "distinct", "clips"], captions))
    yield ""
    for name in ("sources", "languages"):
        groups = [[value or "(not given)", *_counts(counts)] for value, counts in trained[name].items()]
        yield from (*table([name, "clips", "hours", "speakers"], groups), "")
    yield from _tags(facts)
    yield f"Clips left out as unusable: {summary['rejected']:,}. SHA-256 of the index: `{summary['index_sha256']}`."


def _durations(trained: Mapping[str, Any]) -> str:
    seconds = trained["durations_s"]
    return f"clips last {seconds['min']:.1f} to {seconds['max']:.1f} s, {seconds['median']:.1f} s in the median"


def _counts(counts: Mapping[str, Any]) -> list[str]:
    return [f"{counts['clips']:,}", f"{counts['hours']:.2f}", f"{counts['speakers']:,}"]


def _tags(facts: Facts) -> Iterator[str]:
    learnt = facts.levels
    for level in ("intrinsic", "situational"):
        tags = facts.trained["tags"][level]
        if tags:
            named = ", ".join(f"{tag} {100 * entry['share']:.1f}" for tag, entry in tags.items())
            unheard = "" if level in learnt else " (its captions do not speak of them)"
            yield from (f"Tags, {level}, in % of the training clips{unheard}: {named}.", "")


def training(facts: Facts) -> Iterator[str]:
    """The section's lines on the run."""
    train, progress = facts.train, facts.progress
    length = f"{train.max_steps:,} steps" if train.max_steps else f"{train.max_epochs} epochs"
    chosen = progress.get("metrics", {}).get(train.best_metric)
    kept = f", kept for its {train.best_metric} of {chosen:.4f}" if chosen is not None else ""
    yield f"The weights are those of step {progress['step']:,} of a training of {length}{kept}."
    yield from ("", *table(["setting", "value"], list(_settings(facts, train))), "")
    origin = [
        ["SHA-256 of model.safetensors", f"`{facts.weights_sha256}`"],
        ["MLflow run", f"`{facts.run_id}`"],
        ["made with", f"psclap {__version__}, transformers {facts.config['transformers_version']}"],
    ]
    yield from table(["origin", "value"], origin)


def _settings(facts: Facts, train: TrainConfig) -> Iterator[list[str]]:
    sampling = train.sampling
    yield ["captions", " + ".join(train.caption_sets)]
    yield ["loss", _loss(train)]
    yield ["sampling", f"{sampling.mixing}, class balance {sampling.class_balance}"]
    yield ["global batch", f"{train.global_batch_size:,} clips, random crops of at most {train.max_crop_s:g} s"]
    yield [
        "optimiser",
        f"{train.optimizer}, learning rate {train.learning_rate:g}, weight decay {train.weight_decay:g}",
    ]
    yield ["schedule", f"{train.schedule}, {train.warmup_steps:,} steps of warm-up"]
    yield ["precision", train.compute.precision]
    yield ["seed", str(facts.params.seed)]
    if train.freeze:
        yield ["frozen", ", ".join(train.freeze)]
    if train.ema_decay is not None:
        yield ["moving average of the weights", f"{train.ema_decay:g}"]


def _loss(train: TrainConfig) -> str:
    contrast = {"info_nce": "symmetric InfoNCE", "sigmoid": "pairwise sigmoid"}[train.contrastive_loss]
    tags = f" + {train.tag_loss_weight:g} x tag classification" if train.tag_loss_weight else ""
    return f"{contrast}{tags}; equal captions in a batch count as {train.duplicate_captions}"
