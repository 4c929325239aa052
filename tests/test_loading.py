"""What loading a checkpoint costs: its weights stay in the mapped file, and are in memory once."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import WAVLM

from psclap.config import EncoderConfig, parse_params
from psclap.models.build import build_model
from psclap.startup import uncollected_imports

MEASURE = """
import json, sys
from psclap.models.build import load_model

def megabytes():
    lines = (line.split() for line in open("/proc/self/status") if line.startswith("Rss"))
    return {words[0].rstrip(":"): int(words[1]) / 1024 for words in lines}

load_model(sys.argv[1])  # what a first loading leaves behind is not the model's
before = megabytes()
model, _ = load_model(sys.argv[1])
sum(float(parameter.detach().sum()) for parameter in model.parameters())  # now every page has been read
print(json.dumps({name: after - before[name] for name, after in megabytes().items()}))
"""


def test_loading_maps_the_weights_without_a_second_copy(params_mapping: dict[str, Any], tmp_path: Path) -> None:
    params = parse_params(params_mapping)
    speech = EncoderConfig(pooling="mean", config=WAVLM | {"intermediate_size": 200_000})
    model, processor = build_model(replace(params.model, speech=speech), ["a voice"], 16000, seed=0)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    size_mb = (tmp_path / "model.safetensors").stat().st_size / 2**20
    assert size_mb > 90
    run = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    grown_mb = json.loads(run.stdout)
    assert grown_mb["RssFile"] > 0.9 * size_mb
    assert grown_mb["RssAnon"] < 0.3 * size_mb


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_while_a_command_imports(enabled: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with uncollected_imports():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        (gc.enable if was_enabled else gc.disable)()
