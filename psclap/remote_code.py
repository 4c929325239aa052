"""What a model folder carries for those who have no psclap: its own code, and how sentence-transformers reads it.

transformers runs the code where it is trusted (`trust_remote_code=True`): `auto_map` in config.json and
processor_config.json names the classes, and every module lies flat in the folder, importing its neighbours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).parent
_ENTRIES = ("models/dual_encoder.py", "models/processor.py", "models/feature_extractor.py")
_IMPORT = re.compile(r"^(\s*from )psclap\.([\w.]+)( import )", re.MULTILINE)

_EMBEDS = {"method_output_name": "pooler_output"}
_SENTENCE_TRANSFORMERS = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "get_text_features", **_EMBEDS},
            "audio": {"method": "get_audio_features", **_EMBEDS},
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
}


def write_code(folder: Path) -> None:
    """Writes the code and sentence-transformers' files into a model folder."""
    for name, content in _SENTENCE_TRANSFORMERS.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    if not __name__.startswith("psclap."):
        return  # this is such a folder's code already, which transformers copies
    for path in _needed():
        (folder / path.name).write_text(_IMPORT.sub(_flattened, path.read_text()))


def _needed() -> set[Path]:
    """The modules that the entries import, themselves included."""
    needed, queue = set(), [_PACKAGE / name for name in _ENTRIES]
    while queue:
        path = queue.pop()
        if path not in needed:
            needed.add(path)
            queue += _imported(path)
    return needed


def _imported(path: Path) -> Iterator[Path]:
    for _, module, _ in _IMPORT.findall(path.read_text()):
        yield (_PACKAGE / module.replace(".", "/")).with_suffix(".py")


def _flattened(match: re.Match[str]) -> str:
    start, module, end = match.groups()
    return f"{start}.{module.rsplit('.', 1)[-1]}{end}"
