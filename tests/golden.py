"""Writes the golden loss curves anew, after a change that was meant to change them: python tests/golden.py"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import yaml
from conftest import MINI_CORPUS, SHARDING, shard
from small_training import losses, mini, run

from psclap.config import PRESETS_FOLDER
from psclap.corpora import build_corpus

VARIANTS = ("intrinsic", "situational", "combined")


def main(folder: Path) -> None:
    corpus = folder / "corpus"
    utterances = build_corpus("demo", MINI_CORPUS).utterances(corpus, processes=2)
    shard([replace(utterance, audio=str(corpus / utterance.audio)) for utterance in utterances], folder / "s", SHARDING)
    params = yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())
    curves = {variant: losses(run(mini(params, folder / "s", variant), folder / variant)) for variant in VARIANTS}
    (Path(__file__).parent / "golden_losses.json").write_text(json.dumps(curves, indent=2) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
