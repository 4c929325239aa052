"""The model folder among transformers' own: Auto classes, pipelines, and loading without psclap."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import WAVLM
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, pipeline

from psclap.config import PRESETS_FOLDER, parse_params
from psclap.errors import PsclapError
from psclap.model_config import ParaSpeechCLAPConfig
from psclap.models.build import build_model, load_model
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.feature_extractor import ParaSpeechCLAPFeatureExtractor
from psclap.models.processor import ParaSpeechCLAPProcessor

TEXTS = ["A raspy, low-pitched man speaks slowly.", "A woman whispers.", "The voice is loud and fast."]
WAVES = [np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32) for n in (16000, 20000, 9000)]


@pytest.fixture(scope="module", params=["logmel_conv", "wavlm"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, of our own speech encoder and of one of transformers'."""
    params = yaml.safe_load((PRESETS_FOLDER / "demo.yaml").read_text())
    if request.param == "wavlm":
        params["model"]["speech"] = {"pooling": "mean", "config": WAVLM}
    model, processor = build_model(parse_params(params).model, TEXTS, 16000, seed=1)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def expected_logits(folder: Path) -> torch.Tensor:
    model, processor = load_model(folder)
    with torch.no_grad():
        speech, texts = model.embed_audio(**processor.waves(WAVES)), model.embed_text(**processor.texts(TEXTS))
        return model.logit_scale * speech @ texts.T


def python(code: str, *arguments: Any, **environment: str) -> Any:
    """What a fresh process prints, as JSON. Its first lines may be of transformers'."""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_the_auto_classes_know_our_folder(folder: Path) -> None:
    assert type(AutoConfig.from_pretrained(folder)) is ParaSpeechCLAPConfig
    assert type(AutoModel.from_pretrained(folder)) is ParaSpeechCLAPModel
    assert type(AutoProcessor.from_pretrained(folder)) is ParaSpeechCLAPProcessor
    assert type(AutoFeatureExtractor.from_pretrained(folder)) is ParaSpeechCLAPFeatureExtractor


@pytest.mark.parametrize(
    "first",
    [
        *("transformers:AutoConfig", "transformers:AutoProcessor", "transformers:WavLMModel"),
        *("psclap.models.encoders:new_encoder", "psclap.models.processor:ParaSpeechCLAPProcessor"),
    ],
)
def test_the_auto_classes_know_us_whatever_is_imported_first(first: str) -> None:
    code = """
import importlib, json, sys, psclap
module, name = sys.argv[1].split(":")
getattr(importlib.import_module(module), name)
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
config = type(AutoConfig.for_model("paraspeechclap"))
known = (AutoModel._model_mapping, FEATURE_EXTRACTOR_MAPPING, PROCESSOR_MAPPING)
print(json.dumps([mapping[config].__name__ for mapping in known]))
"""
    assert python(code, first) == ["ParaSpeechCLAPModel", "ParaSpeechCLAPFeatureExtractor", "ParaSpeechCLAPProcessor"]


def test_one_call_of_processor_and_model(folder: Path) -> None:
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(text=TEXTS, audio=WAVES, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, return_loss=True)
        torch.testing.assert_close(output.logits_per_audio, expected_logits(folder), atol=1e-5, rtol=0)
        assert torch.equal(output.logits_per_text, output.logits_per_audio.T)
        pairs = torch.arange(3)
        losses = [torch.nn.functional.cross_entropy(logits, pairs) for logits in (output[1], output[2])]
        assert output.loss == pytest.approx(sum(losses).item() / 2, rel=1e-5)

        speech = model.get_audio_features(**processor(audio=WAVES, sampling_rate=16000)).pooler_output
        texts = model.get_text_features(**processor(text=TEXTS)).pooler_output
        assert torch.equal(output.audio_embeds, speech)
        assert torch.equal(output.text_embeds, texts)
        alone = model(**processor(text=TEXTS[0]))
        assert alone.logits_per_audio is None
        assert torch.allclose(alone.text_embeds, texts[:1], atol=1e-6)
        assert isinstance(model(**inputs, return_dict=False), tuple)


def test_wrong_calls_say_what_is_wrong(folder: Path) -> None:
    model, processor = load_model(folder)
    with pytest.raises(PsclapError, match="hears 16000 Hz and the audio has 44100 Hz"):
        processor(audio=WAVES, sampling_rate=44100)
    with pytest.raises(PsclapError, match=r"shape \(1, 9000, 2\) and .*; give mono"):
        processor(audio=np.zeros((1, 9000, 2)))
    with pytest.raises(ValueError, match="give text, audio, or both"):
        processor()
    with pytest.raises(PsclapError, match="unknown arguments sample_rate"):
        processor(audio=WAVES, sample_rate=44100)
    with pytest.raises(PsclapError, match="unknown arguments max_length"):
        processor(text=TEXTS, truncation=True, max_length=3)
    for nothing in ({"audio": []}, {"text": []}):
        with pytest.raises(PsclapError, match="at least one"):
            processor(**nothing)
    with pytest.raises(PsclapError, match="one text for each clip"):
        model(**processor(text=TEXTS, audio=WAVES[:2]), return_loss=True)
    with pytest.raises(PsclapError, match="embed_audio needs"):
        model.get_audio_features()


def test_transformers_pipelines(folder: Path) -> None:
    classify = pipeline("zero-shot-audio-classification", model=str(folder))
    for wave, logits in zip(WAVES, expected_logits(folder), strict=True):
        found = classify(wave, candidate_labels=TEXTS, hypothesis_template="{}")
        scores = {one["label"]: one["score"] for one in found}
        assert [scores[text] for text in TEXTS] == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)
    model, processor = load_model(folder)
    with torch.no_grad():
        expected = model.embed_text(**processor.texts(TEXTS[:1]))
    features = pipeline("feature-extraction", model=str(folder))(TEXTS[0])
    assert torch.allclose(torch.tensor(features), expected, atol=1e-6)


WITHOUT_PSCLAP = """
import json, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "psclap":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import torch
from transformers import AutoModel, AutoProcessor, pipeline
waves = torch.load(sys.argv[2], weights_only=True)
texts = json.loads(sys.argv[3])
def logits(folder):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        output = model(**processor(text=texts, audio=waves, sampling_rate=16000))
    return model, processor, output.logits_per_audio.tolist()
model, processor, first = logits(sys.argv[1])
assert not any(name.split(".")[0] == "psclap" for name in sys.modules)
model.save_pretrained(sys.argv[4])
processor.save_pretrained(sys.argv[4])
again = logits(sys.argv[4])[2]
classify = pipeline("zero-shot-audio-classification", model=sys.argv[1], trust_remote_code=True)
best = classify(waves[0].numpy(), candidate_labels=texts, hypothesis_template="{}")[0]["label"]
print(json.dumps([first, again, best]))
"""


def test_the_folder_loads_without_psclap(folder: Path, tmp_path: Path) -> None:
    torch.save([torch.from_numpy(wave) for wave in WAVES], tmp_path / "waves.pt")
    first, again, best = python(
        *(WITHOUT_PSCLAP, folder, tmp_path / "waves.pt", json.dumps(TEXTS), tmp_path / "again"),
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )
    expected = expected_logits(folder)
    assert torch.allclose(torch.tensor(first), expected, atol=1e-5)
    assert torch.allclose(torch.tensor(again), expected, atol=1e-5)  # what it saves is whole again
    assert best == TEXTS[expected[0].argmax()]


def test_code_is_not_run_unless_it_is_trusted(folder: Path, tmp_path: Path) -> None:
    code = WITHOUT_PSCLAP.replace(", trust_remote_code=True", ", trust_remote_code=False")
    torch.save([torch.from_numpy(wave) for wave in WAVES], tmp_path / "waves.pt")
    with pytest.raises(AssertionError, match="trust_remote_code"):
        python(code, folder, tmp_path / "waves.pt", json.dumps(TEXTS), tmp_path / "again")


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's protocol as an upload needs; what is committed is kept in `files`."""

    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitOid": "0" * 40, "commitUrl": f"http://{self.headers['Host']}/me/style/commit/0"})
        else:
            self.answer({"url": f"http://{self.headers['Host']}/me/style", "name": "me/style", "id": "me/style"})

    def do_GET(self) -> None:
        self.answer({"name": "me", "type": "user", "auth": {}, "siblings": [], "id": "me/style", "tags": []})

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()


def test_push_to_hub_sends_the_whole_folder(folder: Path, hub: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    url, files = hub
    code = """
import json, sys, psclap
from transformers import AutoModel, AutoProcessor
for auto in (AutoModel, AutoProcessor):
    auto.from_pretrained(sys.argv[1]).push_to_hub("me/style", token="hf_test")
print(json.dumps("done"))
"""
    python(code, folder, HF_ENDPOINT=url, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1")
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.keys() - expected.keys() <= {"README.md", ".gitattributes"}
    assert expected.keys() <= files.keys()
    assert {name for name in expected if files[name] != expected[name]} <= {"config.json", "tokenizer_config.json"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert torch.equal(expected_logits(tmp_path), expected_logits(folder))
