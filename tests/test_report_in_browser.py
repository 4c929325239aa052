"""The HTML report in a real headless Chromium: it plays, draws, answers, and asks nothing of anybody."""

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browse, opened
from small_model import save_small_model
from small_report import HOSTILE, altered_shards, sets_of, with_text, write_page

from psclap.embedding import Embedder
from psclap.schema import Utterance

Corpus = tuple[Path, list[Utterance]]


@pytest.fixture(scope="module")
def embedders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Embedder, ...]:
    folder = tmp_path_factory.mktemp("models")
    return tuple(Embedder(save_small_model(folder / str(seed), seed)) for seed in (1, 2))


@pytest.fixture(scope="module")
def url(mini_shards: Path, embedders: tuple, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, sets_of(mini_shards), *embedders)
    return path.as_uri()


def probe(address: str, url: str, expression: str) -> Any:
    """The value of an expression on the page."""

    async def visit(page: Page) -> Any:
        return await (await opened(page, url)).run(expression)

    return browse(address, visit)


def test_every_sound_loads_and_nothing_is_fetched(address: str, url: str) -> None:
    async def visit(page: Page) -> tuple[list[dict[str, Any]], set[str], list[Any]]:
        await opened(page, url)
        return await page.run("sounds()"), page.requested(), page.complaints()

    sounds, requested, complaints = browse(address, visit)
    assert len(sounds) > 20
    for sound in sounds:
        assert sound["error"] is None
        assert sound["readyState"] >= 1
        assert sound["duration"] == pytest.approx(sound["expected"], abs=0.1)
    assert requested == {url}
    assert complaints == []


def test_sounds_play_one_at_a_time(address: str, url: str) -> None:
    played = probe(address, url, "played()")
    assert played["seconds"] > 0.2
    assert played["error"] is None


def test_charts_are_drawn(address: str, url: str) -> None:
    drawn = probe(address, url, "drawn()")
    assert len(drawn["curves"]) == 3 * 4
    assert min(drawn["curves"]) > 50
    assert len(drawn["points"]) == 48
    assert all(drawn["points"])
    assert drawn["bars"] == pytest.approx(drawn["recalls"], abs=0.01)
    colours = dict(drawn["heat"])
    assert len({*colours.values()}) == len(colours) > 3


def test_select_recolours_the_map(address: str, url: str) -> None:
    seen = probe(address, url, "colours()")
    assert [by["name"] for by in seen] == ["gender", "pitch-level", "texture", "rate"]
    assert len({json.dumps(by["fills"]) for by in seen}) == len(seen)
    for by in seen:
        assert {colour: by["fills"].count(colour) for colour in by["legend"]} == by["legend"]


def test_legend_shows_one_tag_alone(address: str, url: str) -> None:
    on, off, count = probe(address, url, "chosenAlone()")
    assert on == ["true", count]
    assert count > 0
    assert off == ["false", 0]


def test_points_tell_and_play(address: str, url: str) -> None:
    async def visit(page: Page) -> Any:
        await opened(page, url)
        aim = await page.run("aim()")
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", **aim["place"])
        told, silent = await page.run("said.textContent"), await page.run("onMap.src")
        for kind in ("mousePressed", "mouseReleased"):
            await page.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **aim["place"])
        return aim["told"], told, silent, await page.run("heard()")

    expected, told, silent, heard = browse(address, visit)
    assert told.startswith(expected)
    assert silent == ""
    assert heard


def test_map_by_keyboard(address: str, url: str) -> None:
    async def press(page: Page, key: str) -> list[int]:
        for kind in ("keyDown", "keyUp"):
            await page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)
        return await page.run("data.points[current]")

    async def visit(page: Page) -> Any:
        await opened(page, url)
        await page.run("atlas.focus()")
        walked = [await press(page, f"Arrow{to}") for to in ("Right", "Right", "Left", "Down", "Up")]
        await page.run("show(Number(Object.keys(data.sounds)[0]))")
        await press(page, "Enter")
        return walked, await page.run("heard()")

    (first, right, left, down, up), heard = browse(address, visit)
    assert right[0] > first[0]
    assert left[0] < right[0]
    assert down[1] >= left[1]  # there may be no point below, or above
    assert up[1] <= down[1]
    assert left[1] != down[1] or down[1] != up[1]
    assert heard


@pytest.mark.parametrize(("scheme", "expected"), [("light", "rgb(247, 247, 245)"), ("dark", "rgb(16, 19, 23)")])
def test_text_is_legible_in_both_schemes(address: str, url: str, scheme: str, expected: str) -> None:
    """WCAG 2.2, success criterion 1.4.3: a contrast of 4.5."""

    async def visit(page: Page) -> Any:
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await opened(page, url)
        return await page.run("getComputedStyle(document.body).backgroundColor"), await page.run("contrasts()")

    ground, contrasts = browse(address, visit)
    assert ground == expected
    assert len(contrasts) > 300
    assert [entry for entry in contrasts if entry[0] < 4.5] == []


def test_phone_needs_no_sideways_scrolling(address: str, url: str) -> None:
    async def visit(page: Page) -> Any:
        await page.open(url, width=360)
        return await page.run("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")

    width, visible = browse(address, visit)
    assert width == visible


class Server(http.server.ThreadingHTTPServer):
    """A server of this machine; `callers` are the paths that were asked for."""

    def __init__(self) -> None:
        self.callers: list[str] = []
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.callers.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def outside() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_hostile_captions_reach_nobody(
    address: str, embedders: tuple, mini_corpus: Corpus, tmp_path: Path, outside: Server
) -> None:
    """Captions are shown, not run; and the page's policy would keep in what were run."""
    where = f"http://127.0.0.1:{outside.server_port}/called"
    texts = [text.replace("{url}", where) for text in HOSTILE]
    shards = altered_shards(
        tmp_path / "shards", mini_corpus[1], lambda number, clip: with_text(clip, texts[number % len(texts)])
    )
    page_path = tmp_path / "page.html"
    write_page(page_path, sets_of(shards, ["intrinsic"]), embedders[0])

    async def visit(page: Page) -> Any:
        await opened(page, page_path.as_uri())
        await page.run("sounds()")
        await asyncio.sleep(0.2)  # for what a caption could have started
        seen = page.requested(), page.complaints(), await page.run("window.hacked ?? 'untouched'")
        return *seen, await page.run(f"escape({where!r})")

    requested, complaints, hacked, escaped = browse(address, visit)
    assert requested == {page_path.as_uri()}
    assert complaints == []
    assert hacked == "untouched"
    assert escaped == ["refused", "refused", "untouched"]
    assert outside.callers == []
