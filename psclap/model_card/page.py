"""A model card in Markdown: metadata, then what a stranger asks about a model, in that order.

Rendering is pure: the same facts give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import ModelCard

from psclap.markdown import table
from psclap.model_card.facts import Facts
from psclap.model_card.limits import limits
from psclap.model_card.metadata import base_models, is_on_the_hub, licence_name, metadata
from psclap.model_card.results import SPEAKS_OF, percent, results, strong_names
from psclap.model_card.training import data, training
from psclap.model_card.usage import usage


def model_card(facts: Facts) -> ModelCard:
    """The card; `str()` of it is the README.md of the model's folder."""
    sections = {
        "What it is": _what(facts),
        "How to use it": usage(facts),
        "Results": results(facts),
        "Training data": data(facts),
        "Training": training(facts),
        "Intended use": _intended(facts),
        "What it is not for, and its limits": limits(facts),
        "Licence": _licence(facts),
    }
    lines = [f"# {facts.name}", "", *_summary(facts)]
    for title, section in sections.items():
        lines += ["", f"## {title}", "", *section]
    return ModelCard(f"---\n{metadata(facts).to_yaml()}\n---\n\n" + "\n".join([*lines, ""]))


def description(facts: Facts) -> str:
    """The card in a few lines, for a list of models."""
    return "\n".join(_summary(facts))


def _summary(facts: Facts) -> Iterator[str]:
    sets = " and ".join(f"{name} captions ({SPEAKS_OF[name]})" for name in facts.train.caption_sets)
    yield (
        "A dual encoder of speech and of captions that describe its style, after "
        "[ParaSpeechCLAP](https://arxiv.org/abs/2603.28737): it finds speech by a description, classifies style "
        "without labels, and scores how well a clip fits a caption."
    )
    yield from ("", f"This is the variant `{facts.variant}`, trained on {sets}.")
    recalls = ((name, numbers["audio_to_text"]) for name, numbers in facts.retrieval.items())
    shares = (f"{name} {percent(at['R@1'])} % (chance {percent(at['chance_R@1'])})" for name, at in recalls)
    yield f"It finds the right caption of a clip first (R@1): {', '.join(shares)}."
    if strong := strong_names(facts):
        yield f"Zero-shot, it tells {', '.join(strong)} well; the results say what it does not tell."
    if "demo" in facts.corpora:
        yield from ("", f"**A demonstration.** {DEMO}")


DEMO = (
    "It has been trained and tested on synthetic voices (espeak-ng) whose styles are synthetic too: its numbers show "
    "that the pipeline learns, not how well it would do on people. Do not use it on recordings of people."
)


def _what(facts: Facts) -> list[str]:
    config, model = facts.config, facts.params.model
    total = sum(facts.parameters.values())
    audio = "zero mean and unit variance per clip" if model.normalise_audio else "level as recorded"
    rows = [
        ["speech encoder", _encoder(facts, "audio")],
        ["text encoder", _encoder(facts, "text")],
        ["embeddings", f"{config['projection_dim']} dimensions, L2-normalised; the score is their cosine"],
        ["parameters", f"{total:,}"],
        ["input", f"mono speech at {facts.summary['sample_rate_hz']} Hz, {audio}"],
        ["captions", f"up to {model.max_text_tokens} tokens"],
    ]
    return table(["part", "what"], rows)


def _encoder(facts: Facts, tower: str) -> str:
    config = facts.config[f"{tower}_config"]
    chosen = facts.params.model.speech if tower == "audio" else facts.params.model.text
    layers = config.get("num_hidden_layers", config.get("num_layers"))
    start = f"started from {_public_name(chosen.pretrained)}" if chosen.pretrained else "trained from scratch"
    size = (
        f"{layers} {'layer' if layers == 1 else 'layers'} of width {config['hidden_size']}"
        if layers
        else f"width {config['hidden_size']}"
    )
    count = facts.parameters.get(f"{tower}_model", 0)
    pooling = facts.config[f"{tower}_pooling"].replace("_", " and ")
    return f"{config['model_type']}, {start}: {size}, {pooling} pooling, {count:,} parameters"


def _public_name(pretrained: str) -> str:
    """A name of the Hub as it is; of a folder its last part: the rest is nobody's business."""
    return pretrained if is_on_the_hub(pretrained) else Path(pretrained).name


def _intended(facts: Facts) -> Iterator[str]:
    if "demo" in facts.corpora:
        yield "Trying out the pipeline and the tools around it on the voices that it was trained on, and nothing else."
        return
    yield "- Finding speech in a collection by a description of its style, as a list that a person goes through."
    yield "- Labelling or filtering corpora by style, and choosing the best of several synthesised candidates."
    yield "- Research on speaking style, and a starting point for training on data of your own."
    yield ""
    yield "Check it on labelled clips of your own before you rely on any of these."


def _licence(facts: Facts) -> Iterator[str]:
    name, register = licence_name(facts), facts.params.register
    if name is None:
        yield "No licence has been chosen (`license: other` without a name): ask whom you have this model from."
    else:
        yield f"The weights: {f'[{name}]({register.license_link})' if register.license_link else f'`{name}`'}."
    if bases := base_models(facts.params.model):
        yield f"The encoders were started from {' and '.join(bases)}, whose licences stand beside it."
    if corpora := [name for name in facts.corpora if name != "demo"]:
        yield f"The speech and captions of the corpus ({', '.join(corpora)}) have licences of their own."
