"""Pages of the report of small, real evaluations."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from conftest import SHARDING, shard

from psclap import audio
from psclap.config import EvaluateConfig
from psclap.embedding import Embedder
from psclap.evaluation.evaluate import TestSets
from psclap.report.page import write_html
from psclap.schema import CAPTION_SETS, Caption, Utterance
from psclap.shards.index import ShardIndex

ATTRIBUTES = ("gender", "pitch-level", "texture", "rate")

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '<img src="{url}" onerror="window.hacked = 2">a loud voice',
    "\"'><svg onload='window.hacked = 3'>",
    "{{ 7 * 7 }}{% raw %}",
    "låg röst & 低い声 🎤 \u2028 \u202eoverridden",
    "<!-- <script>",
)
"""Captions that would break out of a page that did not escape them; `{url}` is where they would call."""


def sets_of(
    shards: Path, caption_sets: Sequence[str] = CAPTION_SETS, attributes: Sequence[str] = ATTRIBUTES
) -> TestSets:
    return TestSets(ShardIndex(shards), EvaluateConfig("test", tuple(caption_sets), tuple(attributes)))


def write_page(
    path: Path, test_sets: TestSets, embedder: Embedder, untrained: Embedder | None = None
) -> dict[str, Any]:
    """The page of a model beside an untrained one, and the results that are on it."""
    embedded = test_sets.embed(embedder)
    results = {"model": test_sets.score(embedded).with_intervals(50)}
    if untrained:
        results["untrained"] = test_sets.evaluate(untrained).results
    results["chance"] = test_sets.chance()
    write_html(path, "a <model> & more", test_sets, embedded, results)
    return results


def altered_shards(folder: Path, utterances: Sequence[Utterance], alter: Callable[[int, Utterance], Utterance]) -> Path:
    """Shards of the test clips of a corpus, each altered, given its number."""
    tested = [utterance for utterance in utterances if utterance.split == "test"]
    shard([alter(number, utterance) for number, utterance in enumerate(tested)], folder, SHARDING)
    return folder


def with_text(utterance: Utterance, text: str) -> Utterance:
    """The clip with a text in all that is free text."""
    captions = tuple(Caption(caption.set, text) for caption in utterance.captions)
    return replace(utterance, captions=captions, transcript=text, speaker=text)


def lengthened(utterance: Utterance, folder: Path, duration_s: float) -> Utterance:
    """The clip, repeated until it lasts that long."""
    wave, rate_hz = audio.decode(utterance.audio)
    path = folder / f"{utterance.key}.wav"
    soundfile.write(path, np.resize(wave, round(duration_s * rate_hz)), rate_hz)
    return replace(utterance, audio=str(path))


class Parsed(HTMLParser):
    """A page as its elements, their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []  # of everything but style and script
        self.contents: dict[str, list[str]] = {"style": [], "script": []}
        self._open = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.contents.get(self._open, self.texts).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of a name."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())
