"""ESD, the Emotional Speech Dataset (for research only): 20 speakers, five emotions, the same 350 sentences in each.

Speakers 0001 to 0010 speak Mandarin, 0011 to 0020 English. The audio lies at `SPEAKER/EMOTION/NAME.wav`, or in the
folder of its official split below that, `train`, `evaluation` or `test`; `SPEAKER/SPEAKER.txt` has the name, the
text and the emotion. Neutral is no tag, Sad is "saddened", and Surprise is "awed": the vocabulary's only answer to
the unexpected, so that a model can be told of it at all. The lists of texts are in GB 2312, UTF-16, UTF-8 or Latin-1,
by speaker, and a few of their lines are broken; who is a man and who a woman, the corpus does not say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from psclap.corpora.keys import safe_sample_key
from psclap.corpora.layout import captions_of, find_list, read_lines, say_left_out, tags_of
from psclap.errors import PsclapError
from psclap.schema import Split, Utterance
from psclap.strict import not_empty

Emotion = Literal["Angry", "Happy", "Neutral", "Sad", "Surprise"]

EMOTION_TAGS: dict[str, str | None] = {
    **{"Angry": "angry", "Happy": "happy", "Neutral": None},
    **{"Sad": "saddened", "Surprise": "awed"},
}
_FOLDERS: dict[str, Split] = {"train": "train", "evaluation": "val", "test": "test"}
_SENTENCES, _VAL_SENTENCES, _TEST_SENTENCES = 350, 20, 30  # of each emotion: the first are evaluation, then test
_SPEAKER = re.compile(r"00(0[1-9]|1\d|20)")
_NAME = re.compile(r"\d{4}_\d{6}")
_LINE = re.compile(rf"({_NAME.pattern})\s+(\S.*?)(?:\t\S*|\s+(?:Neutral|Angry|Happy|Sad|Surprise))?\s*")


@dataclass(frozen=True, kw_only=True)
class Esd:
    """Options: the folder of the speakers' folders, which languages, which emotions."""

    root: str
    languages: tuple[Literal["cmn", "en"], ...] = field(default=("cmn", "en"), metadata=not_empty())
    emotions: tuple[Emotion, ...] = field(
        default=("Angry", "Happy", "Neutral", "Sad", "Surprise"), metadata=not_empty()
    )

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Yields an utterance per audio file that has a text; the others are left out, and counted.

        Raises PsclapError where there is no speaker's folder, and where a speaker's list of texts is missing.
        """
        for speaker in self._speakers():
            texts = _texts(find_list(str(speaker), f"{speaker.name}.txt", "esd"))
            files = sorted(path for emotion in self.emotions for path in _audio(speaker / emotion))
            mute = [path for path in files if path.stem not in texts]
            say_left_out("esd", len(mute), f"wav files of {speaker.name} have no text", mute[0] if mute else "")
            yield from (self._utterance(speaker, path, texts) for path in files if path.stem in texts)

    def _speakers(self) -> list[Path]:
        root = find_list(self.root, "", "esd")
        speakers = [path for path in sorted(root.iterdir()) if _SPEAKER.fullmatch(path.name) and path.is_dir()]
        chosen = [path for path in speakers if _language(path.name) in self.languages]
        if not chosen:
            raise PsclapError(
                f"esd: {root} has no folders 0001 to 0020 of a speaker of {list(self.languages)}; "
                "set corpus.options.root to the unpacked folder that has them"
            )
        return chosen

    def _utterance(self, speaker: Path, path: Path, texts: Mapping[str, str]) -> Utterance:
        within = path.relative_to(speaker).parts
        tag = EMOTION_TAGS[within[0]]
        return Utterance(
            key=safe_sample_key(f"esd-{path.stem}"),
            audio=str(path),
            speaker=f"esd-{speaker.name}",
            source="esd",
            split=_FOLDERS[within[1]] if len(within) == 3 else _split(path.stem),
            captions=captions_of(None, tag),
            situational_tags=tags_of(tag),
            transcript=texts[path.stem],
            language=_language(speaker.name),
        )


def _language(speaker: str) -> Literal["cmn", "en"]:
    return "cmn" if int(speaker) <= 10 else "en"


def _audio(emotion: Path) -> Iterator[Path]:
    for folder in (emotion, *(emotion / name for name in _FOLDERS)):
        yield from (path for path in folder.glob("*.wav") if _NAME.fullmatch(path.stem))


def _split(name: str) -> Split:
    """The official split of a clip that lies in none's folder: by its number among those of its emotion."""
    number = (int(name[-6:]) - 1) % _SENTENCES
    return "val" if number < _VAL_SENTENCES else "test" if number < _VAL_SENTENCES + _TEST_SENTENCES else "train"


def _texts(path: Path) -> dict[str, str]:
    """The text of each name: a line is the name, the text and the emotion; what divides them varies."""
    legacy_encoding = "gb18030" if _language(path.stem) == "cmn" else "cp1252"
    lines = [(where, _LINE.fullmatch(line.strip())) for where, line in read_lines(path, legacy_encoding)]
    broken = [where for where, match in lines if match is None]
    say_left_out("esd", len(broken), "lines are no name, text and emotion", broken[0] if broken else "")
    return {match[1]: match[2] for _, match in lines if match is not None}
