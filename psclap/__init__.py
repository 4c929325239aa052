"""psclap: the data-and-training pipeline for speech-style embeddings.

The few names that a user needs; each is imported when it is first used, so that `import psclap` stays light.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Embedder": "psclap.embedding",
    "PsclapError": "psclap.errors",
    "ShardIndex": "psclap.shards.index",
    "load_model": "psclap.models.build",
    "load_params": "psclap.config",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'psclap' has no attribute {name!r}")
