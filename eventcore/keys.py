"""What a name becomes on the bus: tokens, subjects, work keys and lanes, in one place.

A NATS subject token may not hold dots, spaces or wildcards, and a KV key only ``A-Za-z0-9-_/=.``; Kubernetes names
may hold dots and colons, and user names anything. So each name becomes one token: letters, digits, ``-`` and ``_``
stand for themselves, every other byte of its UTF-8 form is ``=XX`` (upper-case hex), the empty name is ``=``.

Names are bounded here too. nats-server cuts off whoever sends a protocol line over 4 KiB, with all that was in flight,
and Kubernetes takes names of RBAC objects, users and groups of any length. A name whose token would be over MAX_TOKEN
becomes ``==`` and its hash: no name encodes to that and none is decoded from it, so such a name can be looked up, where
it is never found, and may stand in the subject of a record, but nothing of which it is the key is ever published.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from functools import lru_cache
from typing import Final, Literal

import msgspec

from eventcore.errors import EventError, KeyTooLongError
from eventcore.foreign import shown

LANES = 16
"""Lanes of each worker. Changing it means draining WORK first: a key's lane moves."""

WorkerName = Literal["rbac", "token", "kubeconfig", "access"]
WORKERS: tuple[WorkerName, ...] = ("rbac", "token", "kubeconfig", "access")

MAX_TOKEN: Final = 2048
"""Bytes of the token of one name: the longest that Kubernetes bounds, 253 characters, needs at most 759."""
MAX_SUBJECT: Final = 3072
"""Bytes of a whole subject. A line to or from nats-server, by default 4096 bytes, also holds sizes and a reply subject,
and a subject of the JetStream API the names of a stream and a consumer before it: room for 1,000 bytes of these."""

_EMPTY = "="
_LONG = "=="
_REMEMBERED = 128
_SPECIAL = re.compile(rb"[^A-Za-z0-9_-]")
_TOKEN = re.compile(r"=|(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_LANE = re.compile(r"[0-9]{1,3}")
_ESCAPE = re.compile(rb"=([0-9A-F]{2})")


def encode(name: str) -> str:
    """Return the subject token for any name, of at most MAX_TOKEN bytes.

    That of a name of ordinary length is remembered, since every look at a grant needs it.
    """
    return _remembered(name) if len(name) <= _REMEMBERED else _encode(name)


def _encode(name: str) -> str:
    if not name:
        return _EMPTY
    data = name.encode(errors="surrogatepass")
    if len(data) <= MAX_TOKEN:
        token = _SPECIAL.sub(lambda m: b"=" + m[0].hex().upper().encode(), data).decode()
        if len(token) <= MAX_TOKEN:
            return token
    return f"{_LONG}{hashlib.sha256(data).hexdigest()}"


_remembered = lru_cache(maxsize=65_536)(_encode)


def _whole(subject: str, names: tuple[str, ...]) -> str:
    """Return a subject that says what it is about; KeyTooLongError where a name in it, or all of it, is too long."""
    if _LONG in subject or len(subject) > MAX_SUBJECT:
        raise KeyTooLongError(
            f"{shown('/'.join(names))} is too long for a subject of NATS, where a name may take {MAX_TOKEN} bytes "
            f"and all of it {MAX_SUBJECT}: nothing is published under it"
        )
    return subject


def decode(token: str) -> str:
    """Return the name behind a token; EventError if no name encodes to it."""
    if not _TOKEN.fullmatch(token):
        raise EventError(f"{token!r} is not an encoded name")
    if token == _EMPTY:
        return ""
    try:
        name = _ESCAPE.sub(lambda m: bytes((int(m[1], 16),)), token.encode()).decode()
    except UnicodeDecodeError as error:
        raise EventError(f"{token!r} is not an encoded name") from error
    if encode(name) != token:
        raise EventError(f"{token!r} is not the one encoding of {name!r}")
    return name


class ObjectKey(msgspec.Struct, frozen=True, order=True):
    """Which object of the cluster: ``kind`` is the watcher row's kind, ``namespace`` is "" for cluster scope."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.namespace, self.name) if part)

    @property
    def fits(self) -> bool:
        """Tell whether the object can be published under its name."""
        subject = self._subject()
        return _LONG not in subject and len(subject) <= MAX_SUBJECT

    def subject(self) -> str:
        """Return ``objects.<kind>.<namespace or _>.<name>``; KeyTooLongError."""
        return _whole(self._subject(), (self.kind, self.namespace, self.name))

    def _subject(self) -> str:
        # A namespace is a DNS label and can never be "_", so the placeholder is free.
        return f"objects.{encode(self.kind)}.{encode(self.namespace) if self.namespace else '_'}.{encode(self.name)}"

    @classmethod
    def of_subject(cls, subject: str) -> ObjectKey:
        """Parse a subject of OBJECTS; EventError otherwise."""
        match subject.split("."):
            case ["objects", kind, namespace, name]:
                return cls(decode(kind), "" if namespace == "_" else decode(namespace), decode(name))
            case _:
                raise EventError(f"{subject!r} is not a subject of OBJECTS")


def mark_subject(kind: str) -> str:
    """Return ``marks.<kind>``."""
    return f"marks.{encode(kind)}"


class Key(msgspec.Struct, frozen=True, order=True):
    """What a worker reconciles: the parts of a name, for example ``("oil-system", "gitops-reconciler")``."""

    parts: tuple[str, ...]

    def __str__(self) -> str:
        return "/".join(self.parts)

    def token(self) -> str:
        """Return the parts as dot-joined tokens: the tail of a WORK subject and a key of the KV bucket.

        Of a key that does not fit it is good for a look that finds nothing.
        """
        return ".".join(encode(part) for part in self.parts)

    @property
    def fits(self) -> bool:
        """Tell whether there may be messages and grants of this key."""
        token = self.token()
        return _LONG not in token and len(token) <= _MAX_KEY

    @classmethod
    def of_token(cls, token: str) -> Key:
        """Parse the tail of a WORK subject or a KV key; EventError otherwise."""
        return cls(tuple(decode(part) for part in token.split(".")))

    def lane(self) -> int:
        """Return the lane, 0 to LANES - 1; the same in every process and release."""
        return zlib.crc32(self.token().encode()) % LANES


_MAX_KEY = MAX_SUBJECT - len("timer.kubeconfig.15.")


def key(*parts: str) -> Key:
    """Return the Key of these parts."""
    return Key(parts)


def work_subject(worker: str, target: Key) -> str:
    """Return ``work.<worker>.<lane>.<key>``; KeyTooLongError."""
    return _whole(f"work.{worker}.{target.lane()}.{target.token()}", target.parts)


def timer_subject(worker: str, target: Key) -> str:
    """Return ``timer.<worker>.<lane>.<key>``: no consumer filters it, so a schedule rests there until it fires."""
    return _whole(f"timer.{worker}.{target.lane()}.{target.token()}", target.parts)


def kv_subject(bucket: str, target: Key) -> str:
    """Return ``$KV.<bucket>.<key>``; KeyTooLongError."""
    return _whole(f"$KV.{bucket}.{target.token()}", target.parts)


def parse_work_subject(subject: str) -> tuple[str, int, Key]:
    """Return (worker, lane, key) of a WORK subject; EventError otherwise."""
    match subject.split(".", 3):
        case ["work", worker, lane, token] if _LANE.fullmatch(lane):
            return worker, int(lane), Key.of_token(token)
        case _:
            raise EventError(f"{subject!r} is not a subject of WORK")


def lane_consumer(worker: str, lane: int) -> str:
    """Return the durable consumer's name for a lane."""
    return f"{worker}-{lane}"


def lane_filter(worker: str, lane: int) -> str:
    """Return the filter subject of a lane."""
    return f"work.{worker}.{lane}.>"


def audit_subject(component: str, tenant: str, action: str) -> str:
    """Return ``audit.<component>.<tenant or _>.<action>``, for any text: the record itself says what it is about."""
    return f"audit.{encode(component)}.{encode(tenant) if tenant else '_'}.{encode(action)}"


def dead_letter_subject(worker: str, name: str) -> str:
    """Return ``dlq.<worker>.<name>``, for anything that a request may have been about."""
    return f"dlq.{encode(worker)}.{encode(name)}"
