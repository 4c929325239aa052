"""Prompts with candidates from a TTS whose styles are known, because they were set: the demo's espeak-ng voices.

Each prompt asks for a few attributes, in the words of the demo's captions, and is one of the test sentences. Each of
its candidates follows each asked attribute with a stated probability, else takes any of its values, and takes the
others as they come; speakers are those of the test split. Nobody hears a pitch in a whisper, so every fourth prompt
asks for phonation, with rate or volume or both, and in all others nobody whispers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psclap import audio
from psclap.corpora.demo import STYLES, Demo, Line
from psclap.corpora.demo_text import SENTENCES, caption
from psclap.corpora.espeak import SAMPLE_RATE_HZ
from psclap.evaluation.reward.prompts import Candidate, Prompt

_PHONATION = "phonation"
_WITH_PHONATION = ("rate", "volume")
_NO_WHISPER = "enunciated"
_MIN_ASKED, _MAX_ASKED = 2, 4


@dataclass(frozen=True)
class StyledPrompt:
    """What a prompt asks for, and the sentence and style of each of its candidates."""

    id: str
    text: str
    asked: Mapping[str, str]
    lines: tuple[Line, ...]


def plan(num_prompts: int, num_candidates: int, follow_probability: float, seed: int) -> list[StyledPrompt]:
    """The prompts; prompt i depends on the seed and i alone, and its first candidates not on how many follow."""
    return [_prompt(number, num_candidates, follow_probability, seed) for number in range(num_prompts)]


def _prompt(number: int, num_candidates: int, follow_probability: float, seed: int) -> StyledPrompt:
    rng = np.random.default_rng([seed, number])
    asked, text, sentence = _ask(number, SENTENCES["test"], rng)
    lines = tuple(Line(sentence, _style(asked, follow_probability, rng)) for _ in range(num_candidates))
    return StyledPrompt(f"prompt-{number:03d}", text, asked, lines)


def ask(number: int, sentences: Sequence[str], seed: int) -> tuple[dict[str, str], str, str]:
    """What prompt `number` asks for, in words, and one of the sentences to say."""
    return _ask(number, sentences, np.random.default_rng([seed, number]))


def _ask(number: int, sentences: Sequence[str], rng: np.random.Generator) -> tuple[dict[str, str], str, str]:
    asked = {name: str(rng.choice(STYLES[name])) for name in _asked_attributes(number, rng)}
    sentence = str(rng.choice(sentences))
    return asked, caption(tuple(asked.values()), rng), sentence


def _asked_attributes(number: int, rng: np.random.Generator) -> list[str]:
    if number % 4 == 3:
        names, count = list(_WITH_PHONATION), int(rng.integers(1, len(_WITH_PHONATION) + 1))
        drawn = {_PHONATION, *rng.choice(names, count, replace=False).tolist()}
    else:
        names, count = [name for name in STYLES if name != _PHONATION], int(rng.integers(_MIN_ASKED, _MAX_ASKED + 1))
        drawn = set(rng.choice(names, count, replace=False).tolist())
    return [name for name in STYLES if name in drawn]


def _style(asked: Mapping[str, str], follow_probability: float, rng: np.random.Generator) -> dict[str, str]:
    style = {}
    for name, values in STYLES.items():
        follows, drawn = rng.random() < follow_probability, str(rng.choice(values))
        if name == _PHONATION and name not in asked:
            drawn = _NO_WHISPER
        style[name] = asked[name] if name in asked and follows else drawn
    return style


def render(
    corpus: Demo, prompts: Sequence[StyledPrompt], folder: Path, processes: int | None = None
) -> Iterator[Prompt]:
    """Writes every candidate to `folder/{prompt}/{number}.flac`; yields the prompts as `rank` takes them."""
    waves = corpus.say((line for prompt in prompts for line in prompt.lines), processes)
    for prompt in prompts:
        candidates = []
        (folder / prompt.id).mkdir(parents=True)
        for number in range(len(prompt.lines)):
            name = f"{prompt.id}/{number:02d}.flac"
            audio.write_flac(folder / name, next(waves), SAMPLE_RATE_HZ)
            candidates.append(Candidate(str(folder / name), name))
        yield Prompt(prompt.id, prompt.text, tuple(candidates))
