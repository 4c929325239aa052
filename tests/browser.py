"""A real headless Chromium for tests, spoken to by the DevTools protocol.

It is the one that PSCLAP_TEST_CHROMIUM names, or one in PATH, or that of the wheel PySide6-WebEngine (Qt's build of
Chromium), which needs nothing from the system but libnss3 and the like.
"""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp

T = TypeVar("T")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chromium-headless-shell")
HOW = (
    "no Chromium: install one (`apt-get install chromium`), name one in PSCLAP_TEST_CHROMIUM, or "
    "`pip install PySide6-WebEngine`"
)
FLAGS = ("--disable-gpu", "--mute-audio", "--no-sandbox", "--remote-allow-origins=*")
START_S, ANSWER_S = 60, 10

QT = """
import sys
from PySide6.QtCore import QUrl
from PySide6.QtWebEngineCore import QWebEnginePage
from PySide6.QtWidgets import QApplication
application = QApplication(sys.argv)
page = QWebEnginePage()
page.load(QUrl("about:blank"))
sys.exit(application.exec())
"""


def command(profile: str) -> tuple[list[str], dict[str, str]] | None:
    """The command of a Chromium and its environment; None where there is none."""
    named = os.environ.get("PSCLAP_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if named:
        own = ("--headless", "--remote-debugging-port=0", f"--user-data-dir={profile}")
        return [named, *own, *FLAGS, "about:blank"], {}
    if find_spec("PySide6") and find_spec("PySide6.QtWebEngineCore"):
        environment = {
            "QT_QPA_PLATFORM": "offscreen",
            "QTWEBENGINE_CHROMIUM_FLAGS": " ".join(FLAGS),
            "QTWEBENGINE_DISABLE_SANDBOX": "1",
            "QTWEBENGINE_REMOTE_DEBUGGING": str(_free_port()),
            "XDG_DATA_HOME": profile,
        }
        return [sys.executable, "-c", QT], environment
    return None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def chromium() -> Iterator[str | None]:
    """The address of the DevTools of a Chromium that runs meanwhile; None where there is none."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        found = command(profile)
        if found is None:
            yield None
            return
        log = Path(profile, "said.txt")
        with open(log, "w") as stream:
            process = subprocess.Popen(found[0], env={**os.environ, **found[1]}, stderr=stream)
        try:
            yield _address(process, log)
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen, log: Path) -> str:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        if match := re.search(r"DevTools listening on ws://([^/]+)/", log.read_text()):
            return match[1]
        time.sleep(0.05)
    raise RuntimeError(f"Chromium does not say where its DevTools are: {log.read_text()}")


class Page:
    """The one tab of a Chromium: `call` is a command of the protocol, `events` are all that it has reported."""

    def __init__(self, channel: aiohttp.ClientWebSocketResponse):
        self._channel = channel
        self._answers: dict[int, asyncio.Future] = {}
        self.events: list[dict[str, Any]] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._channel:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            else:
                self.events.append(said)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = max(self._answers, default=0) + 1
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._channel.send_json({"id": number, "method": method, "params": params})
        answer = await asyncio.wait_for(future, ANSWER_S)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    async def run(self, script: str) -> Any:
        """The value of an expression, awaited; as if the user had just clicked, so that sound may play."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def open(self, url: str, width: int = 1200) -> Self:
        """Loads a page in a window of that width, and waits until it has loaded."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url="about:blank")
        self.events.clear()
        await self.call("Page.navigate", url=url)
        await self.run(
            "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        )
        return self

    def requested(self) -> set[str]:
        """The URLs that the page asked for, those of data: apart."""
        urls = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return {url for url in urls if not url.startswith("data:")}

    def complaints(self) -> list[Any]:
        """What the console shows as errors or warnings, and exceptions."""
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"])
            if event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(params["args"])
            if event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"])
        return found


def browse(address: str, visit: Callable[[Page], Awaitable[T]]) -> T:
    """What `visit` makes of the tab."""

    async def run() -> T:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{address}/json/list") as answer:
                tabs = await answer.json(content_type=None)
            tab = next(tab for tab in tabs if tab["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as channel:
                return await visit(Page(channel))

    return asyncio.run(run())


async def opened(page: "Page", url: str) -> "Page":
    """The page, with the functions of report_probes.js."""
    await page.open(url)
    await page.run(f"{(Path(__file__).parent / 'report_probes.js').read_text()}; 0")
    return page
