import itertools
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import psutil
import pytest
from scipy.stats import chi2_contingency, chisquare

from psclap import audio
from psclap.corpora import build_corpus, espeak
from psclap.corpora.demo import Demo
from psclap.errors import ConfigError, PsclapError
from psclap.schema import CAPTION_SETS, SPLITS
from psclap.tags import SYNONYMS, check_tags

ATTRIBUTES = ("gender", "pitch", "texture", "rate", "volume", "phonation", "intonation")
SMALL = {"train_clips": 24, "val_clips": 24, "test_clips": 24}
VOICE = espeak.Voice("plain", ("gender male", "pitch 100 160"))


@pytest.fixture(scope="module")
def clips():
    """The clips of the full-size corpus, not synthesised, by split."""
    return {split: list(Demo()._clips(split)) for split in SPLITS}


def captions_of(utterance, caption_set):
    return tuple(caption.text for caption in utterance.captions if caption.set == caption_set)


def tags_said(text: str) -> set[str]:
    def says(word):
        return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE)

    # the speaker is a noun in captions, the adjectives of SYNONYMS elsewhere
    speakers = {"male": ("man", "male speaker", "gentleman"), "female": ("woman", "female speaker", "lady")}
    return {tag for tag, words in SYNONYMS.items() if any(map(says, (*words, *speakers.get(tag, ()))))}


def test_the_bytes_do_not_depend_on_the_run_the_number_of_processes_or_of_clips(mini_corpus, tmp_path):
    folder, utterances = mini_corpus  # made by 2 processes
    known = {u.key: replace(u, audio=f"audio/{u.key}.flac") for u in utterances}
    again = list(build_corpus("demo", SMALL).utterances(tmp_path, processes=1))
    assert Counter(u.split for u in again) == {"train": 24, "val": 24, "test": 24}
    for utterance in again:
        assert utterance == known[utterance.key]
        assert (tmp_path / utterance.audio).read_bytes() == (folder / utterance.audio).read_bytes()


def test_every_clip_is_audible_speech(mini_corpus):
    for utterance in mini_corpus[1]:
        wave, rate_hz = audio.decode(utterance.audio)
        assert rate_hz == espeak.SAMPLE_RATE_HZ
        assert len(wave) > rate_hz
        assert np.abs(wave).max() > 0.01


@pytest.mark.parametrize("what", ["speaker", "transcript", "key"])
def test_no_two_splits_share(mini_corpus, what):
    values = {split: {getattr(u, what) for u in mini_corpus[1] if u.split == split} for split in SPLITS}
    assert all(values.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not values[one] & values[other]


def test_test_clips_come_in_pairs_of_one_style_and_two_sentences(mini_corpus):
    test = [utterance for utterance in mini_corpus[1] if utterance.split == "test"]
    for one, other in zip(test[::2], test[1::2], strict=True):
        assert one.captions == other.captions
        assert (one.intrinsic_tags, one.situational_tags) == (other.intrinsic_tags, other.situational_tags)
        assert one.speaker == other.speaker
        assert one.transcript != other.transcript


def test_utterances_carry_known_tags_and_captions_of_every_set(mini_corpus):
    for utterance in mini_corpus[1]:
        assert len(check_tags(utterance.intrinsic_tags)) == 3
        assert len(check_tags(utterance.situational_tags)) == 4
        for caption_set in CAPTION_SETS:
            assert len(captions_of(utterance, caption_set)) == (2 if utterance.split == "train" else 1)


@pytest.mark.parametrize("split", SPLITS)
def test_captions_mention_only_their_clips_tags_and_outside_train_all_of_them(clips, split):
    demo = Demo()
    for utterance in (demo._utterance(clip, "") for clip in clips[split]):
        intrinsic, situational = set(utterance.intrinsic_tags), set(utterance.situational_tags)
        allowed = {"intrinsic": intrinsic, "situational": situational, "combined": intrinsic | situational}
        for caption in utterance.captions:
            said = tags_said(caption.text)
            assert said
            assert said <= allowed[caption.set] if split == "train" else said == allowed[caption.set], caption


def test_the_same_style_has_one_caption_outside_train_and_another_style_has_another(clips):
    demo = Demo()
    utterances = [demo._utterance(clip, "") for clip in clips["test"]]
    assert len(utterances) == 312
    combined = Counter(captions_of(utterance, "combined") for utterance in utterances)
    assert len(combined) == 156
    assert set(combined.values()) == {2}
    intrinsic = {(utterance.intrinsic_tags, captions_of(utterance, "intrinsic")) for utterance in utterances}
    assert len(intrinsic) == len({tags for tags, _ in intrinsic}) == len({text for _, text in intrinsic}) == 24


def test_vocal_fry_is_rare_in_train_but_there(clips):
    share = np.mean([clip.speaker.texture == "vocal-fry" for clip in clips["train"]])
    assert 0.02 < share < 0.05


def test_train_speakers_cover_every_gender_and_pitch_of_every_common_texture():
    cells = {texture: Counter() for texture in ("silky", "husky", "raspy", "vocal-fry")}
    for speaker in Demo()._speakers("train"):
        cells[speaker.texture][speaker.gender, speaker.pitch] += 1
    assert {texture: count.total() for texture, count in cells.items()} == {
        **{"silky": 40, "husky": 30},
        **{"raspy": 22, "vocal-fry": 4},
    }
    assert all(len(cells[texture]) == 6 for texture in ("silky", "husky", "raspy"))
    assert all(max(count.values()) - min(count.values()) <= 1 for count in cells.values())
    for number, values in enumerate((("male", "female"), ("low-pitched", "medium-pitched", "high-pitched"))):
        assert {cell[number] for cell in cells["vocal-fry"]} == set(values)


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_splits_hold_every_speaker_cell_equally_often(clips, split):
    count = Counter(clip.speaker.tags for clip in clips[split])
    assert len(count) == 24
    assert max(count.values()) - min(count.values()) <= (2 if split == "test" else 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_train_styles_are_independent_of_each_other_and_of_the_speaker(seed):
    clips = list(Demo(seed=seed)._clips("train"))
    values = dict(zip(ATTRIBUTES, zip(*(clip.tags("combined") for clip in clips), strict=True), strict=True))
    for one, other in itertools.combinations(ATTRIBUTES, 2):
        if other in ATTRIBUTES[3:]:  # speakers are few: their own attributes are laid out, not drawn
            count = Counter(zip(values[one], values[other], strict=True))
            table = [[count[a, b] for b in sorted(set(values[other]))] for a in sorted(set(values[one]))]
            assert chi2_contingency(table).pvalue > 1e-4, (one, other)


def test_train_styles_are_drawn_uniformly_but_for_a_quarter_of_whispers(clips):
    for number, options in enumerate((3, 2, 2, 2)):
        count = Counter(clip.style.tags[number] for clip in clips["train"])
        whispered = [1800, 600] if "whispered" in count else None
        assert len(count) == options
        assert chisquare([count[tag] for tag in sorted(count)], whispered).pvalue > 1e-3


def test_the_seed_changes_the_corpus():
    assert [clip.style for clip in Demo(seed=1)._clips("val")] != [clip.style for clip in Demo()._clips("val")]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("demos", {}, r"corpus.name: 'demos' is not a corpus; known corpora: demo, paraspeechcaps"),
        ("demo", {"train_clips": 23}, r"corpus.options.train_clips: 23 must be at least 24"),
        ("demo", {"test_clips": 961}, r"corpus.options.test_clips: 961 must lie in \[24, 960\]"),
        ("demo", {"clips": 9}, r"corpus.options.clips: unknown key"),
    ],
)
def test_a_bad_corpus_name_or_option_is_named(name, options, said):
    with pytest.raises(ConfigError, match=said):
        build_corpus(name, options)


def test_the_largest_corpus_can_still_draw_distinct_styles_for_its_speakers():
    demo = Demo(val_clips=480, test_clips=960)
    assert len({clip.tags("combined") for clip in demo._clips("val")}) == 480
    assert len({clip.tags("combined") for clip in demo._clips("test")}) == 480


def test_speech_depends_on_its_request_alone_and_not_on_its_neighbours():
    requests = [espeak.Request(text, "plain", rate) for text in ("Good morning.", "Rain.") for rate in (120, 250)]
    waves = list(espeak.synthesise([VOICE], requests, 2))
    for wave, again in zip(waves, reversed(list(espeak.synthesise([VOICE], requests[::-1], 1))), strict=True):
        np.testing.assert_array_equal(wave, again)
    assert len(waves[0]) > 1.5 * len(waves[1])


def test_rate_volume_and_pitch_range_are_heard():
    settings = ({}, {"rate_wpm": 350}, {"volume_percent": 25}, {"pitch_range_percent": 0})
    requests = [espeak.Request("Good morning to you all.", "plain", **setting) for setting in settings]
    plain, fast, soft, flat = (wave.astype(float) for wave in espeak.synthesise([VOICE], requests, 1))
    assert len(fast) < 0.8 * len(plain)
    assert len(soft) == len(plain)
    assert soft.std() < 0.5 * plain.std()
    assert not np.array_equal(flat, plain)


def test_an_unknown_voice_is_refused():
    with pytest.raises(PsclapError, match=r"no voice 'plane'; defined voices: \['plain'\]"):
        list(espeak.synthesise([VOICE], [espeak.Request("Hello.", "plane")], 1))


def test_a_speaker_that_dies_is_told_and_none_is_left(tmp_path):
    before = psutil.Process().children()
    said = espeak.synthesise([VOICE], [espeak.Request("Good morning.", "plain")] * 50, 2)
    assert next(said).any()
    speakers = [child for child in psutil.Process().children() if child not in before]
    assert len(speakers) == 2
    for speaker in speakers:
        speaker.kill()
    with pytest.raises(RuntimeError, match=r"espeak-ng: 'Good morning.' was not said: its process was killed"):
        list(said)
    with espeak._Speaker() as speaker:
        job = {"home": str(tmp_path), "voice": "en", "text": "Rain.", "options": 0}
        job |= {"rate_wpm": 175, "volume_percent": 100, "pitch_range_percent": 50}
        with pytest.raises(RuntimeError, match=r"'Rain.' was not said: espeak-ng did not start with the data in"):
            speaker.say(job)
    assert not [child for child in psutil.Process().children() if child not in before]
