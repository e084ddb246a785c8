"""HTTP with a limit on everything: time to connect, to the first byte and to the last, and bytes.

Redirects are not followed, cookies not kept, proxies and passwords of the environment not used. Every request has a
connection of its own: against the time that an answer takes, connecting costs nothing, and no answer can be read as
another's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import Unsafe
from .address import Endpoint, Resolver, refuse_address, resolve

if TYPE_CHECKING:
    import httpx2

__all__ = ["Client", "Limits", "NoReply", "Reply"]

SMALL = 256 << 10  # bytes; of larger bodies no more than LARGE are read at the same time
LARGE = 4
PIECES = 4096  # of a body, before they are put together


@dataclass(frozen=True)
class Limits:
    """How long, how much and how often. Times are in seconds."""

    connect: float = 10.0
    first_byte: float = 60.0
    """An answer comes as a whole, so each of `max_tokens` adds `per_token`."""
    per_token: float = 0.25
    body: float = 30.0
    """From the first byte to the last."""
    body_bytes: int = 8 << 20
    in_flight: int = 64
    attempts: int = 8
    """Requests for one answer, where the server fails."""
    redo: int = 2
    """Further requests for one answer, where the server's answer is of no use."""
    retries: float = 0.6
    """Further requests for each answer, on average over all of them ..."""
    spare_retries: int = 20
    """... after so many."""
    backoff: float = 0.5
    """Longest wait before the second request for an answer; doubles with each, up to `longest_backoff`."""
    longest_backoff: float = 30.0
    longest_retry_after: float = 120.0
    """What a server may ask for as Retry-After."""
    away: float = 60.0
    """How long a server may fail every request."""
    trial: float = 0.5
    """Least wait between two requests to a server that is away."""


@dataclass(frozen=True)
class Reply:
    """What a server sent; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class _Wanted:
    """One request: a GET, or a POST where there is a payload."""

    path: str
    payload: dict[str, Any] | None
    max_tokens: int
    on_piece: Callable[[bytes], None] | None


class NoReply(Exception):
    """No whole reply came. `away`: there was no connection; `crowded`: the server took too long."""

    def __init__(self, reason: str, away: bool = False, crowded: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.away = away
        self.crowded = crowded


class Client:
    """Asks one endpoint. The key goes into the header of each request and nowhere else."""

    def __init__(self, endpoint: Endpoint, key: str | None, limits: Limits, resolver: Resolver = resolve) -> None:
        self._endpoint = endpoint
        self._key = key
        self._limits = limits
        self._resolver = resolver

    async def __aenter__(self) -> Client:
        import httpx2

        self._large = asyncio.Semaphore(LARGE)
        self._http = httpx2.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is kept
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(
        self,
        path: str,
        payload: dict[str, Any] | None = None,
        max_tokens: int = 0,
        on_piece: Callable[[bytes], None] | None = None,
    ) -> Reply:
        """The reply to a GET, or to a POST where there is a payload; `on_piece` is given each piece of it as it comes.

        Raises NoReply where none came whole, and Unsafe where the endpoint's address or certificate is refused.
        """
        wanted = _Wanted(path, payload, max_tokens, on_piece)
        failure = NoReply("no address")
        for address in await self._addresses():
            try:
                return await self._exchange(address, wanted)
            except NoReply as error:
                if not error.away:
                    raise
                failure = error
        raise failure

    async def _addresses(self) -> Sequence[str]:
        """Where to connect to; every one is allowed."""
        host, port = self._endpoint.host, self._endpoint.port
        try:
            found: Sequence[str] = [str(ip_address(host))]
        except ValueError:
            loop = asyncio.get_running_loop()
            try:
                looked_up = loop.run_in_executor(None, self._resolver, host, port)
                found = await asyncio.wait_for(looked_up, self._limits.connect)
            except (OSError, UnicodeError, asyncio.TimeoutError):
                raise NoReply(f"the name {host} is not found", away=True) from None
        for address in found:
            refuse_address(self._endpoint, address)
        return found

    async def _exchange(self, address: str, wanted: _Wanted) -> Reply:
        import httpx2

        limits = self._limits
        patience = limits.first_byte + limits.per_token * wanted.max_tokens
        request = self._request(address, wanted, patience)
        try:
            return await asyncio.wait_for(self._reply(request, wanted), limits.connect + patience + limits.body)
        except httpx2.ConnectTimeout:
            raise NoReply(f"no connection within {limits.connect:g} s", away=True) from None
        except httpx2.ConnectError as error:
            if _is_certificate(error):
                raise Unsafe(
                    f"teacher.url: {self._endpoint.authority} shows a certificate that is not trusted",
                    "Correct teacher.url, or trust the certificate's issuer in the system's store.",
                ) from None
            raise NoReply("no connection", away=True) from None
        except (httpx2.TimeoutException, asyncio.TimeoutError):
            raise NoReply("no answer in time", crowded=True) from None
        except httpx2.DecodingError:
            raise NoReply("an answer that cannot be decompressed") from None
        except httpx2.TransportError:
            raise NoReply("connection broken off") from None

    def _request(self, address: str, wanted: _Wanted, patience: float) -> httpx2.Request:
        import httpx2

        headers = {
            "Host": self._endpoint.authority,
            "User-Agent": "edgedistill",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        return self._http.build_request(
            "GET" if wanted.payload is None else "POST",
            f"{self._endpoint.at(address)}/{wanted.path}",
            headers=headers,
            json=wanted.payload,
            timeout=httpx2.Timeout(patience, connect=self._limits.connect),
            extensions={"sni_hostname": self._endpoint.host},  # the certificate is checked against the name
        )

    async def _reply(self, request: httpx2.Request, wanted: _Wanted) -> Reply:
        response = await self._http.send(request, stream=True)
        writing = 0.0 if wanted.on_piece is None else self._limits.per_token * wanted.max_tokens
        try:
            try:
                body = await asyncio.wait_for(self._body(response, wanted.on_piece), self._limits.body + writing)
            except asyncio.TimeoutError:
                raise NoReply("no end of the answer in time", crowded=True) from None
            return Reply(response.status_code, {name.lower(): text for name, text in response.headers.items()}, body)
        finally:
            await response.aclose()

    async def _body(self, response: httpx2.Response, on_piece: Callable[[bytes], None] | None) -> bytes:
        largest = self._limits.body_bytes
        too_large = f"an answer larger than {largest / 2**20:g} MiB"
        stated = response.headers.get("content-length", "")
        if stated.isascii() and stated.isdigit() and int(stated) > largest:
            raise NoReply(too_large)
        chunks: list[bytes] = []  # one growing buffer would leave holes of every size behind
        size, held = 0, False
        try:
            async for chunk in response.aiter_bytes():
                if on_piece is not None:
                    on_piece(chunk)
                chunks.append(chunk)
                size += len(chunk)
                if len(chunks) > PIECES:
                    chunks[:] = [b"".join(chunks)]
                if size > largest:
                    raise NoReply(too_large)
                if size > SMALL and not held:
                    held = await self._large.acquire()
            return b"".join(chunks)
        finally:
            chunks.clear()  # an error's frames may be kept for long
            if held:
                self._large.release()


def _is_certificate(error: BaseException | None) -> bool:
    """Whether a connection failed for the server's certificate."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
