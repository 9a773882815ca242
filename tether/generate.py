"""`tether kubeconfig generate`: one kubeconfig for one account, made now, without workers and without NATS.

Reads the account and the CA, finds or makes a token, and creates or updates one Secret. Nothing is made before it is
known that the Secret may be written. Run again, it changes only what differs.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.clock import now
from eventcore.errors import AlreadyExistsError, ConflictError, KubeError, NotFoundError, StartError
from eventcore.kube import api_path
from eventcore.kube_watch import list_pages, watch
from tether.generate_plan import (
    STATIC_TYPE,
    Object,
    Options,
    ca_of,
    check_account,
    check_writable,
    differences,
    good_token,
    is_static,
    pick_static,
    secret_body,
    static_secret,
    token_of,
    until_text,
    verdict,
    wanted_data,
)
from workers.desired import Target, kubeconfig
from workers.existing import Existing
from workers.names import token_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.kube import KubeClient, Params

FILLED_WITHIN: Final = 30.0
"""Seconds in which the cluster's controller fills a token Secret; it takes a fraction of one."""
TRIES: Final = 5
"""How often a write is tried against others who write the same Secret."""
_PLACEHOLDER: Final = "dry-run"  # what a dry run puts where the token will stand


class Generator:
    """One run with checked options. ``say`` gets each line for the person; no ``audiences`` means the API server's."""

    def __init__(
        self,
        client: KubeClient,
        options: Options,
        *,
        audiences: tuple[str, ...] = (),
        dry_run: bool = False,
        say: Callable[[str], None],
    ) -> None:
        self._client = client
        self._options = options
        self._audiences = audiences
        self._dry_run = dry_run
        self._say = say
        self._params: Params = {"dryRun": "All"} if dry_run else {}

    async def write(self) -> None:
        """Bring the Secret to what it should be; StartError or KubeError, each one line, when that cannot be."""
        uid = await self._account()
        ca = await self._ca()
        for _ in range(TRIES):
            existing = await self._read(self._options.target)
            if existing is not None and existing.marked:
                check_writable(existing, self._options)
            try:
                return await self._bring(existing, uid, ca)
            except (AlreadyExistsError, ConflictError):
                continue  # somebody wrote it between our look and our write: look again
        raise StartError(f"{self._options.target} is being written by somebody else all the time: find out by whom")

    async def print(self) -> str:
        """Return the kubeconfig, and write none; a token is made where there is none."""
        uid = await self._account(writes=False)
        ca = await self._ca()
        if self._options.token_life is None:
            return self._config(ca, await self._static(uid, await self._find_static(uid))).decode()
        if self._dry_run:
            self._say(f"would mint a token for {self._options.account}")
            return self._config(ca, _PLACEHOLDER).decode()
        return self._config(ca, await self._mint(None)).decode()

    async def _bring(self, existing: Existing | None, uid: str, ca: bytes) -> None:
        made = existing is None
        if self._options.token_life is None:
            found = await self._find_static(uid)
            if existing is not None and not (found and token_of(found)):
                check_writable(existing, self._options)  # before a token is made for it
            token = await self._static(uid, found)
        else:
            token, existing = await self._bound(existing, uid)
        data = wanted_data(self._options, self._config(ca, token))
        decided = verdict(existing, self._options, data)
        if decided == "same":
            self._report("unchanged")
        elif existing is None:
            await self._create(data)
            self._report("created")
        else:
            changed = differences(existing.body.get("data") or {}, data, self._options.secret_key)
            body = secret_body(self._options, data, existing)
            await self._client.replace(self._options.target.path, body, params=self._params)
            self._report("created" if made else "updated", "" if made else f" ({', '.join(changed)})")

    async def _bound(self, existing: Existing | None, uid: str) -> tuple[str, Existing | None]:
        """Return a token that expires, and the Secret that it is bound to: that of the kubeconfig itself."""
        if existing is not None:
            check_writable(existing, self._options)
            if token := good_token(existing, self._options, uid, now()):
                return token, existing
        if self._dry_run:
            self._say(f"would mint a token for {self._options.account}")
            return _PLACEHOLDER, existing
        binding = existing or await self._create({})
        try:
            return await self._mint(binding), binding
        except KubeError:
            if existing is None:
                await self._client.delete(self._options.target.path, uid=binding.uid)
            raise

    def _config(self, ca: bytes, token: str) -> bytes:
        return kubeconfig(server=self._options.server, ca=ca, token=token, namespace=self._options.namespace)

    def _report(self, done: str, more: str = "") -> None:
        said = f"would be {done}" if self._dry_run and done != "unchanged" else done
        self._say(f"Proxy kubeconfig Secret {said}: {self._options.namespace}/{self._options.target.name}{more}")

    # Reading.

    async def _account(self, *, writes: bool = True) -> str:
        """Return the account's uid."""
        account = self._options.account
        path = api_path("", "v1", "serviceaccounts", namespace=account.namespace, name=account.name)
        try:
            found = await self._client.get_as(Object, path)
        except NotFoundError:
            raise StartError(
                f"ServiceAccount {account} does not exist: create it, or correct --serviceaccount and --namespace"
            ) from None
        if writes:
            check_account(found, self._options)
        return str(found["metadata"]["uid"])

    async def _ca(self) -> bytes:
        secret = await self._read(self._options.tls_secret)
        if secret is None:
            raise StartError(
                f"{self._options.tls_secret} with the proxy's CA does not exist: correct --server-tls-secret-name and "
                "--server-tls-secret-namespace"
            )
        return ca_of(secret.body, self._options)

    async def _read(self, target: Target) -> Existing | None:
        try:
            return Existing(await self._client.get_as(Object, target.path))
        except NotFoundError:
            return None

    async def _find_static(self, uid: str) -> Object | None:
        params = {"fieldSelector": f"type={STATIC_TYPE}"}
        pages = list_pages(self._client, self._options.target.collection, params=params)
        secrets = [msgspec.json.decode(item, type=Object) async for page in pages for item in page.items]
        return pick_static(secrets, self._options.account, uid)

    # Making.

    async def _create(self, data: dict[str, str]) -> Existing:
        body = secret_body(self._options, data)
        made = await self._client.create(self._options.target.collection, body, params=self._params)
        return Existing(msgspec.json.decode(made, type=Object))

    async def _mint(self, binding: Existing | None) -> str:
        """Return a new token that expires, bound to a Secret if there is one: deleting that Secret revokes it."""
        account, life = self._options.account, self._options.token_life or 0.0
        bound = (self._options.target.name, binding.uid) if binding is not None else None
        issued = await self._client.token_request(
            account.namespace,
            account.name,
            audiences=self._audiences,
            expiration_seconds=int(life),
            bound_secret=bound,
        )
        self._say(f"token minted for {account}, expires {until_text(issued.expires)}")
        return issued.token

    async def _static(self, uid: str, found: Object | None) -> str:
        """Return a token that does not expire; its Secret is created where none was found."""
        account = self._options.account
        if found is None:
            target = Target("Secret", account.namespace, token_name(account))
            try:
                body = static_secret(account)
                made = await self._client.create(target.collection, body, params=self._params)
            except AlreadyExistsError:
                found = await self._taken(target, uid)
            else:
                if self._dry_run:
                    self._say(f"would create {target} with a token that does not expire")
                    return _PLACEHOLDER
                self._say(f"{target} created, with a token that does not expire")
                found = msgspec.json.decode(made, type=Object)
        return token_of(found) or await self._filled(found)

    async def _taken(self, target: Target, uid: str) -> Object:
        existing = await self._read(target)
        if existing is not None and is_static(existing.body, self._options.account, uid):
            return existing.body  # made by somebody else since the list
        raise StartError(
            f"{target} is in the way of a token for {self._options.account}: delete or rename it, or use --token-life, "
            "which needs no Secret"
        )

    async def _filled(self, secret: Object) -> str:
        """Wait until the controller has put the token into its Secret, and return it."""
        name, version = str(secret["metadata"]["name"]), str(secret["metadata"]["resourceVersion"])
        target = Target("Secret", self._options.namespace, name)
        events = watch(
            self._client,
            target.collection,
            resource_version=version,
            params={"fieldSelector": f"metadata.name={name}"},
            timeout=FILLED_WITHIN,
            inactivity=FILLED_WITHIN * 2,
        )
        try:
            async with asyncio.timeout(FILLED_WITHIN), aclosing(events):
                async for event in events:
                    if event.type in {"ADDED", "MODIFIED"} and (
                        token := token_of(msgspec.json.decode(event.object, type=Object))
                    ):
                        return token
                    if event.type == "DELETED":
                        break
        except TimeoutError:
            pass  # the error below says it
        raise StartError(
            f"{target} got no token: kube-controller-manager fills it, see whether it runs, or use --token-life"
        )
