"""Which authorities sign clients' certificates, read again now and again: a file, or what the API server itself trusts.

Without a file it is the ConfigMap ``kube-system/extension-apiserver-authentication``, in which kube-apiserver publishes
the bundle by which it judges its own clients. The CA of the kube configuration would be another thing: it says who the
API server is, and where the two differ whoever it signed would be let in.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from eventcore.errors import KubeError
from eventcore.kube import api_path
from eventcore.logs import get

if TYPE_CHECKING:
    from proxycore.client_certificates import ClientCertificates

log = get("proxy.client_authorities")

PUBLISHED: Final = api_path("", "v1", "configmaps", namespace="kube-system", name="extension-apiserver-authentication")
PUBLISHED_KEY: Final = "client-ca-file"
LOOK_SECONDS: Final = 5.0
"""How often a file is looked at, and the API server asked until it has told once."""
ASK_SECONDS: Final = 30.0
"""How often the API server is asked."""
_ANY_TIME: Final = ssl.VerifyFlags(0x200000)
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python has no name for."""
_MARK: Final = b"-----BEGIN CERTIFICATE-----"


class Fetcher(Protocol):
    """What reads a path, as KubeClient does."""

    async def get(self, path: str, /) -> bytes:
        """Return the body of a GET; KubeError."""


class _ConfigMap(msgspec.Struct, frozen=True):
    data: dict[str, str] = {}


class ClientAuthorities:
    """Keeps certificates judged by the bundle of now. ``tls``: the port, which asks for certificates from then on."""

    def __init__(
        self, certificates: ClientCertificates, tls: ssl.SSLContext | None, fetcher: Fetcher, *, file: str
    ) -> None:
        self._certificates = certificates
        self._tls = tls
        self._fetcher = fetcher
        self._file = file
        self._known: bytes | None = None
        self._trouble = ""
        self.looked = asyncio.Event()
        """Set once the bundle was asked for, whatever came of it."""

    async def look(self) -> bool:
        """Read the bundle; tell whether another one is trusted now. One that cannot be read or used changes nothing."""
        try:
            bundle = await self._read()
            if bundle == self._known:
                self._well()
                return False
            self._trust(bundle)
        except (KubeError, OSError, ValueError, msgspec.DecodeError) as error:
            self._ill(error)
            return False
        self._known = bundle
        self._well()
        log.info("authorities of client certificates are known", origin=self._origin)
        return True

    async def run(self, stopping: asyncio.Event) -> None:
        """Look now and again until told to stop."""
        while not stopping.is_set():
            await self.look()
            self.looked.set()
            try:
                pause = LOOK_SECONDS if self._file or self._known is None else ASK_SECONDS
                await asyncio.wait_for(stopping.wait(), pause)
            except TimeoutError:
                continue

    @property
    def _origin(self) -> str:
        return self._file or "kube-system/extension-apiserver-authentication"

    async def _read(self) -> bytes:
        if self._file:
            return Path(self._file).read_bytes()  # noqa: ASYNC240 - a few kilobytes, as the serving certificate
        found = msgspec.json.decode(await self._fetcher.get(PUBLISHED), type=_ConfigMap)
        return found.data.get(PUBLISHED_KEY, "").encode()

    def _trust(self, bundle: bytes) -> None:
        if _MARK not in bundle:
            raise ValueError("it holds no certificate")
        if self._tls is not None:
            # A context only ever learns more authorities. That is enough: the handshake proves who holds the key, and
            # `ClientCertificates` decides by this bundle alone.
            self._tls.load_verify_locations(cadata=bundle.decode("ascii"))
            # Not strict, as Go's TLS: many cluster CAs lack what it asks for. And without a look at the time: a client
            # whose certificate is expired learns 401 as from kube-apiserver, not an end of the connection.
            self._tls.verify_flags = self._tls.verify_flags & ~ssl.VERIFY_X509_STRICT | _ANY_TIME
            self._tls.verify_mode = ssl.CERT_OPTIONAL
        self._certificates.trust(bundle)

    def _ill(self, error: Exception) -> None:
        if self._trouble == (trouble := str(error)):
            return
        self._trouble = trouble
        outcome = "the bundle before stays" if self._known else "no client certificate is accepted"
        log.warning(
            "authorities of client certificates cannot be read", origin=self._origin, outcome=outcome, error=error
        )

    def _well(self) -> None:
        self._trouble = ""
