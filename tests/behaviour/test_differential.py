"""A drawn cluster, asked through the proxy by everybody and held against a model of what the administrator wrote.

The seed of a run is printed when it fails; ``TETHER_DIFFERENTIAL_SEED`` draws the same cluster again.
"""

from __future__ import annotations

import os
import random
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from eventcore.kube import KubeClient, api_path
from tests.behaviour.conftest import Cluster, Object, Tenancy, path
from tests.kubeapi import Client, Reply

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(180)]

LABEL = "capsule.clastix.io/tenant"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
ROUNDS = 2
KINDS = {
    "Namespaces": ("", "v1", "namespaces"),
    "Tenants": ("capsule.clastix.io", "v1beta2", "tenants"),
    "Nodes": ("", "v1", "nodes"),
    "StorageClasses": ("storage.k8s.io", "v1", "storageclasses"),
    "PriorityClasses": ("scheduling.k8s.io", "v1", "priorityclasses"),
    "IngressClasses": ("networking.k8s.io", "v1", "ingressclasses"),
    "RuntimeClasses": ("node.k8s.io", "v1", "runtimeclasses"),
    "PersistentVolumes": ("", "v1", "persistentvolumes"),
}
CLASSES: dict[str, Object] = {
    "StorageClasses": {"provisioner": "none.example"},
    "PriorityClasses": {"value": 1},
    "IngressClasses": {"spec": {"controller": "none.example/c"}},
    "RuntimeClasses": {"handler": "none"},
}
SETTINGS = ("Nodes", *CLASSES, "PersistentVolumes")
"""What ``proxySettings`` can name."""


class World:
    """One drawn cluster: three accounts, three tenants, and objects of every kind, all with names of this world."""

    def __init__(self, draw: random.Random, tenancies: list[Tenancy]) -> None:
        self.draw = draw
        self.homes = tenancies
        self.prefix = f"d{secrets.token_hex(3)}"
        self.tenants: dict[str, Object] = {f"{self.prefix}-t{number}": {} for number in range(3)}
        self.spaces = {name: [f"{name}-{number}" for number in range(draw.randint(1, 2))] for name in self.tenants}
        self.objects: dict[str, dict[str, Object]] = {kind: dict(self._objects(kind)) for kind in SETTINGS}
        self.write()

    def write(self) -> None:
        """Draw what the administrator writes into the tenants."""
        for number, name in enumerate(self.tenants):
            # Each tenant has an account that stays its owner, so that somebody makes its namespaces.
            owners = [{"kind": "ServiceAccount", "name": self.homes[number].user}]
            team = self.draw.choice(self.homes).home
            owners += self.draw.sample(
                [
                    {"kind": "Group", "name": f"system:serviceaccounts:{team}"},
                    {"kind": "User", "name": f"{self.prefix}-dana"},
                    {"kind": "ServiceAccount", "name": f"system:serviceaccount:{self.prefix}:nobody"},
                ],
                self.draw.randint(0, 2),
            )
            spec: Object = {"owners": [owner | {"proxySettings": self._settings()} for owner in owners]}
            spec["nodeSelector"] = self.draw.choice([None, {"pool": "a"}, {"pool": "a", "tier": "gold"}])
            spec["storageClasses"] = self._choice("StorageClasses")
            spec["priorityClasses"] = self._choice("PriorityClasses")
            spec["runtimeClasses"] = self._choice("RuntimeClasses")
            spec["ingressOptions"] = {"allowedClasses": self._choice("IngressClasses")}
            self.tenants[name] = spec

    def _settings(self) -> list[Object]:
        kinds = self.draw.sample(SETTINGS, self.draw.randint(0, 4))
        operations = [["List"], ["List", "Update"], ["Update"], ["List", "Delete"]]
        return [{"kind": kind, "operations": self.draw.choice(operations)} for kind in kinds]

    def _choice(self, kind: str) -> Object | None:
        if self.draw.random() < 0.2:
            return None
        found: Object = {"allowed": self.draw.sample(sorted(self.objects[kind]), self.draw.randint(0, 2))}
        if self.draw.random() < 0.5:
            found["allowedRegex"] = self.draw.choice([f"^{self.prefix}-.*-[01]$", f"{self.prefix}.*2", "^nothing$"])
        if self.draw.random() < 0.5:
            found["matchLabels"] = self.draw.choice([{"tier": "gold"}, {"pool": "a", "tier": "silver"}])
        return found

    def _objects(self, kind: str) -> Iterator[tuple[str, Object]]:
        for number in range(4):
            name = f"{self.prefix}-{kind.lower()}-{number}"
            labels = {"pool": self.draw.choice("ab"), "tier": self.draw.choice(["gold", "silver"])}
            metadata: Object = {"name": name, "labels": labels, "annotations": {"mark": secrets.token_hex(12)}}
            body: Object = {"metadata": metadata, **CLASSES.get(kind, {})}
            if kind == "PersistentVolumes":
                body["spec"] = {
                    "capacity": {"storage": "1Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "hostPath": {"path": "/nowhere"},
                }
                tenant = self.draw.choice(sorted(self.tenants))
                if self.draw.random() < 0.5:
                    claim = {"namespace": self.draw.choice(self.spaces[tenant]), "name": "claim"}
                    body["spec"]["claimRef"] = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim}
                elif self.draw.random() < 0.7:
                    labels[LABEL] = tenant
            yield name, body

    # The model: what an account sees, from what was written alone.

    def owned(self, who: Tenancy | None) -> Iterator[tuple[str, list[Object]]]:
        """Yield each tenant that an account owns, in any way, with the settings of that."""
        if who is None:
            return
        mine = {("ServiceAccount", who.user), ("Group", f"system:serviceaccounts:{who.home}")}
        for name, spec in self.tenants.items():
            found = [owner for owner in spec["owners"] if (owner["kind"], owner["name"]) in mine]
            if found:
                yield name, [setting for owner in found for setting in owner["proxySettings"]]

    def sees(self, who: Tenancy | None, kind: str) -> set[str] | None:
        """Return the names of this world that an account sees of a kind; None where nothing of the kind is its."""
        owned = dict(self.owned(who))
        if not owned:
            return None
        if kind == "Tenants":
            return set(owned)
        if kind == "Namespaces":
            return {space for name in owned for space in self.spaces[name]}
        listing = [
            name
            for name, settings in owned.items()
            if any(one["kind"] == kind and "List" in one["operations"] for one in settings)
        ]
        if not listing:
            return None
        objects = self.objects[kind].items()
        return {name for name, body in objects if any(self._uses(tenant, kind, name, body) for tenant in listing)}

    def _uses(self, tenant: str, kind: str, name: str, body: Object) -> bool:
        labels, spec = body["metadata"]["labels"], self.tenants[tenant]
        if kind == "Nodes":
            return bool((spec["nodeSelector"] or {}).items() <= labels.items())
        if kind == "PersistentVolumes":
            claim = body["spec"].get("claimRef")
            return claim["namespace"] in self.spaces[tenant] if claim else labels.get(LABEL) == tenant
        field = kind[0].lower() + kind[1:]
        choice = spec["ingressOptions"]["allowedClasses"] if kind == "IngressClasses" else spec[field]
        choice = choice or {}
        by_pattern = "allowedRegex" in choice and re.search(choice["allowedRegex"], name) is not None
        by_labels = "matchLabels" in choice and choice["matchLabels"].items() <= labels.items()
        return name in choice.get("allowed", ()) or by_pattern or by_labels

    # What the administrator does.

    def bodies(self) -> Iterator[tuple[str, Object]]:
        for kind, objects in self.objects.items():
            for body in objects.values():
                yield api_path(*KINDS[kind]), body

    async def apply(self, admin: KubeClient) -> None:
        for name, spec in self.tenants.items():
            given = {field: value for field, value in spec.items() if value is not None}
            if spec["ingressOptions"]["allowedClasses"] is None:
                del given["ingressOptions"]
            body = {
                "apiVersion": "capsule.clastix.io/v1beta2",
                "kind": "Tenant",
                "metadata": {"name": name},
                "spec": given,
            }
            await admin.apply(path("Tenant", "", name), body, manager="person", force=True)

    async def make(self, admin: KubeClient) -> None:
        """Make everything; the namespaces are made by the account that always owns their tenant."""
        for home in self.homes:
            await home.make_home()
            await home.apply(home.account())
        await self.apply(admin)
        for collection, body in self.bodies():
            await admin.create(collection, body)

    async def names(self, admin: KubeClient) -> dict[str, dict[str, set[str]]]:
        """Return, by kind and name, what only those may read who see an object: its uid and its mark."""
        found: dict[str, dict[str, set[str]]] = {}
        for kind, where in KINDS.items():
            listed = msgspec.json.decode(await admin.get(api_path(*where)))["items"]
            mine = [item["metadata"] for item in listed if item["metadata"]["name"].startswith(self.prefix)]
            found[kind] = {
                one["name"]: {one["uid"], *filter(None, [one.get("annotations", {}).get("mark")])} for one in mine
            }
        return found


class Asker:
    """Asks everything as one account and holds each answer against the model."""

    def __init__(
        self, world: World, who: Tenancy | None, client: Client, direct: Client, secret: dict[str, dict[str, set[str]]]
    ) -> None:
        self.world = world
        self.who = who
        self.client = client
        self.direct = direct
        self.secret = secret
        # As the world is now: what may stand in no answer to this account.
        foreign = {kind: objects.keys() - (world.sees(who, kind) or set()) for kind, objects in secret.items()}
        self.hidden = {one for kind, names in foreign.items() for name in names for one in secret[kind][name]}
        self.unnamed = foreign["Namespaces"] | foreign["Tenants"]

    async def settled(self, until: Any) -> None:
        """Return once the grants have come as far as the administrator."""
        differs: list[Object] = []

        async def agrees() -> bool:
            differs[:] = [one async for one in self._differences()]
            return not differs

        try:
            await until(agrees)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.who and self.who.user} {differs}, {self.world.tenants}") from None

    async def _differences(self) -> AsyncIterator[Object]:
        """Yield each kind whose list is not as the model has it."""
        for kind in KINDS:
            wanted, seen = self.world.sees(self.who, kind), await self._listed(kind)
            if seen != wanted:
                yield {"list": kind, "seen": seen, "wanted": wanted}

    async def ask(self) -> int:
        """Ask everything; return how many answers were compared."""
        asked = 0
        for kind, where in KINDS.items():
            wanted = self.world.sees(self.who, kind)
            asked += await self._ask_lists(kind, wanted)
            for name in self.secret[kind]:
                await self._ask_one(api_path(*where, name=name), name, mine=name in (wanted or ()))
                asked += 1
        return asked

    async def _ask_one(self, target: str, name: str, *, mine: bool) -> None:
        """Get one object; what is not the account's is answered by RBAC, where Capsule takes back its rights later."""
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
        ways: list[dict[str, Any]] = [{}, {"params": {"resourceVersion": "0"}}, *forms]
        for options in ways:
            reply = await self._get(collection, **options)
            if wanted is None:
                assert reply.status == 403, (kind, options, reply)
                continue
            assert reply.status == 200, (kind, options, reply)
            items = reply.body["rows"] if "rows" in reply.body else reply.body["items"]
            found = [self._name(item) for item in items]
            mine = sorted(name for name in found if name.startswith(self.world.prefix))
            assert mine == sorted(wanted), (kind, options)
        assert await self._watched(collection, wanted) == wanted, kind
        return 6

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
        """Hold that no uid, no mark and no name of an object that is not the account's stands in an answer.

        ``but`` is the name that the question named. A class is named in the Tenant of who may not see it yet.
        """
        for secret in self.hidden:
            assert secret not in text, (secret, text)
        for name in self.unnamed - {but}:
            assert name not in text or re.search(rf"\b{re.escape(name)}(?![-\w])", text) is None, (name, text)


@pytest.fixture
def seed() -> int:
    """Of this run: drawn, or that of the environment."""
    return int(os.environ.get("TETHER_DIFFERENTIAL_SEED") or secrets.randbelow(2**32))


async def test_everybody_sees_exactly_what_the_administrator_wrote(
    cluster: Cluster, admin: KubeClient, seed: int, until: Any
) -> None:
    print(f"TETHER_DIFFERENTIAL_SEED={seed}")  # noqa: T201 -- pytest shows it when the test fails
    world = World(random.Random(seed), [Tenancy(cluster, admin) for _ in range(3)])  # noqa: S311 -- a draw, no secret
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
            for who in (*world.homes, None):
                token = await _token(who or stranger)
                async with cluster.wire(token) as client, cluster.wire(token, direct=True) as direct:
                    asker = Asker(world, who, client, direct, secret)
                    await asker.settled(until)
                    assert await asker.ask() > len(KINDS)
    finally:
        for collection, body in world.bodies():
            await admin.delete(f"{collection}/{body['metadata']['name']}")


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
