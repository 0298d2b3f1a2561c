"""Pictures from other machines, for servers that were told to get them: over https, from hosts that are on a list.

In: an address. Out: the bytes behind it. A client chooses what is asked for and the server's place in the network does
the asking, so: only hosts on the list; a name is looked up once, every address of it must be one of the open internet,
and that very address is dialled; each redirection is checked anew; bytes and time are bounded; errors name the field,
never an address or what answered.
Not here: whether any of this is wanted (`state`), reading the picture (`pictures`).

Source: OWASP, Server-Side Request Forgery Prevention Cheat Sheet; CVE-2025-6242 (vLLM).
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from puna.serve.refusal import Refusal

PORT = 443
ANY_HOST = "*"

_REDIRECTIONS = (301, 302, 303, 307, 308)
_PIECE_BYTES = 2**16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str], Sequence[str]]
"""Returns all addresses of a host. Raises OSError."""

Dial = Callable[[str, float], socket.socket]
"""Returns a connection to the port for https of an address, made within so many seconds. Raises OSError."""


def resolve(host: str) -> list[str]:
    """Returns all addresses that the system's resolver knows for `host`."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)]


def dial(address: str, seconds: float) -> socket.socket:
    """Returns a connection to the port for https."""
    return socket.create_connection((address, PORT), timeout=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Gets pictures from `hosts`: exact names, "*.name" for all below a name, or "*" for all.

    `seconds` bound a whole picture, redirections included.
    """

    hosts: Sequence[str]
    max_bytes: int
    seconds: float = 10.0
    max_redirections: int = 3
    resolve: Resolve = resolve
    dial: Dial = dial
    context: ssl.SSLContext | None = None  # None trusts whom the system trusts

    def fetch(self, url: str, where: str) -> bytes:
        """Returns the bytes at `url`. Raises Refusal, whose text calls the address `where`."""
        deadline = time.monotonic() + self.seconds
        for _ in range(self.max_redirections + 1):
            parts = self._checked(url, where)
            try:
                body = self._get(parts, deadline, where)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise _refused(where, "could not be fetched: send it as a data URL") from error
            if isinstance(body, bytes):
                return body
            url = urljoin(url, body)
        raise _refused(where, f"is redirected more than {self.max_redirections} times: send where it leads")

    def _checked(self, url: str, where: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            is_plain = parts.scheme == "https" and parts.port in (None, PORT) and parts.username is None
        except ValueError as error:
            raise _refused(where, "is no address that can be read") from error
        if not is_plain or not parts.hostname or not url.isprintable() or " " in url:
            raise _refused(where, "is no plain https address; neither names, ports nor keys go into it")
        if not self._is_listed(parts.hostname):
            raise _refused(where, "is on a host that pictures are not fetched from here: send a data URL")
        return parts

    def _is_listed(self, host: str) -> bool:
        host = host.lower().rstrip(".")
        return any(
            each == ANY_HOST or host == each or (each.startswith("*.") and host.endswith(each[1:]))
            for each in self.hosts
        )

    def _get(self, parts: SplitResult, deadline: float, where: str) -> bytes | str:
        """Returns what is there: bytes, or where it went."""
        host = parts.hostname or ""
        context = ssl.create_default_context() if self.context is None else self.context
        plain = self.dial(self._address(host, where), max(deadline - time.monotonic(), 0.001))
        secure = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        timer = threading.Timer(max(deadline - time.monotonic(), 0.001), _end, (secure,))  # however slowly bytes drip
        timer.daemon = True
        timer.start()
        try:
            with secure:
                secure.do_handshake()
                connection = http.client.HTTPConnection(host)
                connection.sock = secure
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request(
                    "GET", target, headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "puna"}
                )
                answer = connection.getresponse()
                location = answer.headers.get("Location")
                if answer.status in _REDIRECTIONS and location is not None:
                    return location
                if answer.status != 200:
                    raise _refused(where, "could not be fetched: send it as a data URL")
                body = self._body(answer, where)
                if time.monotonic() >= deadline:  # the end was none
                    raise TimeoutError
                return body
        finally:
            timer.cancel()

    def _address(self, host: str, where: str) -> str:
        """Returns the address to dial: the first of the host's, all of which must be of the open internet."""
        addresses = self.resolve(host)
        if not addresses or not all(is_global(address) for address in addresses):
            raise _refused(where, "could not be fetched: send it as a data URL")
        return addresses[0]

    def _body(self, answer: http.client.HTTPResponse, where: str) -> bytes:
        too_long = _refused(where, f"has more than {self.max_bytes} bytes")
        if answer.length is not None and answer.length > self.max_bytes:
            raise too_long
        body = bytearray()
        while piece := answer.read(_PIECE_BYTES):
            body += piece
            if len(body) > self.max_bytes:
                raise too_long
        if answer.length:  # less came than was announced
            raise _refused(where, "could not be fetched: send it as a data URL")
        return bytes(body)


def is_global(address: str) -> bool:
    """Says whether an address is one of the open internet, also where it stands for another one within IPv6."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        within = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            within = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if within is not None:
            return is_global(str(within))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast


def _end(connection: ssl.SSLSocket) -> None:
    """Ends a connection that another thread reads from, which gets the end of the file."""
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not ssl's, which is for the reading thread
    except OSError:  # it has ended by itself
        return


def _refused(where: str, problem: str) -> Refusal:
    return Refusal(400, f"{where} {problem}", param=where)
