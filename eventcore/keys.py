"""What a name becomes on the bus: tokens, subjects, work keys and lanes, in one place.

A NATS subject token may not hold dots, spaces or wildcards, and a KV key only ``A-Za-z0-9-_/=.``; Kubernetes names
may hold dots and colons, and user names anything. So each name becomes one token: letters, digits, ``-`` and ``_``
stand for themselves, every other byte of its UTF-8 form is ``=XX`` (upper-case hex), the empty name is ``=``.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from typing import Literal

import msgspec

from eventcore.errors import EventError

LANES = 16
"""Lanes of each worker. Changing it means draining WORK first: a key's lane moves."""

WorkerName = Literal["rbac", "token", "kubeconfig", "access"]
WORKERS: tuple[WorkerName, ...] = ("rbac", "token", "kubeconfig", "access")

_EMPTY = "="
_PLAIN = re.compile(rb"[A-Za-z0-9_-]")
_TOKEN = re.compile(r"=|(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_ESCAPE = re.compile(rb"=([0-9A-F]{2})")


@lru_cache(maxsize=65_536)
def encode(name: str) -> str:
    """Return the subject token for any name; remembered, since every look at a grant needs it."""
    if not name:
        return _EMPTY
    return "".join(chr(b) if _PLAIN.match(bytes((b,))) else f"={b:02X}" for b in name.encode())


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

    def subject(self) -> str:
        """Return ``objects.<kind>.<namespace or _>.<name>``."""
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
        """Return the parts as dot-joined tokens: the tail of a WORK subject and a key of the KV bucket."""
        return ".".join(encode(part) for part in self.parts)

    @classmethod
    def of_token(cls, token: str) -> Key:
        """Parse the tail of a WORK subject or a KV key; EventError otherwise."""
        return cls(tuple(decode(part) for part in token.split(".")))

    def lane(self) -> int:
        """Return the lane, 0 to LANES - 1; the same in every process and release."""
        return zlib.crc32(self.token().encode()) % LANES


def key(*parts: str) -> Key:
    """Return the Key of these parts."""
    return Key(parts)


def work_subject(worker: str, target: Key) -> str:
    """Return ``work.<worker>.<lane>.<key>``."""
    return f"work.{worker}.{target.lane()}.{target.token()}"


def timer_subject(worker: str, target: Key) -> str:
    """Return ``timer.<worker>.<lane>.<key>``: no consumer filters it, so a schedule rests there until it fires."""
    return f"timer.{worker}.{target.lane()}.{target.token()}"


def parse_work_subject(subject: str) -> tuple[str, int, Key]:
    """Return (worker, lane, key) of a WORK subject; EventError otherwise."""
    match subject.split(".", 3):
        case ["work", worker, lane, token] if lane.isdigit():
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
    """Return ``audit.<component>.<tenant or _>.<action>``."""
    return f"audit.{encode(component)}.{encode(tenant) if tenant else '_'}.{encode(action)}"
