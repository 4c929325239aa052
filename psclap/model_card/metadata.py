"""The YAML at the top of a model card: what the Hugging Face Hub and its clients read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from psclap.config import ModelConfig
from psclap.licences import OTHER, hub_licence
from psclap.model_card.facts import Facts

DIRECTIONS = {"audio_to_text": "speech to caption", "text_to_audio": "caption to speech"}
RECALLS = ("R@1", "R@5", "R@10")
PIPELINE = "zero-shot-audio-classification"

_TAGS = ("paraspeechclap", "psclap", "clap", "speech", "audio", "speaking-style", "feature-extraction")
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def metadata(facts: Facts) -> ModelCardData:
    """The metadata, with every measured number as the Hub's model-index. What is not known is left out."""
    register = facts.params.register
    return ModelCardData(
        license=hub_licence(register.license),
        license_name=register.license_name,
        license_link=register.license_link,
        language=language_codes(facts.trained["languages"]) or None,
        library_name="transformers",
        pipeline_tag=PIPELINE,
        tags=[*_TAGS, "sentence-transformers"],
        base_model=base_models(facts.params.model) or None,
        metrics=["recall", "f1"] if facts.classification else ["recall"],
        model_name=facts.name,
        eval_results=[*_retrieval_results(facts), *_classification_results(facts)],
    )


def licence_name(facts: Facts) -> str | None:
    """What the licence is called; None where it is `other` and nobody has said which."""
    register = facts.params.register
    return register.license_name if hub_licence(register.license) == OTHER else hub_licence(register.license)


def language_codes(languages: Mapping[str, Any]) -> list[str]:
    """The ISO 639 codes of a corpus's languages, without their regions; what is no code is left out.

    >>> language_codes({"en-GB": {}, "en_US": {}, "de": {}, "": {}, "unknown": {}})
    ['de', 'en']
    """
    codes = {re.split(r"[-_]", name.lower())[0] for name in languages}
    return sorted(code for code in codes if _LANGUAGE_CODE.fullmatch(code))


def base_models(model: ModelConfig) -> list[str]:
    """The models of the Hub that the encoders were started from; a folder of this machine is none."""
    names = [encoder.pretrained for encoder in (model.speech, model.text)]
    return [name for name in names if name and is_on_the_hub(name)]


def is_on_the_hub(name: str) -> bool:
    """Whether transformers would take a name for one of the Hub's: it is no folder here."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _retrieval_results(facts: Facts) -> Iterator[EvalResult]:
    for caption_set, numbers in facts.retrieval.items():
        for direction, words in DIRECTIONS.items():
            for key in RECALLS:
                yield EvalResult(
                    task_type=f"{direction.replace('_', '-')}-retrieval",
                    task_name=f"Retrieval, {words}",
                    **_data_set(facts, f"{caption_set} captions", caption_set),
                    metric_type=f"recall_at_{key.removeprefix('R@')}",
                    metric_name=key,
                    metric_value=numbers[direction][key],
                )


def _classification_results(facts: Facts) -> Iterator[EvalResult]:
    for attribute, numbers in facts.classification.items():
        for key, kind, name in (("UAR", "recall", "UAR (macro recall)"), ("macro_F1", "f1", "macro F1")):
            yield EvalResult(
                task_type=PIPELINE,
                task_name="Zero-shot classification",
                **_data_set(facts, f"{attribute} tags", attribute),
                metric_type=kind,
                metric_name=name,
                metric_args={"average": "macro"},
                metric_value=numbers[key],
            )


def _data_set(facts: Facts, what: str, config: str) -> dict[str, Any]:
    corpora = " + ".join(facts.corpora)
    return {
        "dataset_type": corpora,
        "dataset_name": f"{corpora}, {what}",
        "dataset_config": config,
        "dataset_split": facts.params.evaluate.split,
        "dataset_args": {"index_sha256": facts.summary["index_sha256"]},
    }
