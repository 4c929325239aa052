"""What the demo corpus says, and how its styles are described: sentences and captions from small grammars."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from psclap.schema import CaptionSet, Split
from psclap.tags import SYNONYMS

_SUBJECTS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("The morning train", "My older sister", "A small grey cat", "The village baker", "Our new teacher"),
        *("The last visitor", "An honest sailor", "The tall gardener", "Her youngest cousin", "The night nurse"),
        *("A patient farmer", "The old clockmaker", "Their noisy neighbour", "The museum guide", "A lost tourist"),
        *("The school choir", "Your friendly postman", "The careful driver", "A quiet student", "The busy cook"),
    ),
    "val": ("The harbour pilot", "A retired judge", "My best friend", "The street musician", "Our local doctor"),
    "test": (
        *("The mountain ranger", "A curious child", "The evening reporter", "His brave uncle"),
        *("The skilful weaver", "A distant traveller", "The new librarian"),
    ),
}
_PREDICATES: dict[Split, tuple[str, ...]] = {
    "train": (
        *("arrived at the station before sunrise.", "painted the garden fence dark green."),
        *("found a silver coin under the bridge.", "carried two heavy baskets up the hill."),
        *("opened every window on the second floor.", "wrote a long letter about the winter."),
        *("waited for the rain to stop.", "told us a story about the sea."),
        *("bought fresh bread and a jar of honey.", "walked slowly around the frozen lake."),
    ),
    "val": (
        *("repaired the broken lamp by hand.", "left the keys beside the kitchen door."),
        *("planted seven apple trees in spring.", "missed the final bus into town."),
    ),
    "test": (
        *("followed the narrow path through the forest.", "kept a wooden box full of photographs."),
        *("climbed the tower to watch the storm.", "borrowed a book on distant planets."),
        "served hot soup to the hungry guests.",
    ),
}

SENTENCES: dict[Split, tuple[str, ...]] = {
    split: tuple(f"{subject} {predicate}" for subject in _SUBJECTS[split] for predicate in _PREDICATES[split])
    for split in _SUBJECTS
}
"""200 sentences for train, 20 for val, 35 for test; no sentence, subject or predicate is in two splits."""

_SHORT_SUBJECTS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("The boy", "A girl", "My father", "The judge", "Her uncle", "An owl", "The children", "Our nurse"),
        *("Some women", "The young king", "A church choir", "His brother", "The shy thief", "Their cousin"),
        *("Both towns", "The huge bear", "A poor sailor", "The old chief", "Every child", "The good sheep"),
    ),
    "val": ("The teacher", "A young wolf", "Her father", "The cook", "My brother"),
    "test": ("The sailor", "A wise owl", "Our cousin", "His mother", "The thief", "Some boys", "The nurse"),
}
_SHORT_PREDICATES: dict[Split, tuple[str, ...]] = {
    "train": (
        *("found a coin.", "saw the ship.", "chose a red hat.", "heard the noise.", "sings very well."),
        *("took a long bath.", "pulled the rope.", "laughed out loud.", "went back home.", "likes fresh air."),
        *("ran for an hour.", "joined us there.", "gave me a rose.", "bought five eggs.", "made us tea."),
        *("looked for clues.", "stood near the fire.", "measured the house.", "thanked the judge.", "thought of you."),
    ),
    "val": ("sold the boat.", "heard a choir.", "took the red rope.", "went for a walk.", "likes good food."),
    "test": (
        *("found the road.", "chose five roses.", "stood by the gate.", "sings for joy.", "saw a fire."),
        *("bought a long coat.", "thanked us all."),
    ),
}

SHORT_SENTENCES: dict[Split, tuple[str, ...]] = {
    split: tuple(
        f"{subject} {predicate}" for subject in _SHORT_SUBJECTS[split] for predicate in _SHORT_PREDICATES[split]
    )
    for split in _SHORT_SUBJECTS
}
"""400 sentences of 4 to 7 words for train, 25 for val, 49 for test, each in one split alone.

Train has every phoneme of the other splits, as a voice must have heard what it is to say.
"""

_TEMPLATES: tuple[tuple[str, str], ...] = (
    # (with a speaker to name, without one); {} are the adjectives, {who} is a male or female speaker
    ("{a} {who} with {an} {} voice.", "{an} {} voice."),
    ("{a} {who} is speaking in {an} {} style.", "A person is speaking in {an} {} style."),
    ("The voice of {a} {who} is {}.", "The voice is {}."),
    ("{an} {} {who} talks.", "Someone talks in {an} {} way."),
    ("We hear {a} {who}, {}.", "The delivery sounds {}."),
)
_SPEAKERS = {"male": ("man", "male speaker", "gentleman"), "female": ("woman", "female speaker", "lady")}


def caption(tags: Sequence[str], rng: np.random.Generator, dropout: float = 0.0) -> str:
    """One wording of `tags` (a gender among them or not); each is left out with probability `dropout`.

    At least one tag always stays.

    >>> caption(["raspy", "male"], np.random.default_rng(0))
    'A man with a raspy voice.'
    """
    kept = [tag for tag in tags if rng.random() >= dropout] or [tags[int(rng.integers(len(tags)))]]
    gender = next((tag for tag in kept if tag in _SPEAKERS), None)
    adjectives = [str(rng.choice(SYNONYMS[tag])) for tag in kept if tag not in _SPEAKERS]
    rng.shuffle(adjectives)
    if not adjectives:
        return f"A {rng.choice(_SPEAKERS[kept[0]])} is speaking."
    template = _TEMPLATES[rng.integers(len(_TEMPLATES))][0 if gender else 1]
    who = str(rng.choice(_SPEAKERS[gender])) if gender else ""
    text = template.format(", ".join(adjectives), a="a", an=_article(adjectives[0]), who=who)
    return text[0].upper() + text[1:]


def fixed_caption(caption_set: CaptionSet, tags: Sequence[str], seed: int) -> str:
    """The one wording that this seed gives to a combination of tags: complete, the same for every clip.

    Evaluation needs it so: a caption that leaves an attribute out, or a second wording, would be a right
    answer that counts as wrong.
    """
    return caption(tags, np.random.default_rng([seed, zlib.crc32("|".join((caption_set, *tags)).encode())]))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
