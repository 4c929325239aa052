import itertools
from collections import Counter

import numpy as np
import pytest

from psclap import audio
from psclap.corpora import build_corpus, espeak
from psclap.corpora.demo_text import SHORT_SENTENCES
from psclap.corpora.demo_tts import MAX_SPEAKERS, DemoTts
from psclap.corpora.demo_voices import spoken
from psclap.errors import ConfigError, PsclapError
from psclap.schema import CAPTION_SETS, SPLITS, utterances_to_table
from psclap.soundness.checks import check
from psclap.tags import check_tags
from psclap.text.phonemes import PUNCTUATION, phonemize

SMALL = {"speakers": 3, "train_clips": 12, "val_clips": 3, "test_clips": 3}
VOICE = espeak.Voice("plain", ("gender male", "pitch 100 160"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder and the utterances of a small corpus."""
    folder = tmp_path_factory.mktemp("demo_tts")
    return folder, list(build_corpus("demo_tts", SMALL).utterances(folder, processes=2))


def timed(text: str, language: str = "en", **request):
    ((wave, phonemes),) = espeak.synthesise_timed([VOICE], [espeak.Request(text, "plain", **request)], 1, language)
    return wave, phonemes


def said(text: str, language: str) -> list[str]:
    return [symbol for symbol in phonemize(text, language) if symbol not in (" ", *PUNCTUATION)]


def test_every_split_has_the_same_speakers_and_sentences_of_its_own(made):
    by_split = {split: [u for u in made[1] if u.split == split] for split in SPLITS}
    assert [len(by_split[split]) for split in SPLITS] == [12, 3, 3]
    for utterances in by_split.values():
        assert {u.speaker for u in utterances} == {"voice-00", "voice-01", "voice-02"}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not set(SHORT_SENTENCES[one]) & set(SHORT_SENTENCES[other])
        assert not {u.transcript for u in by_split[one]} & {u.transcript for u in by_split[other]}


def test_utterances_carry_text_language_tags_and_captions(made):
    for utterance in made[1]:
        assert phonemize(utterance.transcript, utterance.language)
        assert len(check_tags(utterance.intrinsic_tags)) == 3
        assert len(check_tags(utterance.situational_tags)) == 4
        assert [caption.set for caption in utterance.captions] == list(CAPTION_SETS)
    report = check(utterances_to_table(made[1]), min_tag_count=1)
    assert {finding.name: finding.severity for finding in report.findings} == {"speakers in several splits": "warning"}


def test_the_clips_do_not_depend_on_the_number_of_processes(made, tmp_path):
    folder, known = made
    assert list(build_corpus("demo_tts", SMALL).utterances(tmp_path, processes=1)) == known
    for utterance in known:
        assert (tmp_path / utterance.audio).read_bytes() == (folder / utterance.audio).read_bytes()


def test_speakers_share_out_their_attributes_and_one_is_a_narrator():
    for count in (1, 2, 6, 8, 12, MAX_SPEAKERS):
        speakers = DemoTts(speakers=count)._speakers()
        assert len({speaker.tags for speaker in speakers}) == count
        for place, values in enumerate((2, 3, 4)):
            counts = Counter(speaker.tags[place] for speaker in speakers).values()
            assert max(counts) <= -(-count // values) + (values == 4), (count, counts)
    assert DemoTts(speakers=1)._speakers() == DemoTts(speakers=8)._speakers()[:1]
    with pytest.raises(ConfigError, match=r"speakers: 25 must lie in \[1, 24\]"):
        build_corpus("demo_tts", {"speakers": 25})


def test_train_has_heard_every_phoneme_of_the_other_splits():
    heard = {split: {s for text in SHORT_SENTENCES[split] for s in phonemize(text, "en")} for split in SPLITS}
    assert heard["val"] | heard["test"] <= heard["train"]


def test_clips_are_short():
    clips = DemoTts(speakers=2, train_clips=40)._clips()[:40]
    seconds = [len(wave) / espeak.SAMPLE_RATE_HZ for wave in spoken(clips, 2)]
    assert 0.5 < min(seconds) <= np.mean(seconds) < 2 < max(seconds) < 3


def test_timed_clips_are_those_of_the_corpus_with_their_phonemes(made):
    folder, known = made
    keys = [utterance.key for utterance in known[::-4]]
    found = list(DemoTts(**SMALL).timed(keys, 2))
    assert [key for key, _, _ in found] == keys
    for utterance, (_, wave, phonemes) in zip(known[::-4], found, strict=True):
        written, rate_hz = audio.decode(folder / utterance.audio)
        np.testing.assert_array_equal(wave, written)
        assert [phoneme.symbol for phoneme in phonemes] == said(utterance.transcript, "en")
        bounds = [time for phoneme in phonemes for time in (phoneme.start_s, phoneme.end_s)]
        assert bounds == sorted(bounds)
        assert 0 <= bounds[0] < bounds[-1] <= len(wave) / rate_hz
    with pytest.raises(PsclapError, match="there is no clip 'demo-tts-train-00012'"):
        next(DemoTts(**SMALL).timed(["demo-tts-train-00012"]))


def test_synthesise_timed_gives_the_bytes_of_synthesise():
    requests = [espeak.Request(text, "plain", rate_wpm=rate) for rate in (115, 260) for text in SHORT_SENTENCES["test"]]
    plain = espeak.synthesise([VOICE], requests[::9], 2)
    for wave, (again, _) in zip(plain, espeak.synthesise_timed([VOICE], requests[::9], 2), strict=True):
        assert wave.tobytes() == again.tobytes()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("A little button, a fire; the hour of 12 judges. Mr. Smith, e.g. in the U.S., paid 5 dollars!", "en"),
        ("卡尔普陪外孙玩滑梯，绿女儿一个好不好？我用Python写代码。", "cmn"),
        ("Das Team ist schön, oder? Zwölf Computer.", "de"),
        ("L'homme est là; n'est-ce pas ?", "fr"),
        ("Привет, мир! Как дела?", "ru"),
        ("labas rytas", "lt"),
        ("xin chào thế giới", "vi"),
        ("The water is hot.", "en-us"),
        ("你好。", "zh"),
        ("Det er sju hus.", "no"),
    ],
)
def test_the_phonemes_that_are_said_are_those_that_are_read(text, language):
    assert [phoneme.symbol for phoneme in timed(text, language)[1]] == said(text, language)


def test_an_unknown_language_is_an_error():
    with pytest.raises(PsclapError, match="language 'xx' is none that espeak-ng speaks"):
        next(espeak.synthesise([VOICE], [espeak.Request("Hello.", "plain")], 1, "xx"))


def test_the_times_are_those_of_the_sounds():
    wave, phonemes = timed("She saw a fish. He asked us for the sash.", volume_percent=50)

    def crossings(symbols: str) -> list[float]:
        """Sign changes a second in each phoneme of one of these symbols."""
        spans = [(round(p.start_s * 22050), round(p.end_s * 22050)) for p in phonemes if p.symbol in symbols.split()]
        return [np.count_nonzero(np.diff(np.sign(wave[start:end]))) / (end - start) * 22050 for start, end in spans]

    assert len(crossings("s ʃ")) == 7
    assert min(crossings("s ʃ")) > 2 * max(crossings("iː ˈɔː ˈɪ ˈa ˈɑː"))
    gaps = [(one.end_s, other.start_s) for one, other in itertools.pairwise(phonemes)]
    start_s, end_s = max(gaps, key=lambda gap: gap[1] - gap[0])  # between the sentences
    assert end_s - start_s > 0.2
    assert np.abs(wave[round((start_s + 0.05) * 22050) : round(end_s * 22050) - 200]).max() < 0.01 * np.abs(wave).max()
