"""The embedded Kubernetes API as one thing to start and stop: store, HTTPS side, RBAC, controllers, Capsule's part.

A tool for development and tests, never for production.
"""

from __future__ import annotations

import asyncio
import base64
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
import yaml

from tether.devcluster import bootstrap, capsule, capsule_controllers, controllers, rbac, reviews
from tether.devcluster.authn import DevAuthenticator
from tether.devcluster.capsule_crds import CAPSULE_CRDS
from tether.devcluster.endpoints import Endpoints
from tether.devcluster.http import ApiServer
from tether.devcluster.objects import name_of
from tether.devcluster.pki import ClusterPki
from tether.devcluster.resources import CRDS
from tether.devcluster.store import DEFAULT_HISTORY, Store
from tether.devcluster.tokens import TokenIssuer
from tether.devcluster.writes import Writer, refuse_protected

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tether.devcluster.contracts import Admission

_log = structlog.get_logger()


class ApiOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an embedded API is made. Without ``data_dir`` nothing outlives the process."""

    data_dir: Path | None = None  # authority, keys and objects; a restart on it continues where it ended
    bookmark_every: float = 1.0  # seconds between the bookmarks of a watch that asked for them
    history: int = DEFAULT_HISTORY  # changes back to which a watch can resume
    capsule: bool = True  # Capsule's kinds, webhooks and controllers
    capsule_controllers: bool = True  # False: nobody writes a status or a right, as while Capsule's pods are down
    capsule_webhooks: bool = True  # False: Capsule's validation of Tenants is off, so that malformed ones can exist


class EmbeddedApi:
    """One Kubernetes API in this process. ``url`` and the kubeconfig are there once it is started.

    A ``pki`` that is given is used in place of the one in the options' folder: keys take time to make.
    """

    def __init__(self, options: ApiOptions | None = None, *, pki: ClusterPki | None = None) -> None:
        self.options = options or ApiOptions()
        data = self.options.data_dir
        self.pki = pki or ClusterPki.load_or_create(data / "pki" if data else None)
        self.store = Store(data / "objects.sqlite" if data else None, history=self.options.history)
        self.issuer = TokenIssuer(self.store, self.pki)
        self.authorizer = rbac.RbacAuthorizer(self.store)
        self.url = ""
        self._server: ApiServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen and run the controllers; OSError when the port is in use."""
        bootstrap.apply(self.store)
        bootstrap.publish_client_ca(self.store, self.pki.ca_pem)
        if self.options.capsule:
            for definition in CAPSULE_CRDS:
                if self.store.get(CRDS, "", name_of(definition)) is None:
                    self.store.create(CRDS, definition)
        self.store.expire_history()  # what a client can resume from begins with this start
        authenticator = DevAuthenticator(self.store, self.pki, self.issuer, self.authorizer)
        endpoints = Endpoints(
            self.store,
            Writer(self.store, self.authorizer, self._admissions()),
            reviews.handlers(self.store, authenticator, self.authorizer, self.issuer),
            {
                "/.well-known/openid-configuration": self.issuer.openid_configuration,
                "/openid/v1/jwks": self.issuer.jwks,
            },
            self.options.bookmark_every,
        )
        self._server = ApiServer(endpoints, authenticator, self.authorizer)
        bound = await self._server.start(self.pki.server_ssl_context([host]), host, port)
        self.url = f"https://{host}:{bound}"
        self._run("kubernetes", lambda: controllers.run(self.store, self.issuer))
        if self.options.capsule and self.options.capsule_controllers:
            self._run("capsule", lambda: capsule_controllers.run(self.store))

    async def stop(self) -> None:
        """End watches, connections and controllers, and close the store. Safe to call twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self.store.close_watches()
        if self._server:
            await self._server.stop()
            self._server = None
        self.store.close()

    def kubeconfig(self, *, namespace: str = "", **user: str) -> str:
        """Return a kubeconfig (YAML) for this API; ``user`` are the fields of its user, such as ``token``."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "embedded",
                    "cluster": {"server": self.url, "certificate-authority-data": _base64(self.pki.ca_pem)},
                }
            ],
            "users": [{"name": "user", "user": user}],
            "contexts": [
                {
                    "name": "embedded",
                    "context": {"cluster": "embedded", "user": "user", "namespace": namespace or "default"},
                }
            ],
            "current-context": "embedded",
        }
        return yaml.safe_dump(config, sort_keys=False)

    def admin_kubeconfig(self) -> str:
        """Return a kubeconfig with a client certificate of the group system:masters, which may do everything."""
        certificate, key = self.pki.client_certificate("kubernetes-admin", ["system:masters"])
        secrets = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
        return self.kubeconfig(**secrets)

    def _admissions(self) -> list[Admission]:
        admissions: list[Admission] = [refuse_protected]
        if self.options.capsule:
            admissions.append(capsule.admission(self.store, validate_tenants=self.options.capsule_webhooks))
        return [*admissions, rbac.escalation_admission(self.authorizer)]

    def _run(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def supervised() -> None:
            while True:
                try:
                    await work()
                except Exception as error:  # noqa: BLE001 -- an object that trips a controller must not end them all
                    where = traceback.format_tb(error.__traceback__)[-3:]
                    _log.error("controllers failed", controllers=name, error=repr(type(error)), where=where)
                changes = self.store.changes()
                await changes.wait()  # what tripped them is still there until something changes
                changes.close()

        self._tasks.append(asyncio.get_running_loop().create_task(supervised(), name=f"devcluster-{name}"))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
