"""How to use a model: lines that run as they are written, once `folder` and the files' names are yours."""

from __future__ import annotations

from collections.abc import Iterator

from psclap.model_card.facts import Facts
from psclap.model_card.results import example_prompts

_SHOWN_PROMPTS = 5

_TRANSFORMERS = """import soundfile
import torch
from transformers import AutoModel, AutoProcessor

folder = "path/to/this/folder"  # or this model's name on the Hub
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

wave, rate_hz = soundfile.read("speech.wav", dtype="float32")  # mono, {rate} Hz
captions = {captions}
inputs = processor(text=captions, audio=[wave], sampling_rate=rate_hz, padding=True, return_tensors="pt")
with torch.inference_mode():
    outputs = model(**inputs)
print(outputs.audio_embeds @ outputs.text_embeds.T)  # cosines, clips x captions"""

_PSCLAP = """from psclap import Embedder

embedder = Embedder(folder)
speech = embedder.embed_files(["speech.wav"])  # of any format, rate and number of channels
print(speech @ embedder.embed_text(captions).T)"""

_SENTENCE_TRANSFORMERS = """from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer(folder, trust_remote_code=True)
speech = encoder.encode([{{"array": wave, "sampling_rate": {rate}}}])
print(encoder.similarity(speech, encoder.encode(captions)))"""


def usage(facts: Facts) -> Iterator[str]:
    """The section's lines."""
    prompts = "".join(f'    "{prompt}",\n' for prompt in example_prompts(facts)[:_SHOWN_PROMPTS])
    values = {"rate": facts.summary["sample_rate_hz"], "captions": f"[\n{prompts}]"}
    yield from _code("With transformers (after `import psclap`, without `trust_remote_code`):", _TRANSFORMERS, values)
    yield ""
    yield from _code("With psclap, which also resamples and batches (`folder`, `captions` as above):", _PSCLAP, values)
    yield ""
    yield from _code("With sentence-transformers (`wave` as above):", _SENTENCE_TRANSFORMERS, values)


def _code(title: str, code: str, values: dict[str, object]) -> Iterator[str]:
    yield from (title, "", "```python", *code.format(**values).splitlines(), "```")
