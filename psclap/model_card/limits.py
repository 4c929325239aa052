"""What a model is not for, and where it fails: stated from its data and numbers, not in general."""

from __future__ import annotations

from collections.abc import Iterator

from psclap.model_card.facts import Facts
from psclap.model_card.results import near_chance_names, percent
from psclap.tags import ATTRIBUTES

_PEOPLE = ("gender", "accent")
_RARE = 0.05


def limits(facts: Facts) -> Iterator[str]:
    """The section's lines."""
    yield (
        "- **People.** Not for identifying a person, nor for inferring or judging anyone's gender, origin, health, "
        "character or state of mind, nor for decisions about people. Tags such as gender and accent say how a voice "
        f"was labelled in the corpus{_people_tags(facts)}, not what its speaker is."
    )
    if "demo" in facts.corpora:
        yield "- **Synthetic voices.** No person's voice was heard in training or in the test (espeak-ng throughout)."
    yield f"- **Languages.** {_languages(facts)}"
    yield f"- **Speakers.** {_speakers(facts)}"
    yield f"- **Styles.** {_styles(facts)}"
    if weak := near_chance_names(facts):
        yield f"- **Known failures.** It does not tell {', '.join(weak)}: there its answers are guesses."
    yield f"- **Long clips.** {_lengths(facts)}"
    yield f"- **Level.** {_level(facts)}"
    yield (
        "- **Scores.** A cosine is no probability and has no fixed threshold: compare candidates for one clip, or "
        "clips for one caption, and nothing else. Something always wins, even where nothing fits."
    )
    yield "- **Sound.** Silence, music and several speakers at once were not part of the evaluation."


def _people_tags(facts: Facts) -> str:
    known = facts.trained["tags"]["intrinsic"]
    labels = [tag for attribute in _PEOPLE for tag in ATTRIBUTES[attribute] if tag in known]
    return f" ({', '.join(labels)})" if labels else ""


def _languages(facts: Facts) -> str:
    heard = [f"{name or '(not given)'} ({c['clips']:,} clips)" for name, c in facts.trained["languages"].items()]
    tested = [name or "(not given)" for name in facts.tested["languages"]]
    return (
        f"Speech in training: {', '.join(heard)}; in the test: {', '.join(tested)}. Speech and captions in other "
        "languages are untested."
    )


def _speakers(facts: Facts) -> str:
    shared, tested = facts.shared_speakers, facts.tested["speakers"]
    known = f"{shared:,} of whom it had heard in training" if shared else "none of whom it had heard before"
    return (
        f"Trained on {facts.trained['speakers']:,} speakers, tested on {tested:,}, {known}. Voices and recording "
        "conditions unlike theirs are untested."
    )


def _styles(facts: Facts) -> str:
    tags = {tag: entry for level in facts.levels for tag, entry in facts.trained["tags"][level].items()}
    if not tags:
        return "The training clips carry no tags, so which styles their captions cover is not known."
    rare = [
        f"{tag} ({percent(entry['share'])} % of the clips)" for tag, entry in tags.items() if entry["share"] < _RARE
    ]
    rarity = f" Rare among them: {', '.join(rare)}." if rare else ""
    return (
        f"Its captions speak of {len(tags)} styles (tags under training data); words for others, however common, are "
        f"untested.{rarity}"
    )


def _lengths(facts: Facts) -> str:
    heard, tested = facts.train.max_crop_s, facts.tested["durations_s"]
    return (
        f"Training heard crops of at most {heard:g} s, the test clips last {tested['min']:.1f} to {tested['max']:.1f} "
        "s. A clip becomes one vector, so a style that changes within it is averaged away: cut long recordings into "
        "windows."
    )


def _level(facts: Facts) -> str:
    if facts.params.model.normalise_audio:
        return "Each clip is brought to unit variance, so how loud it was recorded is not heard."
    return "Clips are heard at the level they were recorded at: a gain before the model changes what it says of volume."
