"""The page about synthesised speech in a real headless Chromium: it plays, draws, and asks nothing of anybody."""

from typing import Any

import pytest
from browser import Page, browse, opened
from small_speech import SmallSpeech, write_speech_page

from psclap.tts.evaluation.run import evaluate_matcher


@pytest.fixture(scope="module")
def urls(small_speech: SmallSpeech, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The page of a synthesiser, and that of what retrieves and aligns."""
    folder = tmp_path_factory.mktemp("reports")
    write_speech_page(folder / "speech", small_speech)
    matcher = small_speech.speech_clip
    evaluate_matcher(folder / "match", "m", small_speech.index, matcher, known=small_speech.known, resamples=100)
    return tuple((folder / name / "report.html").as_uri() for name in ("speech", "match"))


def test_every_sound_and_picture_loads_and_nothing_is_fetched(address: str, urls: tuple) -> None:
    async def visit(page: Page) -> tuple[list[dict[str, Any]], list[list[float]], set[str], list[Any]]:
        await opened(page, urls[0])
        pictures = "all('img').map(image => [image.naturalWidth, image.naturalHeight, image.width])"
        return await page.run("sounds()"), await page.run(pictures), page.requested(), page.complaints()

    sounds, pictures, requested, complaints = browse(address, visit)
    assert len(sounds) == len(pictures) == 6 * 4
    for sound in sounds:
        assert sound["error"] is None
        assert sound["duration"] == pytest.approx(sound["expected"], abs=0.1)
    # Each picture is as wide as its sound is long, in one scale for a sentence.
    assert all(height == 80 and frames > 0 and width > 0 for frames, height, width in pictures)
    for place in range(0, len(sounds), 4):
        scales = [pictures[place + k][2] / sounds[place + k]["expected"] for k in range(4)]
        assert max(scales) == pytest.approx(min(scales), rel=0.1, abs=2 / min(s["expected"] for s in sounds))
    assert requested == {urls[0]}
    assert complaints == []


def test_sounds_play_one_at_a_time(address: str, urls: tuple) -> None:
    async def visit(page: Page) -> Any:
        await opened(page, urls[0])
        return await page.run("played()")

    played = browse(address, visit)
    assert played["seconds"] > 0.2
    assert played["error"] is None


def test_alignments_are_drawn(address: str, urls: tuple, small_speech: SmallSpeech) -> None:
    async def visit(page: Page) -> Any:
        await opened(page, urls[1])
        inside = """all(".alignment svg").map(svg => {
          const frame = svg.querySelector("image").getBoundingClientRect();
          const boxes = [...svg.querySelectorAll(".known line")].map(line => line.getBoundingClientRect());
          return [frame.width, boxes.filter(box => box.left >= frame.left - 1 && box.right <= frame.right + 1).length];
        })"""
        return await page.run(inside), page.complaints()

    drawn, complaints = browse(address, visit)
    counts = [len(timeline.phones().symbols) for timeline in small_speech.known.values()]
    assert len(drawn) == 6
    assert all(width > 200 and count in counts for width, count in drawn)
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_schemes(address: str, urls: tuple, scheme: str) -> None:
    """WCAG 2.2, success criterion 1.4.3: a contrast of 4.5."""

    async def visit(page: Page) -> Any:
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        contrasts = []
        for url in urls:
            await opened(page, url)
            contrasts += await page.run("contrasts()")
        return contrasts

    contrasts = browse(address, visit)
    assert len(contrasts) > 200
    assert [entry for entry in contrasts if entry[0] < 4.5] == []


def test_phone_needs_no_sideways_scrolling(address: str, urls: tuple) -> None:
    async def visit(page: Page) -> Any:
        widths = []
        for url in urls:
            await page.open(url, width=360)
            widths += await page.run("[[document.documentElement.scrollWidth, document.documentElement.clientWidth]]")
        return widths

    assert all(width == visible for width, visible in browse(address, visit))
