import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import pytest

from psclap.corpora import espeak
from psclap.corpora.demo_text import SENTENCES
from psclap.errors import PsclapError
from psclap.parallel import process_map
from psclap.text import espeak_reader
from psclap.text.normalise import normalise
from psclap.text.phonemes import MAX_CHARACTERS, PUNCTUATION, phonemize

TEXTS = [(sentence, "en") for sentence in SENTENCES["test"]] + [
    *(("妈麻马骂吗", "cmn"), ("我用Python写代码。", "cmn"), ("Das Team ist schön, oder?", "de")),
    *(("L'homme est là; n'est-ce pas ?", "fr"), ("Привет, мир!", "ru"), ("xin chào", "vi")),
]
UNCACHED = phonemize.__wrapped__


def phones(text: str, language: str) -> list[str]:
    return [symbol for symbol in phonemize(text, language) if symbol != " "]


def test_a_phoneme_is_one_symbol_with_its_length_and_its_stress():
    assert phones("The church judges", "en") == ["ð", "ə", "tʃ", "ˈɜː", "tʃ", "dʒ", "ˈʌ", "dʒ", "ɪ", "z"]
    assert phones("I owe our toy hour fire", "en") == ["aɪ", "ˈəʊ", "ˌaʊ", "ə", "t", "ˈɔɪ", "ˈaʊ", "ə", "f", "ˈaɪə"]


def test_the_five_tones_of_mandarin_differ():
    assert phonemize("妈麻马骂吗", "cmn")[1::3] == ("ˈɑ55", "ˈɑ35", "ˈɑ214", "ˈɑ51", "ˈɑ11")
    assert phonemize("妈麻", "zh") == phonemize("妈麻", "cmn")
    assert phonemize("vịt vít", "vi") != phonemize("vít vịt", "vi")


def test_a_word_of_another_language_leaves_no_flag():
    for text, language in (("我用Python写代码。", "cmn"), ("Das Team.", "de")):
        assert not any("(" in symbol or "_" in symbol for symbol in phonemize(text, language))
    assert phones("Das Team.", "de") == ["d", "a", "s", "t", "ˈiː", "m", "."]


@pytest.mark.parametrize(
    ("text", "language", "marks"),
    [
        ("Well, no: yes; “really?!” he said... fine!", "en", [",", ":", ";", "?", "…", "!"]),
        ("It cost 3.14 pounds, e.g. in the U.S.", "en", [",", "."]),
        ("...so it is", "en", []),
        ("你好，世界！对吗？好。", "cmn", [",", "!", "?", "."]),
        ("مرحبا، كيف؟", "ar", [",", "?"]),
        ("¿Qué? ¡Hola!", "es", ["?", "!"]),
    ],
)
def test_punctuation_is_a_symbol_where_a_clause_ends(text, language, marks):
    symbols = phonemize(text, language)
    assert [symbol for symbol in symbols if symbol in PUNCTUATION] == marks
    assert symbols[0] != " " != symbols[-1]
    assert (" ", " ") not in list(pairwise(symbols))


def test_a_clause_that_espeak_cuts_into_parts_loses_no_word():
    assert phonemize("word " * 190, "en").count("d") == 190


def test_every_language_that_is_listed_speaks():
    assert {"en", "en-us", "cmn", "zh", "de", "nb", "no"} <= espeak_reader.languages()
    for language in espeak_reader.languages():
        assert UNCACHED("Obama 2", language), language


def test_threads_forks_and_spawned_processes_agree_whatever_was_said_before():
    known = {(text, language): UNCACHED(text, language) for text, language in TEXTS}
    shuffled = TEXTS[::-2] + TEXTS[1::2] + TEXTS
    with ThreadPoolExecutor(4) as threads:
        assert all(result == known[key] for key, result in zip(shuffled, threads.map(_read, shuffled), strict=True))
    english = [text for text, language in TEXTS if language == "en"]
    assert (
        list(process_map(partial(phonemize, language="en"), english * 20, 2))
        == [known[text, "en"] for text in english] * 20
    )
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.map(_read, TEXTS) == list(known.values())


def _read(key: tuple[str, str]) -> tuple[str, ...]:
    return UNCACHED(*key)


def test_reading_leaves_the_synthesis_of_the_same_process_alone():
    voice = espeak.Voice("plain", ("gender male", "pitch 100 160", "flutter 20"))
    request = espeak.Request("A small grey cat.", "plain")
    (before,) = espeak.synthesise([voice], [request], processes=1)
    UNCACHED("Ein Haus am Meer.", "de")
    (after,) = espeak.synthesise([voice], [request], processes=1)
    assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize(
    ("text", "language", "said"),
    [
        ("hello", "xx", "language 'xx' is none that espeak-ng speaks"),
        ("hello", "English", "language 'English' is none"),
        ("hello", "en+f1", "names are such as 'en"),
        ("", "en", "no letter and no digit"),
        (" \n", "en", "no letter and no digit"),
        ("😀 … !", "en", "no letter and no digit"),
        ("a" * (MAX_CHARACTERS + 1), "en", "1001 characters, 'aaa.*is no sentence"),
        ("he said 你好", "en", r"'你' \(CJK UNIFIED IDEOGRAPH-4F60\), no letter of the language 'en'"),
        ("東京", "ja", "no letter of the language 'ja'"),
        ("привет", "de", "CYRILLIC SMALL LETTER PE"),
        ("a\x00b", "en", r"the character '\\x00', which cannot be said"),
        ("a\ud800b", "en", r"the character '\\ud800'"),
        ("halló", "fo", "language 'fo' is none"),  # espeak-ng comes without its dictionary
        ("\U00017000", "en", r"\(unnamed\), no letter"),
    ],
)
def test_what_cannot_be_said_is_an_error(text, language, said):
    with pytest.raises(PsclapError, match=said):
        phonemize(text, language)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("It cost $5.50 on 3/4/2020.", "It cost five point five dollars on the fourth of march twenty twenty."),
        ("Mr. Smith, St. John and Dr. Who", "Mister Smith, St. John and doctor Who"),
        ("50% at 10:30, 20°C", "fifty percent at ten thirty, twenty degrees Celsius"),
        ("the 1980s, the 1900s and the 2010s", "the nineteen eighties, the nineteen hundreds and the twenty tens"),
        ("1,000 of 1,984 people", "one thousand of one thousand nine hundred and eighty four people"),
        ("#1, No. 5 and 2½ miles", "number one, number five and two and one half miles"),
        ("Henry VIII, I and a MIX", "Henry eight, I and a MIX"),
        ("He lives in the U.S.", "He lives in the US."),
        ("“Hi,” he said – “it’s me”—then…", "Hi, he said, it's me, then..."),
        ("well-known  since\n1990–2000", "well-known since one thousand nine hundred and ninety to two thousand"),
        ("[see] 👩🏽‍🚀 ﬁne™ \u200bplans\x07 ©", "see fineTM plans"),
    ],
)
def test_english_is_written_as_it_is_said(written, said):
    assert normalise(written, "en") == said
    assert normalise(written, "en-us") == said
    phonemize(said, "en")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("今天是2024年5月1日，我有3.5元。", "今天是二零二四年五月一日,我有三点五元。"),
        ("“温度”是-5℃——增长了50%！", "温度是负五摄氏度, 增长了百分之五十!"),
        ("他有2个，ＡＢＣ１２３", "他有两个,ABC一百二十三"),
    ],
)
def test_mandarin_is_written_as_it_is_said(written, said):
    assert normalise(written, "cmn") == said
    phonemize(said, "cmn")


def test_other_languages_keep_their_numbers_which_espeak_reads():
    assert normalise("„Gut“ – 3,5 m² für 20 € …", "de") == "Gut, 3,5 m² für 20 € ..."
    assert "".join(phones("20 €", "de")) == "tsvˈantsɪçˈɔøroː"
    assert normalise("می\u200cخواهم", "fa") == "می\u200cخواهم"  # the joiner is part of the word


@pytest.mark.parametrize(
    ("text", "language", "said"),
    [
        ("5", "xx", "language 'xx' is none"),
        ("😀", "en", "no letter and no digit"),
        ("5" * 1001, "en", "is no sentence"),
        ("%1", "en", "'%1' cannot be read aloud"),
    ],
)
def test_what_cannot_be_written_out_is_an_error(text, language, said):
    with pytest.raises(PsclapError, match=said):
        normalise(text, language)
