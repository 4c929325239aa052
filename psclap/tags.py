"""The style vocabulary: 59 tags, the attributes they are candidates of, and how they are put into words.

Source: ParaSpeechCLAP (arXiv 2603.28737) for tags, attributes and the default prompt; the synonyms are ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from psclap.errors import PsclapError

RICH_INTRINSIC: tuple[str, ...] = (
    *("shrill", "nasal", "deep"),
    *("silky", "husky", "raspy", "guttural", "vocal-fry"),
    *("crisp", "slurred", "stammering"),
    *("booming", "authoritative", "loud", "soft"),
    *("flowing", "punctuated", "hesitant", "singsong", "monotonous"),
    *("American", "British", "Scottish", "Canadian", "Australian", "Irish", "Indian", "Jamaican"),
)
BASIC_INTRINSIC: tuple[str, ...] = ("high-pitched", "medium-pitched", "low-pitched", "male", "female")
EMOTIONS: tuple[str, ...] = (
    *("enthusiastic", "happy", "angry", "saddened", "awed", "calm", "anxious", "disgusted", "scared"),
    *("confused", "bored", "sleepy", "pained", "guilt", "sarcastic", "sympathetic", "admiring", "desirous"),
)
RICH_SITUATIONAL: tuple[str, ...] = (*EMOTIONS, "animated", "laughing", "passive", "whispered", "enunciated")
BASIC_SITUATIONAL: tuple[str, ...] = ("fast", "measured", "slow")

VOCABULARY: tuple[str, ...] = RICH_INTRINSIC + BASIC_INTRINSIC + RICH_SITUATIONAL + BASIC_SITUATIONAL
"""The 59 tags that captions and the classification loss are made of."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    # As the paper evaluates them; "lisp" and "hushed" are candidates there without being training tags.
    "pitch": ("shrill", "nasal", "deep"),
    "texture": ("silky", "husky", "raspy", "guttural", "vocal-fry"),
    "clarity": ("crisp", "slurred", "lisp", "stammering"),
    "volume": ("booming", "authoritative", "loud", "hushed", "soft"),
    "rhythm": ("flowing", "punctuated", "hesitant", "singsong", "monotonous"),
    "situational": (
        *("angry", "guilt", "scared", "happy", "loud", "sarcastic", "sympathetic", "desirous"),
        *("enthusiastic", "saddened", "anxious", "sleepy", "admiring", "disgusted", "awed", "pained"),
        *("fast", "calm", "whispered", "enunciated", "confused"),
    ),
    # The basic tags and the remaining contrasts, which the paper trains with but does not score.
    "gender": ("male", "female"),
    "pitch-level": ("low-pitched", "medium-pitched", "high-pitched"),
    "accent": ("American", "British", "Scottish", "Canadian", "Australian", "Irish", "Indian", "Jamaican"),
    "rate": ("slow", "measured", "fast"),
    "phonation": ("whispered", "enunciated"),
    "intonation": ("animated", "passive"),
}
"""The candidates of each attribute: zero-shot classification takes the nearest of them."""

KNOWN_TAGS: frozenset[str] = frozenset(VOCABULARY).union(*ATTRIBUTES.values())

SYNONYMS: dict[str, tuple[str, ...]] = {
    "male": ("male", "man's", "masculine"),
    "female": ("female", "woman's", "feminine"),
    "low-pitched": ("low-pitched", "low", "deep-toned"),
    "medium-pitched": ("medium-pitched", "mid-range", "moderately pitched"),
    "high-pitched": ("high-pitched", "high", "treble"),
    "silky": ("silky", "smooth", "velvety"),
    "husky": ("husky", "breathy", "smoky"),
    "raspy": ("raspy", "rough", "gravelly"),
    "vocal-fry": ("vocal-fry", "creaky", "croaking"),
    "slow": ("slow", "unhurried", "slow-paced"),
    "measured": ("measured", "steady", "evenly paced"),
    "fast": ("fast", "rapid", "quick"),
    "loud": ("loud", "powerful", "high-volume"),
    "soft": ("soft", "quiet", "faint"),
    "whispered": ("whispered", "whispering", "voiceless"),
    "enunciated": ("enunciated", "clearly voiced", "full-voiced"),
    "animated": ("animated", "lively", "expressive"),
    "passive": ("passive", "flat", "impassive"),
}
"""Adjectives for a tag, the tag itself first. A tag without an entry has itself as its only wording."""

DEFAULT_PROMPT = "A person is speaking in a {} style."
_SYNONYM_PROMPTS = (DEFAULT_PROMPT, "The voice is {}.", "A {} voice.")


def default_prompt(tag: str) -> str:
    """The prompt of zero-shot classification (paper, evaluation).

    >>> default_prompt("raspy")
    'A person is speaking in a raspy style.'
    """
    return DEFAULT_PROMPT.format(tag)


def training_prompts(tag: str) -> tuple[str, ...]:
    """Every wording of a tag that the classification loss may draw from (paper, class-label templates).

    >>> len(training_prompts("raspy")), training_prompts("Irish")
    (9, ('A person is speaking in a Irish style.',))
    """
    if tag not in SYNONYMS:
        return (default_prompt(tag),)
    return tuple(template.format(word) for word in SYNONYMS[tag] for template in _SYNONYM_PROMPTS)


def tag_of(attribute: str, tags: Collection[str]) -> str | None:
    """The one candidate of an attribute that is among some tags; None where none is, or several.

    >>> tag_of("rate", ["slow", "male"]), tag_of("rate", ["slow", "fast"]), tag_of("rate", [])
    ('slow', None, None)
    """
    found = [tag for tag in ATTRIBUTES[attribute] if tag in tags]
    return found[0] if len(found) == 1 else None


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Returns the tags as a tuple. Raises PsclapError that names an unknown one and its nearest neighbours."""
    tags = tuple(tags)
    for tag in tags:
        if tag not in KNOWN_TAGS:
            raise PsclapError(_unknown("tag", tag, sorted(KNOWN_TAGS)))
    return tags


def resolve_candidates(names: Iterable[str]) -> tuple[str, ...]:
    """Candidates for classification from tags or attribute names; an attribute stands for all its tags.

    Raises PsclapError for a name that is neither, and where fewer than two candidates result.

    >>> resolve_candidates(["gender"])
    ('male', 'female')
    """
    candidates: list[str] = []
    for name in names:
        if name not in KNOWN_TAGS and name not in ATTRIBUTES:
            raise PsclapError(_unknown("tag or attribute", name, [*sorted(KNOWN_TAGS), *ATTRIBUTES]))
        candidates.extend(ATTRIBUTES.get(name, (name,)))
    candidates = list(dict.fromkeys(candidates))
    if len(candidates) < 2:
        raise PsclapError(
            f"classification needs at least 2 candidate tags, got {candidates}; "
            f"name more tags, or one of the attributes {', '.join(ATTRIBUTES)}"
        )
    return tuple(candidates)


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known attributes: {', '.join(ATTRIBUTES)}"
    return f"unknown {kind} {name!r}: it is not in the style vocabulary (psclap/tags.py); {hint}"
