"""The serving certificate follows its files: who renews it need not restart the proxy."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final

from eventcore.logs import get

log = get("proxy.certificates")

LOOK_SECONDS: Final = 5.0


class ServingCertificate:
    """Loads certificate and key into a context again when the files change. New connections get the new one."""

    def __init__(self, context: ssl.SSLContext, certificate: str, key: str) -> None:
        self._context = context
        self._files = certificate, key
        self._known = self._state()

    def look(self) -> bool:
        """Load the files if they changed; tell whether they were loaded. Files that do not belong together are not."""
        found = self._state()
        if found is None or found == self._known:
            return False
        try:
            # First elsewhere: half a renewal must not spoil the context that serves.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files)
            self._context.load_cert_chain(*self._files)
        except OSError as error:  # ssl.SSLError is one
            log.warning("changed certificate cannot be used yet", file=self._files[0], error=error)
            return False
        self._known = found
        log.info("serving certificate loaded again", file=self._files[0])
        return True

    async def run(self, stopping: asyncio.Event, *, interval: float = LOOK_SECONDS) -> None:
        """Look now and again until told to stop."""
        while not stopping.is_set():
            self.look()
            try:
                await asyncio.wait_for(stopping.wait(), interval)
            except TimeoutError:
                continue

    def _state(self) -> tuple[tuple[int, int, int], ...] | None:
        try:
            found = [Path(name).stat() for name in self._files]  # a Secret's files are links, and these are followed
        except OSError:
            return None
        return tuple((one.st_mtime_ns, one.st_ino, one.st_size) for one in found)
