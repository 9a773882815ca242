"""A drawn cluster, asked through the proxy by everybody and held against a model of what the administrator wrote.

The seed of a run is printed when it fails; ``TETHER_DIFFERENTIAL_SEED`` draws the same cluster again.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventcore.errors import TooManyRequestsError
from eventcore.kube import KubeClient, api_path
from tests.behaviour.conftest import Cluster, Object, Tenancy, may, path
from tests.behaviour.drawn import KINDS, LABEL, OPTIONAL, PROXY_API, RULED, Subjects, World
from tests.behaviour.people import PEOPLE, Person, are_users
from tests.kubeapi import Client, Reply
from tether import manifests
from tether.devcluster.pki import ClusterPki

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(180)]

TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
FROM_MEMORY = "?resourceVersion=0"
ROUNDS = 2


class Asker:
    """Asks everything as one of the people and holds each answer against the model."""

    def __init__(
        self, world: World, who: Subjects, client: Client, direct: Client, secret: dict[str, dict[str, set[str]]]
    ) -> None:
        self.world = world
        self.who = who
        self.client = client
        self.direct = direct
        self.secret = secret
        # As the world is now: what may stand in no answer to them.
        foreign = {kind: objects.keys() - (world.sees(who, kind) or set()) for kind, objects in secret.items()}
        self.hidden = {one for kind, names in foreign.items() for name in names for one in secret[kind][name]}
        self.named = {one for kind in secret for name in world.gets(who, kind) for one in secret[kind][name]}
        self.unnamed = (foreign["Namespaces"] | foreign["Tenants"]) - self._told()

    def _told(self) -> set[str]:
        """Return the namespaces and Tenants that volumes name which they may read, by a rule perhaps."""
        volumes = self.world.objects["PersistentVolumes"]
        mine = [volumes[name] for name in self.world.gets(self.who, "PersistentVolumes")]
        claims = {volume["spec"]["claimRef"]["namespace"] for volume in mine if "claimRef" in volume["spec"]}
        return claims | {volume["metadata"]["labels"].get(LABEL, "") for volume in mine}

    async def settled(self, until: Any) -> None:
        """Return once the grants have come as far as the administrator."""
        differs: list[Object] = []

        async def agrees() -> bool:
            differs[:] = [one async for one in self._differences()]
            return not differs

        try:
            await until(agrees)
        except AssertionError as error:
            raise AssertionError(f"{error}: {sorted(self.who)} {differs}, {self.world.tenants}") from None

    async def _differences(self) -> AsyncIterator[Object]:
        """Yield each kind whose list is not as the model has it, and each object that only a rule on Get may show."""
        for kind in KINDS:
            wanted, seen = self.world.sees(self.who, kind), await self._listed(kind)
            if seen != wanted:
                yield {"list": kind, "seen": seen, "wanted": wanted}
        for kind in RULED if self.world.ruled else ():
            mine = self.world.gets(self.who, kind)
            for name in self.secret[kind]:
                if (status := (await self.client.get(api_path(*KINDS[kind], name=name))).status) != (
                    200 if name in mine else 403
                ):
                    yield {"get": f"{kind} {name}", "status": status}

    async def ask(self) -> int:
        """Ask everything; return how many answers were compared."""
        asked = 0
        for kind, where in KINDS.items():
            wanted = self.world.sees(self.who, kind)
            asked += await self._ask_lists(kind, wanted)
            for name in self.secret[kind]:
                mine = name in self.world.gets(self.who, kind)
                for query in ("", FROM_MEMORY):
                    await self._ask_one(f"{api_path(*where, name=name)}{query}", name, mine=mine)
                    asked += 1
        return asked

    async def _ask_one(self, target: str, name: str, *, mine: bool) -> None:
        """Get one object; what is not theirs is answered by RBAC, where Capsule takes back its rights later."""
        by_rbac = (await self.direct.get(target)).status == 200
        one = await self.client.get(target)
        assert one.status in ({200} if mine else {200, 403} if by_rbac else {403}), (target, one)
        if mine or one.status == 403:
            self._leaks_nothing(msgspec.json.encode([one.body, one.headers]).decode(), but=name)

    async def _ask_lists(self, kind: str, wanted: set[str] | None) -> int:
        collection = api_path(*KINDS[kind])
        forms = [
            {"headers": {"Accept": accept}, "params": {"includeObject": include}}
            for accept, include in ((TABLE, "Object"), (TABLE, "None"), (METADATA, "Object"))
        ]
        ways = [(query, options) for options in ({}, *forms) for query in ("", FROM_MEMORY)]
        for query, options in ways:
            reply = await self._get(f"{collection}{query}", **options)
            if wanted is None:
                assert reply.status == 403, (kind, query, options, reply)
                continue
            assert reply.status == 200, (kind, query, options, reply)
            items = reply.body["rows"] if "rows" in reply.body else reply.body["items"]
            found = [self._name(item) for item in items]
            mine = sorted(name for name in found if name.startswith(self.world.prefix))
            assert mine == sorted(wanted), (kind, query, options)
        assert await self._watched(collection, wanted) == wanted, kind
        return len(ways) + 1

    def _name(self, item: Object) -> str:
        if "cells" in item:  # without an object the name is the first column
            return str((item.get("object") or {}).get("metadata", {}).get("name") or item["cells"][0])
        return str(item["metadata"]["name"])

    async def _watched(self, collection: str, wanted: set[str] | None) -> set[str] | None:
        """Return the names that a watch begins with, up to the bookmark that ends them."""
        options = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
        if wanted is None:
            refused = await self._get(collection, params={"watch": "true", **options})
            assert refused.status == 403, refused
            return None
        found: set[str] = set()
        async with self.client.watch(collection, **options) as events:
            while True:
                event = await events.next(bookmarks=True)
                self._leaks_nothing(msgspec.json.encode(event).decode())
                if event["type"] == "BOOKMARK":
                    return {name for name in found if name.startswith(self.world.prefix)}
                found.add(event["object"]["metadata"]["name"])

    async def _listed(self, kind: str) -> set[str] | None:
        reply = await self.client.get(api_path(*KINDS[kind]))
        if reply.status == 403:
            return None
        found = {item["metadata"]["name"] for item in reply.body["items"]}
        return {name for name in found if name.startswith(self.world.prefix)}

    async def _get(self, target: str, **options: Any) -> Reply:
        reply = await self.client.get(target, **options)
        self._leaks_nothing(msgspec.json.encode([reply.body, reply.headers]).decode())
        return reply

    def _leaks_nothing(self, text: str, but: str = "") -> None:
        """Hold that no uid, no mark and no name of an object that is not theirs stands in an answer.

        ``but`` is the name that the question named. A class is named in the Tenant of who may not see it yet.
        """
        for secret in self.hidden - (self.named if but else set()):
            assert secret not in text, (secret, text)
        for name in self.unnamed - {but}:
            assert name not in text or re.search(rf"\b{re.escape(name)}(?![-\w])", text) is None, (name, text)


@pytest.fixture
def seed() -> int:
    """Of this run: drawn, or that of the environment."""
    return int(os.environ.get("TETHER_DIFFERENTIAL_SEED") or secrets.randbelow(2**32))


@pytest.fixture(scope="module")
def ruled(cluster: Cluster) -> Iterator[None]:
    """Run workers and proxies with the gate of clusterResources, for the test that asks for it."""
    asyncio.run(cluster.restart("worker", "proxy", TETHER_PROXY_CLUSTER_SCOPED="true"))
    yield
    asyncio.run(cluster.restart("worker", "proxy"))


@pytest.fixture
async def dana(acting: None, admin: KubeClient, cluster: Cluster, authority: ClusterPki, tmp_path: Path) -> Person:
    """Somebody with a certificate, whose name and second group the drawing decides."""
    await are_users(admin, PEOPLE)
    return Person(cluster, tmp_path, authority)


async def test_everybody_sees_exactly_what_the_administrator_wrote(
    cluster: Cluster, admin: KubeClient, seed: int, until: Any, dana: Person
) -> None:
    await _hold(cluster, admin, seed, until, dana, ruled=False)


async def test_everybody_sees_what_cluster_resources_show_too_where_the_gate_is_open(
    cluster: Cluster, admin: KubeClient, seed: int, until: Any, dana: Person, ruled: None
) -> None:
    await _hold(cluster, admin, seed, until, dana, ruled=True)


async def _hold(cluster: Cluster, admin: KubeClient, seed: int, until: Any, dana: Person, *, ruled: bool) -> None:
    print(f"TETHER_DIFFERENTIAL_SEED={seed}")  # noqa: T201 -- pytest shows it when the test fails
    draw = random.Random(seed)  # noqa: S311 -- a draw, no secret
    world = World(draw, [Tenancy(cluster, admin) for _ in range(3)], ruled=ruled)
    await _serve(admin, until)
    await world.make(admin)
    stranger = Tenancy(cluster, admin)
    await stranger.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": stranger.home}})
    await stranger.apply(stranger.account())
    try:
        await _make_namespaces(world, until)
        secret = await world.names(admin)
        assert {name for spaces in world.spaces.values() for name in spaces} == set(secret["Namespaces"])
        for number in range(ROUNDS):
            if number:  # the administrator writes other settings into the same tenants
                world.write()
                await world.apply(admin)
            await world.apply_rules(admin)
            *accounts, person = world.everybody()
            for who, account in [*zip(accounts, world.homes, strict=True), (frozenset(), stranger)]:
                token = await _token(account)
                async with cluster.wire(token) as client, cluster.wire(token, direct=True) as direct:
                    await _ask(Asker(world, who, client, direct, secret), until)
            dana.shows(world.person, PEOPLE, world.team)
            async with dana.wire() as client, dana.wire(direct=True) as direct:
                await _ask(Asker(world, person, client, direct, secret), until)
    finally:
        await admin.delete(api_path(*PROXY_API, "globalproxysettings", name=world.prefix))
        for collection, body in world.bodies():
            await admin.delete(f"{collection}/{body['metadata']['name']}")


async def _ask(asker: Asker, until: Any) -> None:
    await asker.settled(until)
    assert await asker.ask() > len(KINDS)


async def _serve(admin: KubeClient, until: Any) -> None:
    """Bring the definitions that ship, the right to ClusterRoles, and kinds that this cluster does not serve."""
    applier = manifests.Applier(admin, "person")
    await applier.apply(manifests.read(manifests.shipped("deploy/crds")))
    await applier.apply(manifests.read(manifests.shipped("deploy/optional/proxy-cluster-scoped.yaml")))
    for kind, singular in OPTIONAL.items():
        if await may(admin.get(api_path(*KINDS[kind]))) is None:
            await applier.apply([_definition(*KINDS[kind], singular)])
            await until(lambda kind=kind: _is_served(admin, kind))


async def _is_served(admin: KubeClient, kind: str) -> bool:
    try:
        return await may(admin.get(api_path(*KINDS[kind]))) is not None
    except TooManyRequestsError:  # its storage is being made
        return False


def _definition(group: str, version: str, plural: str, kind: str) -> Object:
    """Return a definition that takes any object of a kind."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
        },
        "spec": {
            "group": group,
            "scope": "Cluster",
            "names": {"plural": plural, "kind": kind},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


async def _token(tenancy: Tenancy) -> str:
    target = path("ServiceAccount", tenancy.home, "gitops-reconciler") + "/token"
    made = await tenancy.admin.create(
        target, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    )
    return str(msgspec.json.decode(made)["status"]["token"])


async def _make_namespaces(world: World, until: Any) -> None:
    for home, (tenant, spaces) in zip(world.homes, world.spaces.items(), strict=True):
        async with home.cluster.wire(await _token(home)) as client:
            for name in spaces:
                body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {LABEL: tenant}}}

                async def made(client: Client = client, body: Object = body) -> bool:
                    return (await client.post(path("Namespace"), body)).status in {201, 409}

                await until(made)
