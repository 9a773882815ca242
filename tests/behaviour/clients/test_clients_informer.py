"""A controller's informers (client-go) through the proxy: who joins and leaves, bookmarks, a proxy that restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from controlplane import pins

from eventcore.kube import KubeClient
from tests.behaviour.clients.conftest import SECONDS, MakeProgram, Running, belongs, object_of, pinned
from tests.behaviour.conftest import path

pytestmark = [pytest.mark.xdist_group("cluster")]

Tenancy = Any
JSON = "application/json"
PROTOBUF = "application/vnd.kubernetes.protobuf"


class Line(msgspec.Struct, frozen=True, rename={"version": "resourceVersion"}):
    """What the informer says: see tests/controlplane/clients/informer."""

    resource: str
    event: str
    name: str = ""
    version: str = ""


class Informer:
    """Reads what a running informer says, and keeps all of it."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.seen: list[Line] = []

    async def until(self, resource: str, event: str, wanted: Callable[[Line], object] = lambda _: True) -> Line:
        """Return the first such line, also if it was said before somebody asked."""
        position = 0
        try:
            async with asyncio.timeout(SECONDS):
                while True:
                    if position == len(self.seen):
                        self.seen.append(msgspec.json.decode(await self._running.line(), type=Line))
                    line = self.seen[position]
                    position += 1
                    if (line.resource, line.event) == (resource, event) and wanted(line):
                        return line
        except TimeoutError:
            raise AssertionError(f"no {event} of {resource} as wanted: {self.seen}") from None

    async def named(self, resource: str, event: str, name: str) -> Line:
        return await self.until(resource, event, lambda line: line.name == name)

    def count(self, resource: str, event: str, name: str = "") -> int:
        return sum((line.resource, line.event, line.name) == (resource, event, name) for line in self.seen)


@asynccontextmanager
async def informing(
    program: MakeProgram, owner: Tenancy, namespace: str, content_type: str, *, streams: bool
) -> AsyncIterator[Informer]:
    """Run the informer as the tenant; with ``streams`` the first state comes by the watch (WatchList)."""
    environ = {"KUBE_FEATURE_WatchListClient": str(streams).lower()}
    kubeconfig = await owner.kubeconfig()
    informer = program([pinned(pins.INFORMER)], kubeconfig, **environ)
    arguments = (f"--kubeconfig={kubeconfig}", f"--namespace={namespace}", f"--content-type={content_type}")
    async with informer.running(*arguments) as running:
        found = Informer(running)
        for resource in ("namespaces", "configmaps"):
            await found.until(resource, "SYNCED")
        yield found


@pytest.mark.parametrize("content_type", [JSON, PROTOBUF])
@pytest.mark.parametrize("streams", [False, True])
async def test_an_informer_sees_what_joins_what_changes_and_what_leaves(
    owner: Tenancy,
    other: Tenancy,
    namespace: str,
    foreign: str,
    admin: KubeClient,
    program: MakeProgram,
    content_type: str,
    streams: bool,
) -> None:
    async with informing(program, owner, namespace, content_type, streams=streams) as informer:
        # given the first state, by a list or by the watch
        assert informer.count("namespaces", "ADDED", namespace) == 1
        assert informer.count("configmaps", "ADDED", "kube-root-ca.crt") == 1
        for resource in ("namespaces", "configmaps"):
            assert informer.count(resource, "LISTED") == (0 if streams else 1)

        # when the tenant makes a namespace, and one of its own changes
        (joined,) = await owner.make_namespaces("joins")
        await informer.named("namespaces", "ADDED", joined)
        await admin.merge_patch(path("Namespace", "", namespace), {"metadata": {"annotations": {"seen": "1"}}})
        await informer.named("namespaces", "MODIFIED", namespace)

        # and when an administrator makes it an owner of another tenant too, and takes that back
        assert not any(foreign == line.name for line in informer.seen)
        owners = [{"kind": "ServiceAccount", "name": name} for name in (other.user, owner.user)]
        await admin.merge_patch(path("Tenant", "", other.name), {"spec": {"owners": owners}})
        await informer.named("namespaces", "ADDED", foreign)
        await admin.merge_patch(path("Tenant", "", other.name), {"spec": {"owners": owners[:1]}})

        # then the informer is called for each, and keeps what it had
        await informer.named("namespaces", "DELETED", foreign)
        assert informer.count("namespaces", "DELETED", namespace) == 0


async def test_objects_of_a_namespace_are_followed_as_at_the_api_server(
    owner: Tenancy, namespace: str, program: MakeProgram
) -> None:
    async with informing(program, owner, namespace, PROTOBUF, streams=True) as informer, owner.acting() as client:
        page = path("ConfigMap", namespace, "page")
        await client.create(path("ConfigMap", namespace), object_of("ConfigMap", namespace, "page", data={"a": "1"}))
        await informer.named("configmaps", "ADDED", "page")
        await client.merge_patch(page, {"data": {"a": "2"}})
        await informer.named("configmaps", "MODIFIED", "page")
        await client.delete(page)
        await informer.named("configmaps", "DELETED", "page")


async def test_bookmarks_advance_while_nothing_of_the_tenants_happens(
    owner: Tenancy, namespace: str, program: MakeProgram, admin: KubeClient, other: Tenancy
) -> None:
    async with informing(program, owner, namespace, JSON, streams=True) as informer:
        first = await informer.until("namespaces", "BOOKMARK")

        # when only namespaces of others change
        await other.make_home()

        # then a later bookmark comes nevertheless, and no event
        later = await informer.until("namespaces", "BOOKMARK", lambda line: int(line.version) > int(first.version))
        assert int(later.version) > int(first.version)
        assert not any(other.home in line.name for line in informer.seen)


async def test_no_event_is_lost_while_the_proxy_restarts(
    owner: Tenancy, namespace: str, program: MakeProgram, admin: KubeClient
) -> None:
    async with informing(program, owner, namespace, PROTOBUF, streams=True) as informer:
        leaving = (await owner.make_namespaces("leaves"))[0]
        await informer.named("namespaces", "ADDED", leaving)

        # when a namespace joins, one leaves and an object appears while there is no proxy
        await owner.cluster.stop("proxy")
        try:
            await belongs(owner, f"{owner.name}-joins")
            await admin.delete(path("Namespace", "", leaving))
            await admin.create(path("ConfigMap", namespace), object_of("ConfigMap", namespace, "page"))
            await owner.gone("Namespace", "", leaving)
        finally:
            await owner.cluster.start()

        # then the informer is called once for each of them, and for nothing else
        await informer.named("namespaces", "ADDED", f"{owner.name}-joins")
        await informer.named("namespaces", "DELETED", leaving)
        await informer.named("configmaps", "ADDED", "page")
        assert informer.count("namespaces", "ADDED", namespace) == 1
        assert informer.count("namespaces", "ADDED", f"{owner.name}-joins") == 1
        assert informer.count("configmaps", "ADDED", "page") == 1
        assert informer.count("namespaces", "DELETED", namespace) == 0
