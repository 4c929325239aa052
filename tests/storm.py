"""A real HTTP server that passes requests on to another one, and misbehaves as its rule says."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Fate = Literal["pass", "refuse", "lose", "slow"]
Rule = Callable[[int, str, str], Fate]
"""From the number of a request, its method and its path: passed on; answered by 503; passed on and the answer lost;
or passed on late."""

_NOT_PASSED = {"connection", "transfer-encoding", "keep-alive", "server", "date"}


class Storm:
    """What became of the requests: `met` counts those that were not simply passed on."""

    def __init__(self, target: str, rule: Rule):
        self.target, self.rule = urlsplit(target), rule
        self.seen = self.met = 0
        self._lock = threading.Lock()

    def fate(self, method: str, path: str) -> Fate:
        with self._lock:
            self.seen += 1
            fate = self.rule(self.seen, method, path)
            self.met += fate != "pass"
        return fate


@contextmanager
def storm(target: str, rule: Rule) -> Iterator[tuple[str, Storm]]:
    """The URL of a server before `target`, and what it met, for the length of a `with` block."""
    weather = Storm(target, rule)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            _answer(self, weather)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = handle_one  # noqa: N815 - the names that http.server calls

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", weather
    finally:
        server.shutdown()
        server.server_close()


def _answer(request: BaseHTTPRequestHandler, weather: Storm) -> None:
    body = _body(request)
    fate = weather.fate(request.command, request.path)
    if fate == "slow":
        time.sleep(0.3)
    status, headers, content = 503, [("Content-Type", "application/xml")], b"<Error><Code>SlowDown</Code></Error>"
    if fate != "refuse":
        answer = _passed_on(request, weather.target.netloc, body)
        if fate != "lose":
            status, headers, content = answer
    request.send_response(status)
    for name, value in headers:
        if name.lower() not in _NOT_PASSED and (name.lower() != "content-length" or request.command == "HEAD"):
            request.send_header(name, value)
    if request.command != "HEAD":
        request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Expect", "").lower() == "100-continue":
        pass  # http.server has answered it
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)


def _passed_on(request: BaseHTTPRequestHandler, host: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    headers = {k: v for k, v in request.headers.items() if k.lower() not in ("transfer-encoding", "expect", "host")}
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request(request.command, request.path, body, {**headers, "Content-Length": str(len(body))})
        response = connection.getresponse()
        return response.status, response.getheaders(), response.read()
    finally:
        connection.close()
