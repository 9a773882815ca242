"""`tether certs`: reads the two Secrets, plans, and writes what differs; run again, it changes nothing.

The authority's Secret is written before the proxy's, so that a run that is cut off leaves no certificate of a lost
authority. Each write is of the version that was read: of two runs at a time one looks again.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.errors import AlreadyExistsError, ConflictError, NotFoundError, StartError
from eventcore.kube import api_path
from tether.certs_plan import (
    Object,
    Options,
    Plan,
    is_ours,
    plan,
    read_serving,
    read_signing,
    serving_secret,
    signing_secret,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.kube import KubeClient, Params

TRIES: Final = 5
"""How often a write is tried against others who write the same Secrets."""
CERT_MANAGER: Final = "cert-manager.io/certificate-name"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one run found and did, and nothing of a key. Times are RFC 3339 in UTC."""

    secret: str
    authority: str
    changed: bool
    dry_run: bool
    done: list[str]
    hosts: list[str]
    expires: dt.datetime | None
    authority_expires: dt.datetime | None
    switch_at: dt.datetime | None
    next_look: dt.datetime


class Certs:
    """One run with checked options."""

    def __init__(
        self,
        client: KubeClient,
        options: Options,
        *,
        dry_run: bool = False,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._client = client
        self._options = options
        self._clock = clock
        self._dry_run = dry_run
        self._params: Params = {"dryRun": "All"} if dry_run else {}

    async def run(self) -> Report:
        """Bring both Secrets to what they should be; StartError or KubeError, each one line, when that cannot be."""
        options = self._options
        for _ in range(TRIES):
            authority, proxy = await self._read(options.authority), await self._read(options.secret)
            self._check(authority, options.authority, adopt=False)
            self._check(proxy, options.secret, adopt=options.adopt)
            # To the second, as the Secret tells it.
            found = plan(read_signing(authority), read_serving(proxy), options, self._clock().replace(microsecond=0))
            try:
                changed = await self._write(
                    options.authority, authority, signing_secret(options, found.signing, authority)
                )
                changed |= await self._write(options.secret, proxy, serving_secret(options, found.serving, proxy))
            except (AlreadyExistsError, ConflictError):
                continue  # somebody wrote it between our look and our write: look again
            return self._report(found, changed=changed)
        raise StartError(f"the Secrets in {options.namespace} are being written by somebody else: find out by whom")

    def _check(self, secret: Object | None, name: str, *, adopt: bool) -> None:
        if secret is None:
            return
        where = f"Secret {self._options.namespace}/{name}"
        if keeper := (secret["metadata"].get("annotations") or {}).get(CERT_MANAGER):
            raise StartError(f"{where} is kept by cert-manager's Certificate {keeper}: delete that one first")
        if not adopt and not is_ours(secret):
            hint = "--adopt takes it over" if name == self._options.secret else "choose another --authority-name"
            raise StartError(f"{where} was made by something else: {hint}")

    async def _read(self, name: str) -> Object | None:
        path = api_path("", "v1", "secrets", namespace=self._options.namespace, name=name)
        try:
            return await self._client.get_as(Object, path)
        except NotFoundError:
            return None

    async def _write(self, name: str, existing: Object | None, wanted: Object) -> bool:
        """Write a Secret if it differs; tell whether it did."""
        path = api_path("", "v1", "secrets", namespace=self._options.namespace, name=name)
        if existing is None:
            collection = api_path("", "v1", "secrets", namespace=self._options.namespace)
            await self._client.create(collection, wanted, params=self._params)
            return True
        old = existing["metadata"]
        same = (
            existing.get("data") == wanted["data"]
            and (old.get("labels") or {}) == wanted["metadata"]["labels"]
            and (old.get("annotations") or {}) == wanted["metadata"]["annotations"]
        )
        if not same:
            await self._client.replace(path, wanted, params=self._params)
        return not same

    def _report(self, found: Plan, *, changed: bool) -> Report:
        options, signing = self._options, found.signing
        return Report(
            secret=f"{options.namespace}/{options.secret}",
            authority=f"{options.namespace}/{options.authority}",
            changed=changed,
            dry_run=self._dry_run,
            done=list(found.done),
            hosts=list(options.hosts),
            expires=found.serving.pair.expires if found.serving.pair is not None else None,
            authority_expires=signing.current.expires if signing.current is not None else None,
            switch_at=signing.switch_at,
            next_look=found.next_look,
        )
