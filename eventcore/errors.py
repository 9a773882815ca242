"""The errors that Tether raises itself.

TetherError                  what went wrong and what to do, in one line that a person can read
├── SettingsError            a flag or variable is wrong: exit code 2
├── StartError               a process cannot go on: a port in use, no rights, a missing file
├── BusError                 NATS
│   ├── BusUnreachableError  no server answers
│   ├── LoginRefusedError    a server answers, and either it refuses this login or we say nothing to it in clear
│   ├── NoJetStreamError     a server answers, without JetStream
│   ├── StreamMissingError   the topology was not applied
│   ├── PublishError         a publish was not acknowledged in time, after retries
│   │   └── RefusedError     NATS will never take this message: no use in another try
│   └── WrongSequenceError   a compare-and-set publish met another last sequence (10071)
├── EventError               a message on the bus cannot be understood
│   └── KeyTooLongError      or be made: a name is too long for a subject of NATS
└── KubeError                the Kubernetes API
    ├── UnauthorizedError    401: it does not know our credentials
    ├── ForbiddenError       403: RBAC or an admission says no
    ├── NotFoundError        404
    ├── ConflictError        409: another resourceVersion, uid or field manager
    ├── AlreadyExistsError   409 on create
    ├── GoneError            410: that resourceVersion or page is history, list again
    ├── InvalidError         422: the object itself is wrong
    ├── TooManyRequestsError 429
    ├── ServerError          5xx
    ├── KubeUnreachableError no answer: connection, TLS, time-out
    └── WatchInactiveError   a watch was silent for too long
"""

from __future__ import annotations


class TetherError(Exception):
    """Base of all: ``str(error)`` is one line that says what is wrong and what to do."""


class SettingsError(TetherError):
    """A setting is wrong; the process must not start."""


class StartError(TetherError):
    """The process cannot do its work here."""


class BusError(TetherError):
    """NATS refused or failed."""


class BusUnreachableError(BusError):
    """No NATS server answers at the address."""


class LoginRefusedError(BusError):
    """A NATS server answers and refuses this login, or does not ask for the TLS that the settings want."""


class NoJetStreamError(BusError):
    """The NATS server runs without JetStream."""


class StreamMissingError(BusError):
    """A stream or consumer of the topology does not exist."""


class PublishError(BusError):
    """A publish was not acknowledged in time; nothing is known about whether it was stored."""


class RefusedError(PublishError):
    """NATS will never take this message, today's or tomorrow's: set it aside, and go on with the others."""


class WrongSequenceError(BusError):
    """The subject's last sequence is not the expected one: somebody else wrote first."""


class LeaseLostError(TetherError):
    """The time in which a request may be worked on is over: neither write nor acknowledge."""


class EventError(TetherError):
    """A message on the bus cannot be understood."""


class KeyTooLongError(EventError):
    """A name is too long to be the key of a message: nothing was sent, and nothing of that name ever is."""


class KubeError(TetherError):
    """The Kubernetes API refused or failed.

    ``status`` is the HTTP code (0 without an answer), ``reason`` that of the ``metav1.Status`` ("" without one),
    ``causes`` the reasons in its details, ``retry_after`` the seconds that the server asks to wait, if it does.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        causes: tuple[str, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.causes = causes
        self.retry_after = retry_after


class UnauthorizedError(KubeError):
    """The API server does not accept our credentials."""


class ForbiddenError(KubeError):
    """RBAC does not allow it, or an admission denied it."""


class NotFoundError(KubeError):
    """The object, its namespace, or the kind does not exist."""


class ConflictError(KubeError):
    """A precondition on uid or resourceVersion does not hold, or another manager owns a field."""


class AlreadyExistsError(KubeError):
    """An object of that name exists."""


class GoneError(KubeError):
    """The resourceVersion or the page is no longer served: list again."""


class InvalidError(KubeError):
    """The object is not valid, or a field that may not change was changed."""


class TooManyRequestsError(KubeError):
    """The API server asks us to wait."""


class ServerError(KubeError):
    """The API server failed; trying again may help."""


class KubeUnreachableError(KubeError):
    """No answer came from the API server; whether a write was done is not known."""


class WatchInactiveError(KubeError):
    """A watch brought neither events nor bookmarks for too long; its connection is taken for dead."""
