"""Checks of who asks the server: host name, the token if it is not bound to this machine alone, no other site."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

COOKIE = "robustsweep-explorer"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Door:
    """Conditions that a request must meet."""

    #: Address that the server is bound to.
    host: str
    #: Needed unless the server is bound to this machine alone.
    token: str | None

    @property
    def is_local(self) -> bool:
        """Whether the server is bound to this machine alone."""
        return self.host in LOOPBACK


def make_door(host: str) -> Door:
    """Return the door of a server bound to ``host``: with a random token unless that is this machine alone."""
    return Door(host, None if host in LOOPBACK else secrets.token_urlsafe(24))


def is_known_host(header: str, door: Door) -> bool:
    """Return whether a Host header names this server; an attacker's name that resolves to it (DNS rebinding) does not.

    Bound to this machine alone, only its own names are known; bound elsewhere, addresses and the machine's names.
    """
    try:
        name = urlsplit(f"//{header}").hostname
    except ValueError:
        return False
    if name is None:
        return False
    if name in LOOPBACK:
        return True
    if door.is_local:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() in {door.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    return True


class Guard:
    """ASGI middleware that refuses what ``Door`` does not let in, and adds headers that keep a page from asking others.

    Args:
        app: application behind it.
        door: what a request must have.
        policy: value of Content-Security-Policy.
    """

    def __init__(self, app: Any, *, door: Door, policy: str) -> None:
        self._app, self._door = app, door
        self._headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer or refuse one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._find_problem(scope, headers)
        if problem is not None:
            await _refuse(send, *problem)
            return
        more = list(self._headers)
        if self._door.token is not None and self._asked_token(scope) is not None:
            # A page of another site never sends it.
            cookie = f"{COOKIE}={self._door.token}; Path=/; HttpOnly; SameSite=Strict"
            more.append((b"set-cookie", cookie.encode()))

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _find_problem(self, scope: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not is_known_host(host, self._door):
            return 421, "this server does not have that name"
        if self._door.token is not None:
            given = self._asked_token(scope) or _read_cookie(headers.get("cookie", ""))
            if given is None or not secrets.compare_digest(given.encode(), self._door.token.encode()):
                return 403, "open the address that the command printed: it has a token"
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != host:
                return 403, "only the page of this server may change anything"
            if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return 415, "expected JSON"
        return None

    @staticmethod
    def _asked_token(scope: dict[str, Any]) -> str | None:
        found = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token")
        return found[0] if found else None


def _read_cookie(header: str) -> str | None:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return None if found is None else found.value


async def _refuse(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
