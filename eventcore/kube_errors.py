"""From an HTTP answer, or from none, to the errors of this project: pure.

A message holds what the server's ``metav1.Status`` says, cut, with anything that looks like a credential hidden. Bodies
that are no Status are dropped: they come from something between us and the API server, and may hold anything.
"""

from __future__ import annotations

import ssl
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec

from eventcore.clock import now
from eventcore.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    KubeError,
    KubeUnreachableError,
    NotFoundError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
)
from eventcore.logs import redact
from eventcore.numbers import whole

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_MESSAGE = 256

_BY_CODE: dict[int, type[KubeError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
    429: TooManyRequestsError,
}
_FIRST_SERVER_ERROR = 500


class _Cause(msgspec.Struct):
    reason: str = ""


class _Details(msgspec.Struct, rename="camel"):
    causes: list[_Cause] | None = None
    retry_after_seconds: int | None = None


class _Status(msgspec.Struct):
    kind: str = ""
    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


LONGEST_WAIT: Final = 86_400
"""Seconds, at most, that are taken from a Retry-After."""
_decoder = msgspec.json.Decoder(_Status)


def error_of(code: int, body: bytes | msgspec.Raw, headers: Mapping[str, str], *, request: str) -> KubeError:
    """Return the error for an answer of 400 or more; ``request`` is its verb and path, for the message."""
    status = _status(body)
    known = _BY_CODE.get(code, ServerError if code >= _FIRST_SERVER_ERROR else KubeError)
    if status.reason == "AlreadyExists":
        known = AlreadyExistsError
    details = status.details or _Details()
    waited = _retry_after(headers.get("Retry-After"))
    return known(
        cut(f"{redact(_one_line(status.message)) or _plain(code)}", f" ({code} {status.reason or '-'}, {request})"),
        status=code,
        reason=status.reason,
        causes=tuple(cause.reason for cause in details.causes or ()),
        retry_after=waited if waited is not None else _bounded(details.retry_after_seconds),
    )


def error_of_event(status_object: bytes | msgspec.Raw, *, request: str) -> KubeError:
    """Return the error for the Status inside a watch event of type ERROR."""
    return error_of(_status(status_object).code or 500, status_object, {}, request=request)


def unreachable(error: Exception, *, url: str, request: str) -> KubeUnreachableError:
    """Return the error for a request that got no answer; it names the server and what to look at."""
    return KubeUnreachableError(cut(f"no answer from the API server at {url}: {_why(error)}", f" ({request})"))


def cut(message: str, tail: str = "") -> str:
    """Return message and tail in at most MAX_MESSAGE characters, shortening the message first."""
    tail = tail[:MAX_MESSAGE]
    room = MAX_MESSAGE - len(tail)
    return (message if len(message) <= room else message[: max(room - 1, 0)] + "…"[: max(room, 0)]) + tail


_WHY: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (
        aiohttp.ClientConnectorCertificateError,
        "its certificate is not trusted or is for another name; check certificate-authority and the server's name",
    ),
    (
        (aiohttp.ClientSSLError, ssl.SSLError),
        "TLS failed; check that the address is the API server's HTTPS port, and the client certificate",
    ),
    (
        aiohttp.ClientConnectorDNSError,
        "its name does not resolve; check the server in the kubeconfig, and DNS",
    ),
    (
        (aiohttp.ClientHttpProxyError, aiohttp.ClientProxyConnectionError),
        "the HTTP proxy of the kubeconfig did not let us through; check proxy-url",
    ),
    (
        TimeoutError,
        "nothing came in time; check that it runs and that the network lets this process reach it",
    ),
    (
        aiohttp.ClientConnectorError,
        "cannot connect; check that it runs, and the server in the kubeconfig",
    ),
    (
        (aiohttp.ClientResponseError, aiohttp.InvalidURL),
        "what answers there does not speak HTTP as an API server does; check the server in the kubeconfig",
    ),
)
"""First match wins: the special ones stand before those that they derive from."""


def _why(error: Exception) -> str:
    return next(
        (text for types, text in _WHY if isinstance(error, types)), "the connection broke before the answer was whole"
    )


def _plain(code: int) -> str:
    if code == 404:  # noqa: PLR2004 - HTTP's own number
        return "the API server does not serve this path"
    return "the API server refused without saying why"


def _status(body: bytes | msgspec.Raw) -> _Status:
    try:
        status = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Status()
    return status if status.kind == "Status" else _Status()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _retry_after(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header in either of its forms."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdecimal():
        seconds = whole(text, LONGEST_WAIT)
        return float(LONGEST_WAIT if seconds is None else seconds)
    try:
        when = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    return min(max((when - now()).total_seconds(), 0.0), LONGEST_WAIT) if when.tzinfo else None


def _bounded(seconds: int | None) -> float | None:
    return None if seconds is None else float(min(max(seconds, 0), LONGEST_WAIT))
