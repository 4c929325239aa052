"""The loop shown on the demo: a Clip-TTS says each prompt N times, a reward chooses, an acoustic judge listens.

Candidates are drawn blindly (`TextToSpeech.manners`), but for whispers, which come only where a prompt asks for
phonation: nothing but the choice knows what else it asks for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from psclap import audio
from psclap.corpora.demo import STYLES, Line
from psclap.corpora.demo_text import SHORT_SENTENCES
from psclap.corpora.demo_tts import DemoTts
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.reward.criteria import Reward
from psclap.evaluation.reward.demonstration import CalibratedJudge, judged
from psclap.evaluation.reward.prompts import Candidate, Prompt
from psclap.evaluation.reward.rank import rank
from psclap.evaluation.reward.selection import write_selection
from psclap.evaluation.reward.styles import StyledPrompt, ask
from psclap.tags import tag_of
from psclap.tts.say import Manner, TextToSpeech

_LANGUAGE = "en"


def plan(
    corpus: DemoTts, speech: TextToSpeech, num_prompts: int, num_candidates: int, seed: int
) -> list[tuple[StyledPrompt, list[Manner]]]:
    """The prompts with what is set of each candidate, and the manners of these.

    Raises PsclapError for a model that can say none of the test sentences.
    """
    of_speaker = corpus.speaker_tags()
    sentences = [text for text in SHORT_SENTENCES["test"] if speech.vocabulary.can_say(text, _LANGUAGE)]
    if not sentences:
        raise PsclapError("the model can say none of the demo's test sentences; train it on more clips (train_clips)")
    planned = []
    for number in range(num_prompts):
        asked, text, sentence = ask(number, sentences, seed)
        # Nobody hears a pitch in a whisper, see psclap/evaluation/reward/styles.py.
        without = () if "phonation" in asked else ("whispered",)
        manners = speech.manners(num_candidates, seed + number, without=without)
        lines = tuple(Line(sentence, _style((*of_speaker[manner.speaker], *manner.styles))) for manner in manners)
        planned.append((StyledPrompt(f"prompt-{number:03d}", text, asked, lines), manners))
    return planned


def _style(tags: Sequence[str]) -> dict[str, str]:
    return {name: tag for name in STYLES if (tag := tag_of(name, tags)) is not None}


def demonstrate(
    corpus: DemoTts,
    speech: TextToSpeech,
    embedder: Embedder,
    judge: CalibratedJudge,
    num_prompts: int,
    num_candidates: int,
    seed: int,
    folder: Path,
    model: Mapping[str, str],
) -> dict[str, Any]:
    """Says, ranks and judges; writes the selection to `folder` and returns the result of `attribute_recall`."""
    planned = plan(corpus, speech, num_prompts, num_candidates, seed)
    with tempfile.TemporaryDirectory(prefix="psclap-say-") as said:
        ranked = list(rank(embedder, list(_said(speech, planned, Path(said))), Reward()))
        write_selection(folder, ranked, Reward(), model)
        return judged([prompt for prompt, _ in planned], ranked, judge, seed)


def _said(speech: TextToSpeech, planned: Sequence[tuple[StyledPrompt, list[Manner]]], folder: Path) -> Iterator[Prompt]:
    """Writes every candidate; yields the prompts as `rank` takes them."""
    for prompt, manners in planned:
        (folder / prompt.id).mkdir()
        candidates = []
        for number, wave in enumerate(speech.say(prompt.lines[0].text, manners, _LANGUAGE)):
            name = f"{prompt.id}/{number:02d}.flac"
            audio.write_flac(folder / name, wave, speech.sample_rate_hz)
            candidates.append(Candidate(str(folder / name), name))
        yield Prompt(prompt.id, prompt.text, tuple(candidates))
