"""Which headers pass the proxy, and which are made anew: pure.

A header that says who somebody is never passes: ``Authorization``, ``Impersonate-*`` and ``X-Remote-*`` are taken out
in every spelling and rebuilt from the resolved identity alone, after the headers that ``Connection`` names are gone, so
no client can remove or add one of them.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from proxycore.identities import Identity
from proxycore.statuses import RefusedError, bad_request

if TYPE_CHECKING:
    from collections.abc import Iterable

Header = tuple[str, str]

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_HOP_BY_HOP = frozenset(name.encode() for name in HOP_BY_HOP)
_FRAMES = frozenset({b"content-length", b"transfer-encoding"})
_MADE_ANEW = frozenset(
    {"authorization", "host", "content-length", "expect", "forwarded", "x-real-ip", "sec-websocket-protocol"}
)
# What would make another request of it behind a server that heeds it.
_REWRITES = frozenset(
    {
        "http2-settings",
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
        "x-original-url",
        "x-rewrite-url",
    }
)
_UPGRADES = frozenset({"spdy/3.1", "websocket"})
_IDENTITY_PREFIXES = ("impersonate-", "x-remote-", "x-forwarded-")
_SOCKET_BEARER = "base64url.bearer.authorization.k8s.io."
_EXTRA = "impersonate-extra-"
_BROKEN_ESCAPE = re.compile(r"%(?![0-9a-f]{2})")
_PLAIN = frozenset(b"!#$&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")


def bearer_token(headers: Iterable[Header]) -> str:
    """Return the caller's token, "" without one; RefusedError (400) when there is more than one Authorization header.

    A browser's WebSocket cannot set headers and sends the token as a subprotocol; it counts without Authorization.
    """
    found = list(headers)
    given = [value for name, value in found if name.lower() == "authorization"]
    if len(given) > 1:
        raise RefusedError(bad_request("more than one Authorization header"))
    if given:
        match = _BEARER.fullmatch(given[0].strip())
        return match[1] if match else ""
    tokens = [word for word in _subprotocols(found) if word.startswith(_SOCKET_BEARER)]
    if len(tokens) > 1:
        raise RefusedError(bad_request("more than one bearer token among the subprotocols"))
    return _decode_token(tokens[0].removeprefix(_SOCKET_BEARER)) if tokens else ""


def shows_token(headers: Iterable[Header]) -> bool:
    """Tell whether a request carries what could be a credential of any scheme, good or not."""
    found = list(headers)
    return any(name.lower() == "authorization" for name, _ in found) or any(
        word.startswith(_SOCKET_BEARER) for word in _subprotocols(found)
    )


def asked_identity(headers: Iterable[Header]) -> Identity | None:
    """Return whom the client asks to act as, None when it does not ask.

    RefusedError (400) for a header that comes twice where one is allowed, an unknown ``Impersonate-*``, or parts of an
    identity without ``Impersonate-User``.
    """
    users: list[str] = []
    uids: list[str] = []
    groups: list[str] = []
    extra: dict[str, list[str]] = {}
    asked = False
    for name, value in headers:
        key = name.lower()
        if not _same(key).startswith("impersonate-"):
            continue
        asked = True
        if key == "impersonate-user":
            users.append(value)
        elif key == "impersonate-uid":
            uids.append(value)
        elif key == "impersonate-group":
            groups.append(value)
        elif key.startswith(_EXTRA) and len(key) > len(_EXTRA):
            extra.setdefault(_extra_key(key[len(_EXTRA) :]), []).append(value)
        else:
            raise RefusedError(bad_request(f"unknown impersonation header {name!r}"))
    if not asked:
        return None
    if len(users) > 1 or len(uids) > 1:
        raise RefusedError(bad_request("Impersonate-User and Impersonate-Uid may come only once"))
    if not users or not users[0]:
        raise RefusedError(bad_request("requested groups, uid or extra without impersonating a user"))
    return Identity(
        user=users[0],
        groups=tuple(dict.fromkeys(groups)),
        uid=uids[0] if uids else "",
        extra={key: tuple(values) for key, values in extra.items()},
    )


def forwarded(headers: Iterable[Header], peer: str, own: frozenset[str] = frozenset()) -> list[Header]:
    """Return the client's headers that pass upstream, without any that the proxy makes itself.

    ``own``: names, in lower case and with hyphens, of further headers that are for the proxy alone.
    """
    found = list(headers)
    named = {word.strip().lower() for name, value in found if name.lower() == "connection" for word in value.split(",")}
    passed = [
        (name, value)
        for name, value in found
        if (key := name.lower()) not in HOP_BY_HOP
        and key not in named
        and _same(key) not in _MADE_ANEW | _REWRITES
        and _same(key) not in own
        and not _same(key).startswith(_IDENTITY_PREFIXES)
    ]
    if protocols := [word for word in _subprotocols(found) if not word.startswith(_SOCKET_BEARER)]:
        passed.append(("Sec-WebSocket-Protocol", ", ".join(protocols)))
    if peer:
        passed.append(("X-Forwarded-For", peer))
    return passed


def answered(names: tuple[bytes, ...], connection: Iterable[bytes]) -> tuple[int, ...]:
    """Return the places of those headers of an upstream answer that pass to the client.

    ``connection``: the values of its Connection headers, which name more that do not.
    """
    named = {word.strip().lower() for value in connection for word in value.split(b",")}
    dropped = _HOP_BY_HOP | named | _FRAMES
    return tuple(place for place, name in enumerate(names) if name.lower() not in dropped)


def impersonation(asked: Identity) -> list[Header]:
    """Return the headers by which exactly this is asked for, as `asked_identity` reads them."""
    found = [("Impersonate-User", asked.user)]
    found += [("Impersonate-Group", group) for group in asked.groups]
    if asked.uid:
        found.append(("Impersonate-Uid", asked.uid))
    for key, values in asked.extra.items():
        found += [(f"Impersonate-Extra-{_extra_name(key)}", value) for value in values]
    return found


def wants_upgrade(headers: Iterable[Header]) -> str:
    """Return the protocol that the client wants to change to, "" if none, or one that no API server speaks."""
    found = list(headers)
    if not any(
        word.strip().lower() == "upgrade"
        for name, value in found
        if name.lower() == "connection"
        for word in value.split(",")
    ):
        return ""
    wanted = [value for name, value in found if name.lower() == "upgrade"]
    return wanted[0] if len(wanted) == 1 and wanted[0].lower() in _UPGRADES else ""


def _extra_key(name: str) -> str:
    """Return the key that the end of a header's name (in lower case) means to the API server; RefusedError 400.

    What it unescapes to may have capital letters. A name in which any escape is broken is itself the key.
    """
    if _BROKEN_ESCAPE.search(name):
        return name
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:
        raise RefusedError(bad_request("the key of an extra is not UTF-8")) from None


def _extra_name(key: str) -> str:
    """Return the end of a header's name that means this key: what would not come through as it is, is escaped."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in key.encode())


def _same(key: str) -> str:
    # A server in between may take an underscore for a hyphen.
    return key.replace("_", "-")


def _subprotocols(headers: Iterable[Header]) -> list[str]:
    return [
        word.strip()
        for name, value in headers
        if name.lower() == "sec-websocket-protocol"
        for word in value.split(",")
        if word.strip()
    ]


def _decode_token(text: str) -> str:
    if "=" in text:
        return ""  # the API server takes it without padding alone
    try:
        token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
    return token if _BEARER.fullmatch(f"Bearer {token}") else ""
