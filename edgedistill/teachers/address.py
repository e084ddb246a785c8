"""Where a server may be: an address is looked at before anything connects to it, and is the one connected to.

A name can resolve to what only this machine may reach: the service that hands out a cloud machine's keys stands at a
link-local address. And it can resolve to another address the next time, so that each connection goes to the very
address that was looked at.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import InvalidInput, Unsafe
from ..recipe import TeacherSettings

__all__ = ["Endpoint", "Resolver", "endpoint_of", "refuse_address", "refuse_endpoint", "resolve"]

Resolver = Callable[[str, int], Sequence[str]]
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# where clouds keep what only the machine itself may ask for, beside the link-local range
METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
PORTS = {"http": 80, "https": 443}
EXAMPLE = "Write where the server's API begins, such as http://127.0.0.1:8080/v1."


@dataclass(frozen=True)
class Endpoint:
    """A server's API: the parts of its URL, and whether plain http may leave this machine."""

    scheme: str
    host: str
    port: int
    path: str
    plain_http: bool = False

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL and in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine, as far as its address tells: no name is looked up."""
        address = _address(self.host)
        return self.host == "localhost" if address is None else address.is_loopback

    def at(self, address: str) -> str:
        """The URL with an address in the place of the name."""
        return f"{self.scheme}://{f'[{address}]' if ':' in address else address}:{self.port}{self.path}"


def endpoint_of(settings: TeacherSettings) -> Endpoint:
    """The endpoint that a recipe names.

    Raises InvalidInput where its URL is none, or holds what does not belong there: a password, a query.
    """
    try:
        parts = urlsplit(settings.url or "")
        host = (parts.hostname or "").encode("idna").decode() if ":" not in (parts.hostname or "") else parts.hostname
        port = parts.port
    except (ValueError, UnicodeError):  # its text is no part of the message: a broken URL may hold a password
        raise InvalidInput("teacher.url is not a URL", EXAMPLE) from None
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("teacher.url holds a user or a password", "Name a key's variable as teacher.api_key_env.")
    if parts.scheme not in PORTS or not host:
        raise InvalidInput("teacher.url is not an http or https URL", EXAMPLE)
    if parts.query or parts.fragment:
        raise InvalidInput("teacher.url holds a query or a fragment", EXAMPLE)
    return Endpoint(parts.scheme, host, port or PORTS[parts.scheme], parts.path.rstrip("/"), settings.plain_http)


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, in the system's order. Raises OSError where there is none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def refuse_endpoint(endpoint: Endpoint) -> None:
    """Raise Unsafe where a server may not be asked, as far as its address tells: nothing is connected to.

    >>> refuse_endpoint(Endpoint("http", "a.example", 80, "/v1", plain_http=True))
    """
    address = "127.0.0.1" if endpoint.is_here else endpoint.host
    if _address(address) is not None:
        refuse_address(endpoint, address)
    elif endpoint.scheme == "http" and not endpoint.plain_http:  # what a name stands for is looked at when it is used
        raise Unsafe(
            f"teacher.url: plain http to {endpoint.host} would send prompts and key in the clear",
            "Write https, or set teacher.plain_http = true in a network you trust.",
        )


def refuse_address(endpoint: Endpoint, address: str) -> None:
    """Raise Unsafe where an address may not be connected to.

    That is a link-local, metadata, multicast or unspecified one, and for plain http any but this machine's own.

    >>> refuse_address(Endpoint("http", "localhost", 80, "/v1"), "127.0.0.1")
    >>> refuse_address(Endpoint("https", "a.example", 443, "/v1"), "::ffff:169.254.169.254")
    Traceback (most recent call last):
    edgedistill.errors.Unsafe: teacher.url: a.example is at ::ffff:169.254.169.254, which no teacher may have
    """
    where = f"teacher.url: {endpoint.host} is at {address}"
    try:
        plain = _embedded(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        raise Unsafe(f"{where}, which is no address", "Correct teacher.url.") from None
    if plain.is_link_local or plain in METADATA or plain.is_multicast or plain.is_unspecified:
        raise Unsafe(f"{where}, which no teacher may have", "Correct teacher.url.")
    if endpoint.scheme == "http" and not endpoint.plain_http and not plain.is_loopback:
        raise Unsafe(
            f"{where}, another machine; plain http would send prompts and key in the clear",
            "Write https, or set teacher.plain_http = true in a network you trust.",
        )


def _address(host: str) -> IpAddress | None:
    """The address that a host is written as, or None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _embedded(address: IpAddress) -> IpAddress:
    """The IPv4 address that an IPv6 one stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
