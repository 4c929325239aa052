"""psclap: the data-and-training pipeline for speech-style embeddings.

The few names that a user needs; each is imported when it is first used, so that `import psclap` stays light.
"""

from __future__ import annotations

import importlib
from functools import partial
from types import ModuleType
from typing import Any

import wrapt

__version__ = "0.1.0"

_HOME = {
    "Embedder": "psclap.embedding",
    "PsclapError": "psclap.errors",
    "ShardIndex": "psclap.shards.index",
    "load_model": "psclap.models.build",
    "load_params": "psclap.config",
}

__all__ = ["__version__", *_HOME]


def _import(name: str, _: ModuleType) -> None:
    importlib.import_module(name)


# transformers' Auto classes know ours from the moment that they are imported, without our importing them here.
for _auto, _ours in (
    ("configuration_auto", "psclap.model_config"),
    ("modeling_auto", "psclap.models.dual_encoder"),
    ("feature_extraction_auto", "psclap.models.feature_extractor"),
    ("processing_auto", "psclap.models.processor"),
):
    wrapt.register_post_import_hook(partial(_import, _ours), f"transformers.models.auto.{_auto}")
    wrapt.register_post_import_hook(f"psclap.registration:{_ours.rsplit('.', 1)[-1]}", _ours)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'psclap' has no attribute {name!r}")
