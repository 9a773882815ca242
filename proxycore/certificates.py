"""The serving certificate follows its files: who renews it need not restart the proxy.

Certificate and key are read once and then used together, so that a renewal that is half written, or comes while it is
read, never spoils what serves. What cannot be used is said once, counted, and tried again when the files change.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509

from eventcore.logs import get

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxycore.measures import Measures

log = get("proxy.certificates")

LOOK_SECONDS: Final = 1.0
_State = tuple[tuple[int, int, int], ...] | None


class ServingCertificate:
    """Loads certificate and key into a context again when the files change. New connections get the new one."""

    def __init__(self, context: ssl.SSLContext, certificate: str, key: str, measures: Measures | None = None) -> None:
        self._context = context
        self._files = certificate, key
        self._measures = measures
        self._seen = self._state()
        try:
            self._show(Path(certificate).read_bytes())
        except (OSError, ValueError) as error:
            log.warning("serving certificate cannot be read", file=certificate, error=error)

    def look(self) -> bool:
        """Load the files if they changed; tell whether they were loaded. Files that do not belong together are not."""
        found = self._state()
        if found == self._seen:
            return False
        self._seen = found  # before it is read: what changes meanwhile is another state
        try:
            certificate, key = (Path(name).read_bytes() for name in self._files)
            # First elsewhere, since loading what does not fit leaves a context with half of it.
            load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
            self._show(certificate)
            load(self._context, certificate, key)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            log.warning("changed certificate cannot be used, the one before goes on", file=self._files[0], error=error)
            self._count("refused")
            return False
        log.info("serving certificate loaded again", file=self._files[0])
        self._count("loaded")
        return True

    async def run(self, stopping: asyncio.Event, *, interval: float = LOOK_SECONDS) -> None:
        """Look now and again until told to stop."""
        while not stopping.is_set():
            self.look()
            try:
                await asyncio.wait_for(stopping.wait(), interval)
            except TimeoutError:
                continue

    def _state(self) -> _State:
        try:
            found = [Path(name).stat() for name in self._files]  # a Secret's files are links, and these are followed
        except OSError:
            return None
        return tuple((one.st_mtime_ns, one.st_ino, one.st_size) for one in found)

    def _show(self, certificate: bytes) -> None:
        if self._measures is not None:
            expiry = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
            self._measures.certificate_expiry.set(expiry.timestamp())

    def _count(self, result: str) -> None:
        if self._measures is not None:
            self._measures.certificate_loads.labels(result).inc()


def load(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load a chain and its key (PEM) into a context; OSError when they cannot be used together."""
    with ExitStack() as files:
        chain, private = (files.enter_context(_file(content)) for content in (certificate, key))
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(chain, private, password="")


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """Yield a name under which these bytes can be read; in memory where the system can, since one is a key."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("tether"), "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as file:  # readable by this user alone
            file.write(content)
            file.flush()
            yield file.name
