"""Pictures from elsewhere: a server of this machine plays the open internet, since only its address is exchanged."""

import contextlib
import io
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from puna.chat import Assistant
from puna.serve.fetch import Fetcher, is_global
from puna.serve.refusal import Refusal
from tests.serve.conftest import MODEL, PATIENCE_SECONDS, Running, data_url, picture

PUBLIC = "93.184.216.34"


class Internet:
    """A server with a certificate for pictures.test. `answers` maps a path to what is sent for it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.answers: dict[str, bytes | Callable[[ssl.SSLSocket], None]] = {}
        self.asked: list[bytes] = []
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = self._listening.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Takes no connection any more."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                plain, _ = self._listening.accept()
                threading.Thread(target=self._answer, args=(plain,), daemon=True).start()

    def _answer(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as secure:
                request = secure.recv(65536)
                self.asked.append(request)
                answer = self.answers[request.split()[1].decode()]
                if callable(answer):
                    answer(secure)
                else:
                    secure.sendall(answer)
        except OSError:  # whoever asked has left
            return


def ok(body: bytes, length: int | None = None) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def moved(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server shows that it is pictures.test by, and what a client trusts."""
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pictures.test"
    command += f" -addext subjectAltName=DNS:pictures.test,DNS:a.pictures.test -keyout {key} -out {certificate}"
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl, which makes the certificate, is not here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, ssl.create_default_context(cafile=str(certificate))


@pytest.fixture
def internet(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[Internet]:
    """Of one test: what an earlier one gave up may still be on its way."""
    server = Internet(contexts[0])
    yield server
    server.close()


@pytest.fixture
def fetcher(internet: Internet, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Fetcher:
    def dial(address: str, seconds: float) -> socket.socket:
        assert address == PUBLIC, f"{address} was dialled, which nobody checked"
        return socket.create_connection(internet.address, timeout=seconds)

    hosts = ("pictures.test", "*.pictures.test")
    resolve = lambda _: [PUBLIC]  # noqa: E731
    return Fetcher(
        hosts=hosts, max_bytes=1000, resolve=resolve, dial=dial, context=contexts[1], seconds=PATIENCE_SECONDS
    )


def test_the_bytes_of_a_listed_host_come_with_its_name_and_nothing_else(fetcher: Fetcher, internet: Internet) -> None:
    server = internet
    server.answers |= {"/a.png?b=1": moved("//a.pictures.test/c"), "/c": ok(b"picture")}
    assert fetcher.fetch("https://pictures.test/a.png?b=1#part", "image") == b"picture"
    first, second = server.asked
    assert b"Host: pictures.test\r\n" in first and b"Host: a.pictures.test\r\n" in second
    assert b"uthorization" not in first and b"Cookie" not in first


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.test/",
        "ftp://pictures.test/",
        "file:///etc/hostname",
        "https://pictures.test:8443/",
        "https://user:word@pictures.test/",
        "https://other.test/",
        "https://pictures.test.other.test/",
        "https://notpictures.test/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://pictures.test:x/",
        "https://pictures.test/\r\nX-Other: 1",
        "https:///a",
        "/etc/hostname",
        "",
    ],
)
def test_other_addresses_are_not_asked(fetcher: Fetcher, url: str) -> None:
    def nobody(_: str) -> list[str]:
        raise AssertionError("nobody is to be looked up")

    with pytest.raises(Refusal, match="image") as refused:
        replace(fetcher, resolve=nobody).fetch(url, "image")
    assert (refused.value.status, refused.value.body.param) == (400, "image")


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["::ffff:169.254.169.254"], ["fe80::1%eth0"], []]
)
def test_a_name_that_leads_inside_is_not_followed_and_not_told_where_it_led(
    fetcher: Fetcher, addresses: list[str]
) -> None:
    with pytest.raises(Refusal, match="could not be fetched") as refused:
        replace(fetcher, hosts=("*",), resolve=lambda _: addresses).fetch("https://inside.test/", "image")
    assert not any(address in str(refused.value) for address in addresses)


def test_every_redirection_is_checked_anew(fetcher: Fetcher, internet: Internet) -> None:
    server = internet
    server.answers |= {"/out": moved("https://other.test/"), "/down": moved("http://pictures.test/c")}
    server.answers |= {"/loop": moved("/loop"), "/c": ok(b"picture")}
    for path, problem in (("/out", "on a host"), ("/down", "no plain https"), ("/loop", "more than 3 times")):
        with pytest.raises(Refusal, match=problem):
            fetcher.fetch(f"https://pictures.test{path}", "image")
    looked_up = iter([[PUBLIC], ["10.0.0.1"]])  # a name that leads elsewhere the second time
    server.answers["/again"] = moved("/c")
    with pytest.raises(Refusal, match="could not be fetched"):
        replace(fetcher, resolve=lambda _: next(looked_up)).fetch("https://pictures.test/again", "image")


def test_size_and_time_are_bounded(fetcher: Fetcher, internet: Internet) -> None:
    server = internet

    def drip(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)

    def drip_head(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)

    server.answers |= {
        "/long": ok(b"x" * 1001),
        "/endless": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000,
        "/cut": ok(b"x", 5),
        "/missing": b"HTTP/1.1 404 Not Found\r\n\r\n",
        "/noise": b"noise\r\n\r\n",
        "/drip": drip,
        "/head": drip_head,
    }
    for path in server.answers:
        seconds = 0.3 if path in ("/drip", "/head") else PATIENCE_SECONDS
        with pytest.raises(Refusal) as refused:
            replace(fetcher, seconds=seconds).fetch(f"https://pictures.test{path}", "image")
        assert ("1000 bytes" in str(refused.value)) == (path in ("/long", "/endless"))


def test_a_server_that_was_told_a_host_reads_its_pictures(
    fetcher: Fetcher, internet: Internet, assistant: Assistant
) -> None:
    server = internet
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    server.answers |= {"/a.png": ok(buffer.getvalue()), "/b.png": ok(b"no picture")}
    running = Running(assistant, image_hosts=("pictures.test",))
    running.server.state.fetcher = replace(fetcher, max_bytes=100_000)
    answers = []
    for url in (
        data_url(picture()),
        "https://pictures.test/a.png",
        "https://pictures.test/b.png",
        "https://other.test/",
    ):
        content = [{"type": "image_url", "image_url": {"url": url}}]
        asked = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 4}
        answers.append(running.post("/v1/chat/completions", asked))
    running.stop()
    assert [answer.status for answer in answers] == [200, 200, 400, 400]
    inline, fetched = (answer.document["choices"][0]["message"] for answer in answers[:2])
    assert inline == fetched
    assert answers[3].document["error"]["param"] == "messages[0].content[0].image_url"


def test_a_certificate_of_somebody_else_is_not_trusted(fetcher: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="could not be fetched"):
        replace(fetcher, context=None).fetch("https://pictures.test/", "image")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (PUBLIC, True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),
        *[
            (address, False)
            for address in (
                "0.0.0.0",
                "10.1.2.3",
                "100.64.0.1",
                "127.0.0.1",
                "169.254.169.254",
                "172.16.0.1",
                "192.168.0.1",
                "198.18.0.1",
                "224.0.0.1",
                "255.255.255.255",
                "::",
                "::1",
                "::ffff:127.0.0.1",
                "2002:7f00:1::",
                "64:ff9b::a00:1",
                "fc00::1",
                "fe80::1",
                "fec0::1",
                "ff02::1",
                "no address",
            )
        ],
    ],
)
def test_only_addresses_of_the_open_internet_are_dialled(address: str, expected: bool) -> None:
    assert is_global(address) == expected
