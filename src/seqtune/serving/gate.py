"""What every request passes before it reaches a route: who may come in, and how much may be brought along."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seqtune.serving.limits import Limits
from seqtune.serving.measures import Measures
from seqtune.serving.refusals import GONE, Refusal

T = TypeVar("T")
OPEN = ("/", "/health", "/ready", "/assets/app.js", "/assets/style.css", "/assets/icon.svg")  # without a token
FILES = "/v1/jobs"  # where a request may be as large as a file
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


class Gate:
    """ASGI middleware.

    Args:
        app: what is behind it.
        limits: of the server.
        measures: requests are counted there.
        token: what a request must bring as `Authorization: Bearer TOKEN`; `None` for nothing.
        origins: pages of other origins that may ask.
        is_draining: whether the server is about to end.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        measures: Measures,
        token: str | None,
        origins: Sequence[str],
        is_draining: Callable[[], bool],
    ):
        self.app, self.limits, self.measures = app, limits, measures
        self.token, self.origins, self.is_draining = token, origins, is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or let pass."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, self._bounded(scope, receive), sending)
        except Refusal as refusal:
            await refusal.response()(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")  # never the path, of which a client could make up many
            self.measures.requests.labels(route, str(status)).inc()
            self.measures.latency.labels(route).observe(time.monotonic() - started)

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if self.is_draining() and path != "/health":
            raise Refusal(503, "the server is about to end", "draining", retry_after=5)
        self._check_origin(headers)
        if self.token is not None and path not in OPEN:
            kind, _, given = headers.get("authorization", "").partition(" ")
            # bytes, for compare_digest takes no other text than ASCII
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
                raise Refusal(401, "this server asks for a token: Authorization: Bearer TOKEN", "invalid_api_key")
        size = headers.get("content-length", "0")
        if not (size.isascii() and size.isdigit()) or int(size) > self._most(scope):
            raise _too_large(self._most(scope))

    def _check_origin(self, headers: Headers) -> None:
        """Keep pages of other sites out: a browser would let them ask a server on its own machine, which knows no token."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.token is None and not is_loopback(_name(host)):
            raise Refusal(421, f"this server answers to localhost, 127.0.0.1 and [::1], not to {host[:80]!r}", "wrong_host")
        if origin is not None and origin not in self.origins and urlsplit(origin).netloc != host:
            raise Refusal(403, f"pages of {origin[:80]!r} may not ask this server; --cors allows one", "wrong_origin")

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` for a body that may not be larger, nor take longer, than the limits say."""
        most, deadline, size, ended = self._most(scope), time.monotonic() + self.limits.seconds, 0, False

        async def receiving() -> Message:
            nonlocal size, ended
            if ended:  # what comes now is that the client hung up
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise Refusal(408, f"the request did not arrive within {self.limits.seconds:g} seconds", "timeout") from None
            size += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if size > most:
                raise _too_large(most)
            return message

        return receiving

    def _most(self, scope: Scope) -> int:
        return self.limits.file if scope["path"] == FILES else self.limits.body


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"a request may have {most:,} bytes", "too_large")


def is_loopback(host: str) -> bool:
    """True for names and addresses that only this machine reaches.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost.example")
        (True, False)
    """
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """A `Host` header without port and brackets."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).strip("[]")


async def within(request: Request, seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of work on a request; it is given up when the client hangs up or time is over.

    Raises:
        Refusal: 504 after that many seconds, 499 when nobody waits for the answer.
    """
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(hung_up(request.receive))
    try:
        await asyncio.wait((doing, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        if gone.done():
            raise Refusal(GONE, "the client hung up", "gone")
        raise Refusal(504, f"there was no answer within {seconds:g} seconds", "timeout")
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def hung_up(receive: Callable[[], Awaitable[Message]]) -> None:
    """Return when the client has gone; its request has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
