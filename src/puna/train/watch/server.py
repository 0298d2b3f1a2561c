"""The page of a run, on this machine only: a few files of this package, and what is new in the run as JSON.

In: the folder of a run and a port. Out: a server of the standard library that answers GET and nothing else. The page
brings no script from elsewhere, and its policy lets it ask nobody but this server. Names of other hosts are refused, or
a page from elsewhere could read along under a name that leads here.

Source: Content Security Policy Level 3; Trusted Types.
"""

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from puna.errors import PunaError
from puna.train.watch.news import Place, check, news

HOST = "127.0.0.1"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Watch(ThreadingHTTPServer):
    """The server of one run. `serve_forever` answers until `shutdown`; port 0 takes a free one."""

    daemon_threads = True

    def __init__(self, run: Path, port: int) -> None:
        """Raises ConfigError where the run's folder is not, OSError where the port is taken."""
        check(run)
        self.run = run
        entries = [entry for entry in files("puna.train.watch").iterdir() if Path(entry.name).suffix in _TYPES]
        self.page = {f"/{entry.name}": entry.read_bytes() for entry in entries}
        super().__init__((HOST, port), _Answer)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"


def watch(run: Path, port: int, say: Callable[[str], None]) -> None:
    """Shows a run until Ctrl-C, and tells `say` where. Raises as `Watch` does."""
    with Watch(run, port) as server:
        say(server.url)
        server.serve_forever()


class _Answer(BaseHTTPRequestHandler):
    server: Watch

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = "/index.html" if parts.path == "/" else parts.path
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if host not in (HOST, "localhost"):
            self._send(HTTPStatus.FORBIDDEN, b"this page is for this machine only\n", "text/plain")
        elif path == "/news":
            self._news(parse_qs(parts.query))
        elif path in self.server.page:
            self._send(HTTPStatus.OK, self.server.page[path], _TYPES[Path(path).suffix])
        else:
            self._send(HTTPStatus.NOT_FOUND, b"no such page\n", "text/plain")

    def _news(self, query: dict[str, list[str]]) -> None:
        try:
            place = Place(*(int(query.get(name, ["0"])[0]) for name in Place._fields))
            found: dict[str, Any] = news(self.server.run, place)
            status = HTTPStatus.OK
        except (PunaError, OSError, ValueError) as error:
            found, status = {"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE
        self._send(status, json.dumps(found).encode(), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8", **_HEADERS}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        """Says nothing: what a page asks every second is no news."""
