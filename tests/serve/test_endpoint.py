"""What a server is sent by clients that are broken, in a hurry or ill-willed. The slow part is a fuzzer."""

import contextlib
import gc
import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from puna.chat import Assistant
from puna.serve.stepping import settle_memory
from tests.serve.conftest import MODEL, Running

HELLO: Any = [{"role": "user", "content": "Hello"}]
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens")
PATHS += ("/tokenize", "/detokenize", "/v1/moderations")


@pytest.fixture(scope="module")
def besieged(assistant: Assistant) -> Iterator[Running]:
    server = Running(assistant, max_open=64, body_seconds=1.0, stall_seconds=0.5, ping_seconds=0.2)
    server.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that a stalled reader shows soon
    yield server
    server.stop()


def connect(server: Running, n_buffered: int | None = None) -> socket.socket:
    """Returns a connection; one that buffers little notices at once that nobody reads."""
    connection = socket.socket()
    if n_buffered is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, n_buffered)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    return connection


def request(path: str, body: bytes, n_announced: int | None = None) -> bytes:
    length = len(body) if n_announced is None else n_announced
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode() + body


def endless(dice: random.Random, stream: bool = True) -> bytes:
    """Returns a request whose answer goes on for as long as the context holds, in large events."""
    asked = {"model": MODEL, "messages": HELLO, "temperature": 2, "top_p": 1, "ignore_eos": True, "stream": stream}
    asked |= {"n": dice.randint(1, 4), "logprobs": True, "top_logprobs": 20}
    return request("/v1/chat/completions", json.dumps(asked).encode())


def let_go(server: Running, assistant: Assistant) -> None:
    """Returns once nothing runs and nothing is held for anybody, and everything is where it should be."""
    server.wait_until_idle()
    assistant.engine.check_integrity()


def test_a_reader_that_stalls_counts_as_gone(besieged: Running, assistant: Assistant) -> None:
    before = besieged.n_disconnects
    with connect(besieged, 2048) as connection:
        connection.sendall(endless(random.Random(0)))
        besieged.wait_until_busy()
        let_go(besieged, assistant)
    besieged.wait_until(lambda: besieged.n_disconnects > before)


def test_a_body_that_ends_early_harms_nobody(besieged: Running, assistant: Assistant) -> None:
    for path in PATHS:
        with connect(besieged) as connection:
            connection.sendall(request(path, b'{"model": "tiny"', 1000))
    assert besieged.get("/health").status == 200
    let_go(besieged, assistant)


def test_bodies_of_all_together_are_bounded(running: Running) -> None:
    """Bodies that are not finished hold their bytes; when they have gone, there is room again."""
    settings = running.server.state.settings
    n = settings.max_bodies_bytes
    running.server.state.n_body_bytes = n - 100
    try:
        assert running.post("/tokenize", {"prompt": "a" * 200}).status == 503
        assert running.post("/tokenize", {"prompt": "a"}).status == 200
    finally:
        running.server.state.n_body_bytes -= n - 100
    running.wait_until(lambda: running.server.state.n_body_bytes == 0)  # counted back after the answer has left


# The fuzzer -------------------------------------------------------------------------------------------------------

VALID = {
    "model": MODEL,
    "messages": HELLO,
    "prompt": "ab",
    "input": "Hello",
    "tokens": [1, 2],
    "max_tokens": 4,
    "max_output_tokens": 16,
    "temperature": 0,
    "stream": False,
}
OF_PATH = {
    "/v1/chat/completions": ("model", "messages", "max_tokens", "temperature", "stream"),
    "/v1/completions": ("model", "prompt", "max_tokens", "temperature", "stream"),
    "/v1/responses": ("model", "input", "max_output_tokens", "temperature", "stream"),
    "/v1/messages": ("model", "messages", "max_tokens", "temperature", "stream"),
    "/v1/messages/count_tokens": ("model", "messages"),
    "/tokenize": ("model", "prompt"),
    "/detokenize": ("model", "tokens"),
    "/v1/moderations": ("model", "input"),
}
FIELDS = ("tools", "tool_choice", "response_format", "stop", "n", "logit_bias", "guided_json", "guided_regex", "seed")
FIELDS += ("guided_grammar", "structured_outputs", "stream_options", "chat_template_kwargs", "allowed_token_ids")
SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": {"$ref": "#"}}},
    {"$ref": "#"},
    {"anyOf": [{"type": "integer"}] * 50},
    {"type": "string", "pattern": "(a|b)*c{0,900}"},
    {"enum": []},
    {"type": 7},
]


def anything(dice: random.Random, depth: int = 3) -> Any:
    """Returns some JSON value."""
    kind = dice.randrange(9 if depth else 7)
    if kind == 7:
        return [anything(dice, depth - 1) for _ in range(dice.randrange(4))]
    if kind == 8:
        keys = ("type", "role", "content", "text", "image_url", "url", "function", "name", "x", "")
        return {dice.choice(keys): anything(dice, depth - 1) for _ in range(dice.randrange(4))}
    texts = ("", "a", "user", "\x00", "\u202e", "<|eot|>", "data:image/png;base64,", "[" * 50, "function", "𝒳" * 9)
    return (None, True, -1, 10**30, 1e308, dice.choice(texts), dice.choice(SCHEMAS))[kind]


def mutated(dice: random.Random, body: bytes) -> bytes:
    """Returns a body that was damaged on its way."""
    data = bytearray(body)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0:
                data[at:at] = bytes(dice.randrange(256) for _ in range(dice.randint(1, 5)))
            case 1:
                del data[at : at + dice.randint(1, 9)]
            case 2:
                data[at:at] = dice.choice((b"[" * 2000, b'{"a":' * 2000, b"\xff\xfe", b"9" * 5000, b'"\\ud800"'))
            case 3 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case _:
                data = data[:at]
    return bytes(data)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def strange_pictures() -> list[bytes]:
    """Returns files that are no pictures, damaged ones, and ones that grow when they are opened."""
    noise = Image.effect_noise((80, 60), 60)
    sound = [saved(noise.convert("RGB"), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")]
    zeros = zlib.compress(bytes(50_000_000), 9)
    files = [
        b"",
        b"GIF89a",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/hostname) run",
        b"P6 99999 99999 255\n",
        png(60_000, 60_000, chunk(b"IDAT", zlib.compress(b"\0" * 1000))),
        png(2**31 - 1, 1, chunk(b"IDAT", zeros[:1000])),
        png(0, 5),
        png(4000, 4000, chunk(b"IDAT", zeros)),
        png(9, 9, chunk(b"zTXt", b"k\0\0" + zeros), chunk(b"IDAT", zlib.compress(b"\0" * 28 * 9))),
        png(9, 9, chunk(b"iCCP", b"k\0\0" + zeros), chunk(b"IDAT", zlib.compress(b"\0" * 28 * 9))),
        saved(Image.new("1", (4800, 5000)), "PNG"),
        saved(Image.new("L", (5000, 4900)), "JPEG"),
        saved(noise, "GIF", save_all=True, append_images=[noise] * 200),
        saved(noise, "BMP"),
        saved(noise, "TIFF"),
        sound[1].replace(b"\xff\xd9", b"\xff\xe1\xff\xff" + bytes(65533) + b"\xff\xd9"),
    ]
    for file in sound:
        files += [file, file[: len(file) // 2], file[:40], file + file, file[:-7] + b"\0" * 7]
        for at in range(20, len(file), len(file) // 8):
            files.append(file[:at] + bytes([file[at] ^ 0xFF]) + file[at + 1 :])
    return files


class Siege:
    """Asks one server for all kinds of things; counts what came back."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.statuses: Counter[int] = Counter()
        self.faults: list[bytes] = []
        self._lock = threading.Lock()
        self._pictures = strange_pictures()
        self._stalled: list[socket.socket] = []

    def ask(self, seed: int) -> None:
        dice = random.Random(seed)
        acts: list[Callable[[random.Random], None]] = [
            self._damaged,
            self._wrong,
            self._picture,
            self._reader,
            self._sender,
        ]
        dice.choices(acts, (3, 3, 2, 2, 1))[0](dice)

    def release(self) -> None:
        for connection in self._stalled:
            connection.close()
        self._stalled.clear()

    def _post(self, path: str, body: bytes) -> None:
        reply = self.server.post(path, body)
        with self._lock:
            self.statuses[reply.status] += 1
            if reply.status >= 500 and reply.status not in (501, 503):
                self.faults.append(path.encode() + b" " + body[:500] + b" -> " + reply.body[:300])

    def _body(self, path: str) -> dict[str, Any]:
        return {name: VALID[name] for name in OF_PATH[path]}

    def _damaged(self, dice: random.Random) -> None:
        path = dice.choice(PATHS)
        self._post(path, mutated(dice, json.dumps(self._body(path)).encode()))

    def _wrong(self, dice: random.Random) -> None:
        path = dice.choice(PATHS)
        body = self._body(path)
        body[dice.choice([*OF_PATH[path], *FIELDS])] = anything(dice)
        self._post(path, json.dumps(body).encode())

    def _picture(self, dice: random.Random) -> None:
        file = dice.choice(self._pictures)
        url = f"data:image/{dice.choice(('png', 'jpeg', 'x'))};base64,{b64encode(file).decode()}"
        part = {"type": "image_url", "image_url": dice.choice((url, {"url": url}))}
        parts = [part] * dice.choice((1, 1, 2, 6)) if len(file) < 10_000 else [part]
        body = self._body("/v1/chat/completions") | {"messages": [{"role": "user", "content": parts}]}
        self._post("/v1/chat/completions", json.dumps(body).encode())

    def _reader(self, dice: random.Random) -> None:
        """Somebody who reads a stream in part: leaves, tears the connection down, or stays and reads no more."""
        connection = connect(self.server, 2048)
        connection.sendall(endless(dice, stream=dice.random() < 0.8))
        end = dice.randrange(4)
        if end != 0:
            connection.settimeout(2)
            with contextlib.suppress(TimeoutError):
                connection.recv(dice.randint(1, 3000))
        if end == 1:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if end == 2:
            with self._lock:
                self._stalled.append(connection)
        else:
            connection.close()

    def _sender(self, dice: random.Random) -> None:
        """Somebody whose body stops in the middle, or whose head makes no sense."""
        with connect(self.server) as connection:
            path = dice.choice(PATHS)
            whole = request(path, json.dumps(self._body(path)).encode())
            match dice.randrange(3):
                case 0:
                    connection.sendall(whole[: dice.randrange(1, len(whole))])
                case 1:
                    connection.sendall(mutated(dice, whole[:90]))
                case 2:
                    connection.sendall(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n")


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_a_siege_ends_with_the_memory_that_it_began_with() -> None:
    """In a process of its own, whose memory is settled as every server's is."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "--slow", f"{__file__}::test_a_siege_leaves_nothing_behind"]
    environment = os.environ | {"SIEGE_MEASURES": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(run.stdout)
    assert run.returncode == 0, run.stdout


@pytest.mark.slow
def test_a_siege_leaves_nothing_behind(besieged: Running, assistant: Assistant) -> None:
    if "SIEGE_MEASURES" in os.environ:
        settle_memory()
    siege, sizes = Siege(besieged), []
    n_rounds, n_asked = int(os.environ.get("SIEGE_ROUNDS", "6")), int(os.environ.get("SIEGE_ASKED", "500"))
    for turn in range(n_rounds):
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(siege.ask, range(turn * n_asked, (turn + 1) * n_asked)))
        siege.release()
        let_go(besieged, assistant)
        assert besieged.get("/health").status == 200
        sizes.append(resident_bytes())
        print(f"round {turn}: {sizes[-1] / 1e6:.0f} MB, {dict(sorted(siege.statuses.items()))}")
    assert not siege.faults, siege.faults[:5]
    # Later rounds hold what the second one held; pools of the allocator and of prefixes move it by some megabytes.
    if "SIEGE_MEASURES" in os.environ:  # elsewhere each of the twelve clients, threads of this process, has an arena
        assert sizes[-1] - sizes[1] < 48e6, sizes
    sound = besieged.post(
        "/v1/chat/completions", {"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 8}
    )
    message = assistant.chat(HELLO, temperature=0.0, max_new_tokens=8)
    assert sound.document["choices"][0]["message"]["content"] == message.text  # type: ignore[union-attr]
