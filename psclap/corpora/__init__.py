"""Corpora: each turns a source into Utterances. To add one, write its file and its line in CORPORA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from psclap.corpora.aishell3 import Aishell3
from psclap.corpora.baker import Baker
from psclap.corpora.demo import Demo
from psclap.corpora.demo_tts import DemoTts
from psclap.corpora.esd import Esd
from psclap.corpora.libritts import LibriTTS
from psclap.corpora.ljspeech import LJSpeech
from psclap.corpora.manifest import Manifest
from psclap.corpora.paraspeechcaps import ParaSpeechCaps
from psclap.corpora.several import Several
from psclap.corpora.webdataset import WebDataset
from psclap.errors import ConfigError
from psclap.schema import Utterance
from psclap.strict import from_mapping


class Corpus(Protocol):
    """A frozen dataclass of options that can list its utterances."""

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Yields every utterance. `folder` is where a corpus that makes audio puts it; paths of that audio
        are relative to `folder`, paths of audio that lies elsewhere are absolute.
        """
        ...


CORPORA: dict[str, type[Corpus]] = {
    "demo": Demo,
    "paraspeechcaps": ParaSpeechCaps,
    "manifest": Manifest,
    "webdataset": WebDataset,
    "several": Several,
    "demo_tts": DemoTts,
    "ljspeech": LJSpeech,
    "libritts": LibriTTS,
    "aishell3": Aishell3,
    "baker": Baker,
    "esd": Esd,
}


def build_corpus(name: str, options: Mapping[str, Any], where: str = "corpus") -> Corpus:
    """The corpus of this name; raises ConfigError for an unknown name, and for options that break a rule."""
    if name not in CORPORA:
        raise ConfigError(f"{where}.name: {name!r} is not a corpus; known corpora: {', '.join(CORPORA)}")
    return from_mapping(CORPORA[name], options, f"{where}.options")
