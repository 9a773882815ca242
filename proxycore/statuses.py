"""The answers of the proxy itself: ``metav1.Status`` objects with the codes and words of kube-apiserver.

A client of Kubernetes reads an error as a Status and decides by its reason and code what to do next, so each answer
that does not come from the API server has this form.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One failure. ``retry_after`` (whole seconds, 0: none) also becomes the header ``Retry-After``."""

    code: int
    reason: str
    message: str
    retry_after: int = 0
    details: dict[str, str] = {}

    def body(self) -> dict[str, Any]:
        """Return the ``metav1.Status`` object."""
        details: dict[str, Any] = dict(self.details)
        if self.retry_after:
            details["retryAfterSeconds"] = self.retry_after
        found: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if details:
            found["details"] = details
        return found

    def encode(self) -> bytes:
        """Return the JSON of the object."""
        return msgspec.json.encode(self.body())


class RefusedError(Exception):
    """The request ends here with this Status; nothing of it goes upstream."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


def bad_request(message: str) -> Status:
    """400: the request cannot be understood, or could be understood in two ways."""
    return Status(code=400, reason="BadRequest", message=message)


def unauthorized() -> Status:
    """401 in the words of kube-apiserver, which never says why."""
    return Status(code=401, reason="Unauthorized", message="Unauthorized")


def forbidden(
    user: str,
    verb: str,
    resource: str,
    *,
    subresource: str = "",
    name: str = "",
    group: str = "",
    namespace: str = "",
    why: str = "",
) -> Status:
    """403 in the words of kube-apiserver: who may not do what, where."""
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    qualified = f"{resource}.{group}" if group else resource
    subject = f'{qualified} "{name}"' if name else qualified
    whole = f"{resource}/{subresource}" if subresource else resource
    message = f'{subject} is forbidden: User "{user}" cannot {verb} resource "{whole}" in API group "{group}" {where}'
    details = {"kind": resource, "group": group, "name": name}
    return Status(
        code=403,
        reason="Forbidden",
        message=f"{message}: {why}" if why else message,
        details={key: value for key, value in details.items() if value},
    )


def not_found(resource: str, name: str, *, group: str = "") -> Status:
    """404 in the words of kube-apiserver."""
    qualified = f"{resource}.{group}" if group else resource
    details = {"name": name, "group": group, "kind": resource}
    return Status(
        code=404,
        reason="NotFound",
        message=f'{qualified} "{name}" not found',
        details={key: value for key, value in details.items() if value},
    )


def not_acceptable(offered: str) -> Status:
    """406: none of the asked-for representations is there."""
    return Status(code=406, reason="NotAcceptable", message=f"only the following media types are accepted: {offered}")


def expired(asked: str, oldest: int) -> Status:
    """410: the client must list again."""
    return Status(code=410, reason="Expired", message=f"too old resource version: {asked} ({oldest})")


def too_many_requests(message: str, *, retry_after: int = 1) -> Status:
    """429: this one asks for too much, the others are served."""
    return Status(code=429, reason="TooManyRequests", message=message, retry_after=retry_after)


def unavailable(message: str, *, retry_after: int = 1) -> Status:
    """503: not now."""
    return Status(code=503, reason="ServiceUnavailable", message=message, retry_after=retry_after)


def bad_gateway(message: str) -> Status:
    """502: the API server's answer cannot be used."""
    return Status(code=502, reason="InternalError", message=message)


def gateway_timeout(message: str) -> Status:
    """504: the API server did not answer in time."""
    return Status(code=504, reason="Timeout", message=message)
