"""The certificates that kubeconfigs trust: the proxy's CA as it is now, and for a time the one before it.

Clients and proxy never change at the same moment, so for a settable time kubeconfigs carry both. What was trusted
before is remembered in one Secret beside the source, where only administrators write: a copy in a tenant's namespace
could be edited, and a new copy would know nothing of the past. A source that is missing or unreadable replaces nothing.
"""

from __future__ import annotations

import base64
import binascii
import ssl
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventcore.clock import now
from eventcore.errors import AlreadyExistsError, ConflictError, NotFoundError, TetherError
from eventcore.kube import api_path
from eventcore.objects import CA_MEMORY, Meta
from workers.desired import SECRET_TYPE, encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventcore.consumer import Run
    from eventcore.settings import Settings
    from workers.writing import Writer

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_TRIES: Final = 5
_LABELS: Final = {"app.kubernetes.io/part-of": "tether", "app.kubernetes.io/managed-by": "tether"}


class AuthorityError(TetherError):
    """There is no CA to trust; the text says what to do."""


class Past(msgspec.Struct, frozen=True, order=True):
    """A certificate (PEM) that is trusted no more after ``until``."""

    until: datetime
    certificate: str


class Memory(msgspec.Struct, frozen=True):
    """The certificates (PEM, one each) of the CA as it is, and those of the CAs before it."""

    current: tuple[str, ...]
    previous: tuple[Past, ...] = ()

    def advanced(self, current: Sequence[str], moment: datetime, overlap: float) -> Memory:
        """Return what is trusted when the CA is ``current``: what it replaces stays for ``overlap`` seconds."""
        end = moment + timedelta(seconds=overlap)
        until = dict.fromkeys(self.current, end)
        until |= {past.certificate: min(past.until, end) for past in self.previous}
        kept = (Past(at, one) for one, at in until.items() if one not in current and at > moment)
        return Memory(tuple(current), tuple(sorted(kept)))

    @property
    def bundle(self) -> bytes:
        """All of them in one PEM file, the current ones first."""
        return "".join(f"{one}\n" for one in (*self.current, *(past.certificate for past in self.previous))).encode()

    @property
    def ends(self) -> datetime | None:
        """When the next certificate is trusted no more."""
        return min((past.until for past in self.previous), default=None)


def certificates(text: str) -> tuple[str, ...]:
    """Return the certificates of a PEM text, each once, and nothing else of it; ValueError where one is not good."""
    parts = (part.partition(_END) for part in text.replace("\r\n", "\n").split(_BEGIN)[1:])
    found = tuple(dict.fromkeys(_BEGIN + body + end for body, end, _ in parts if end and body[:1].isspace()))
    if not found:
        raise ValueError("no certificate")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata="\n".join(found))
    except ssl.SSLError as error:
        raise ValueError("not a certificate") from error
    return found


class Trust(msgspec.Struct, frozen=True):
    """What a kubeconfig trusts. ``ends``: when that changes by itself; ``problem``: why it is not from the source."""

    bundle: bytes
    ends: datetime | None = None
    problem: str = ""


class Authority:
    """Reads the source and keeps the memory."""

    def __init__(self, writer: Writer, settings: Settings) -> None:
        self._writer = writer
        self._client = writer.client
        self._settings = settings
        namespace = settings.proxy_ca_namespace
        self._memory = api_path("", "v1", "secrets", namespace=namespace, name=CA_MEMORY)

    async def trust(self, run: Run) -> Trust:
        """Return what kubeconfigs are to trust now; AuthorityError where nothing was ever known."""
        problem = ""
        for _ in range(_TRIES):
            version, memory = await self._recall()
            try:
                current = await self._source()
            except AuthorityError as error:
                if memory is None:
                    raise
                problem, current = f"{error}; until then kubeconfigs keep the CA before", memory.current
            before = memory or Memory(())
            after = before.advanced(current, now(), self._settings.proxy_ca_overlap)
            if after == memory or await self._remember(run, after, version):
                return Trust(after.bundle, after.ends, problem)
        raise ConflictError(f"Secret {self._settings.proxy_ca_namespace}/{CA_MEMORY} is being written by others")

    async def _source(self) -> tuple[str, ...]:
        settings = self._settings
        kind, name = settings.ca_source()
        where = f"{kind} {settings.proxy_ca_namespace}/{name}"
        path = api_path("", "v1", f"{kind.lower()}s", namespace=settings.proxy_ca_namespace, name=name)
        try:
            data = (await self._client.get_as(_WithData, path)).data or {}
        except NotFoundError:
            raise AuthorityError(
                f"{where} with the proxy's CA does not exist: create it, or set TETHER_PROXY_CA_NAMESPACE and "
                f"TETHER_PROXY_CA_{kind.upper()}"
            ) from None
        key = next((key for key in settings.ca_keys() if data.get(key)), None)
        if key is None:
            raise AuthorityError(
                f"{where} has none of the keys {', '.join(settings.ca_keys())}: add the proxy's CA, or set "
                "TETHER_PROXY_CA_KEYS"
            )
        try:
            text = base64.b64decode(data[key], validate=True).decode() if kind == "Secret" else data[key]
            return certificates(text)
        except (binascii.Error, UnicodeDecodeError, ValueError):
            raise AuthorityError(f"key {key} of {where} is not a PEM certificate: put the proxy's CA there") from None

    async def _recall(self) -> tuple[str, Memory | None]:
        """Return the resourceVersion of the memory, "" without one, and what it says if that can be read."""
        try:
            body = await self._client.get_as(_WithData, self._memory)
        except NotFoundError:
            return "", None
        if not _LABELS.items() <= body.metadata.labels.items():
            raise AuthorityError(
                f"Secret {self._settings.proxy_ca_namespace}/{CA_MEMORY} exists and was not made by Tether, which "
                "remembers CAs in it: delete or rename it"
            )
        try:
            memory = msgspec.json.decode(base64.b64decode((body.data or {}).get("memory", "")), type=Memory)
        except (binascii.Error, msgspec.DecodeError):
            return body.metadata.resource_version, None
        return body.metadata.resource_version, memory

    async def _remember(self, run: Run, memory: Memory, version: str) -> bool:
        """Write the memory if it is still that version; tell whether it was."""
        settings = self._settings
        metadata: dict[str, Any] = {"name": CA_MEMORY, "namespace": settings.proxy_ca_namespace, "labels": _LABELS}
        data = {"ca.crt": encoded(memory.bundle), "memory": encoded(msgspec.json.encode(memory))}
        run.check()
        try:
            if version:
                await self._client.merge_patch(self._memory, {"metadata": {"resourceVersion": version}, "data": data})
            else:
                body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": SECRET_TYPE, "data": data}
                await self._client.create(api_path("", "v1", "secrets", namespace=settings.proxy_ca_namespace), body)
        except (AlreadyExistsError, ConflictError, NotFoundError):
            return False
        message = f"{len(memory.current)} current, {len(memory.previous)} of before"
        target = f"Secret/{settings.proxy_ca_namespace}/{CA_MEMORY}"
        await self._writer.record(run, "trusted", target, message=message)
        return True


class _WithData(msgspec.Struct):
    """A Secret or ConfigMap: its data as the API server sends it."""

    metadata: Meta
    data: dict[str, str] | None = None
