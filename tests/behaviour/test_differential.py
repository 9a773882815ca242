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
from typing import Any

import msgspec
import pytest

from eventcore.errors import TooManyRequestsError
from eventcore.kube import KubeClient, api_path
from tests.behaviour.conftest import Cluster, Object, Tenancy, may, path
from tests.kubeapi import Client, Reply
from tether import manifests

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
    "GatewayClasses": ("gateway.networking.k8s.io", "v1", "gatewayclasses"),
    "DeviceClasses": ("resource.k8s.io", "v1", "deviceclasses"),
    "PersistentVolumes": ("", "v1", "persistentvolumes"),
    "ClusterRoles": ("rbac.authorization.k8s.io", "v1", "clusterroles"),
}
CLASSES: dict[str, Object] = {
    "StorageClasses": {"provisioner": "none.example"},
    "PriorityClasses": {"value": 1},
    "IngressClasses": {"spec": {"controller": "none.example/c"}},
    "RuntimeClasses": {"handler": "none"},
    "GatewayClasses": {"spec": {"controllerName": "none.example/c"}},
    "DeviceClasses": {"spec": {}},
}
OPTIONAL = {"GatewayClasses": "GatewayClass", "DeviceClasses": "DeviceClass"}
"""What not every cluster serves, with the kind that its definition names."""
ALLOWED = {"IngressClasses": "ingressOptions", "GatewayClasses": "gatewayOptions"}
"""Classes that a Tenant allows one level deeper."""
SETTINGS = ("Nodes", *CLASSES, "PersistentVolumes")
"""What ``proxySettings`` of a ProxySetting can name."""
IN_TENANTS = tuple(kind for kind in SETTINGS if kind not in OPTIONAL)
"""What those of a Tenant can, by Capsule's own definition."""
RULED = (*SETTINGS, "ClusterRoles")
"""What ``clusterResources`` name here; ClusterRoles are seen by nothing else."""
PERMITTED = "capsule-tether.io/cluster-resources"
PROXY_API = ("capsule.clastix.io", "v1beta1")


class World:
    """One drawn cluster: three accounts, three tenants, and objects of every kind, all with names of this world.

    ``ruled``: whether proxy and workers have the gate by which clusterResources count.
    """

    def __init__(self, draw: random.Random, tenancies: list[Tenancy], *, ruled: bool) -> None:
        self.draw = draw
        self.ruled = ruled
        self.homes = tenancies
        self.prefix = f"d{secrets.token_hex(3)}"
        self.tenants: dict[str, Object] = {f"{self.prefix}-t{number}": {} for number in range(3)}
        self.spaces = {name: [f"{name}-{number}" for number in range(draw.randint(1, 2))] for name in self.tenants}
        self.objects: dict[str, dict[str, Object]] = {kind: dict(self._objects(kind)) for kind in RULED}
        self.permits: set[str] = set()
        self.everywhere: list[Object] = []
        self.inside: dict[str, Object] = {}
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
            settings = [self._settings(IN_TENANTS) for _ in owners]
            spec: Object = {
                "owners": [one | {"proxySettings": given} for one, given in zip(owners, settings, strict=True)]
            }
            spec["nodeSelector"] = self.draw.choice([None, {"pool": "a"}, {"pool": "a", "tier": "gold"}])
            spec["storageClasses"] = self._choice("StorageClasses")
            spec["priorityClasses"] = self._choice("PriorityClasses")
            spec["runtimeClasses"] = self._choice("RuntimeClasses")
            spec["deviceClasses"] = self._choice("DeviceClasses")
            for kind, field in ALLOWED.items():
                spec[field] = {"allowedClasses": self._choice(kind)}
            self.tenants[name] = spec
        self.permits = set(self.draw.sample(sorted(self.tenants), self.draw.randint(0, 3)))
        # Rules for all of the cluster, and for each tenant one ProxySetting in its first namespace.
        self.everywhere = [self._subject() | {"clusterResources": self._resources()} for _ in range(2)]
        self.inside = {
            name: self._subject() | {"proxySettings": self._settings(SETTINGS), "clusterResources": self._resources()}
            for name in self.draw.sample(sorted(self.tenants), self.draw.randint(0, 3))
        }

    def _subject(self) -> Object:
        who = self.draw.choice(self.homes)
        return self.draw.choice(
            [
                {"kind": "ServiceAccount", "name": who.user},
                {"kind": "Group", "name": f"system:serviceaccounts:{who.home}"},
                {"kind": "User", "name": f"{self.prefix}-dana"},
            ]
        )

    def _resources(self) -> list[Object]:
        found: list[Object] = []
        for kind in self.draw.sample(RULED, self.draw.randint(0, 3)):
            group, version, plural = KINDS[kind]
            groups = self.draw.choice([[group], [f"{group}/{version}"], [group, "none.example"]] if group else [[""]])
            labels = self.draw.choice([{"pool": "a"}, {"pool": "b", "tier": "gold"}, {"pool": "c"}])
            one: Object = {"apiGroups": groups, "resources": [plural], "selector": {"matchLabels": labels}}
            operations = self.draw.choice([None, ["List"], ["Get"], ["Get", "List"]])
            found.append(one | ({"operations": operations} if operations else {}))
        return found

    def _settings(self, of: tuple[str, ...]) -> list[Object]:
        kinds = self.draw.sample(of, self.draw.randint(0, 4))
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
            if kind in OPTIONAL:  # a kind by definition has to say what it is
                group, version, _ = KINDS[kind]
                body |= {"apiVersion": f"{group}/{version}", "kind": OPTIONAL[kind]}
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
            subjects = [*spec["owners"], *filter(None, [self.inside.get(name)])]
            found = [owner for owner in subjects if (owner["kind"], owner["name"]) in mine]
            if found:
                yield name, [setting for owner in found for setting in owner["proxySettings"]]

    def sees(self, who: Tenancy | None, kind: str) -> set[str] | None:
        """Return the names of this world that an account sees of a kind; None where nothing of the kind is its."""
        found, shown = self._uses_of(who, kind), self._shown(who, kind, "List")
        return found if shown is None else shown | (found or set())

    def gets(self, who: Tenancy | None, kind: str) -> set[str]:
        """Return the names of this world that an account gets when it names them."""
        return (self.sees(who, kind) or set()) | (self._shown(who, kind, "Get") or set())

    def _shown(self, who: Tenancy | None, kind: str, operation: str) -> set[str] | None:
        """Return what clusterResources show to an account; None where none speaks of it and the kind."""
        if who is None or not self.ruled:
            return None
        mine = {("ServiceAccount", who.user), ("Group", f"system:serviceaccounts:{who.home}")}
        subjects = [*self.everywhere, *(one for name, one in self.inside.items() if name in self.permits)]
        rules = [
            rule["selector"]["matchLabels"]
            for subject in subjects
            if (subject["kind"], subject["name"]) in mine
            for rule in subject["clusterResources"]
            # List means Get too
            if KINDS[kind][2] in rule["resources"] and {operation, "List"} & {*rule.get("operations", ("List", "Get"))}
        ]
        if not rules:
            return None
        objects = self.objects.get(kind, {}).items()
        return {n for n, body in objects if any(r.items() <= body["metadata"]["labels"].items() for r in rules)}

    def _uses_of(self, who: Tenancy | None, kind: str) -> set[str] | None:
        """Return what an account sees through the tenants that it owns."""
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
        choice = spec[ALLOWED[kind]]["allowedClasses"] if kind in ALLOWED else spec[field]
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
            empty = (None, {"allowedClasses": None})
            given = {field: value for field, value in spec.items() if value not in empty}
            body = {
                "apiVersion": "capsule.clastix.io/v1beta2",
                "kind": "Tenant",
                "metadata": {"name": name, "annotations": {PERMITTED: "true"} if name in self.permits else {}},
                "spec": given,
            }
            await admin.apply(path("Tenant", "", name), body, manager="person", force=True)

    async def apply_rules(self, admin: KubeClient) -> None:
        """Make what subjects outside of the Tenants are given, and take back what the administrator gave before."""
        rules = [{"subjects": [_bare(one)], "clusterResources": one["clusterResources"]} for one in self.everywhere]
        rules = [rule for rule in rules if rule["clusterResources"]]
        await self._put(admin, "GlobalProxySettings", "", self.prefix, {"rules": rules} if rules else None)
        for name, spaces in self.spaces.items():
            one = self.inside.get(name)
            await self._put(admin, "ProxySetting", spaces[0], "drawn", {"subjects": [one]} if one else None)

    async def _put(self, admin: KubeClient, kind: str, namespace: str, name: str, spec: Object | None) -> None:
        plural = kind.lower().removesuffix("s") + "s"
        target = api_path(*PROXY_API, plural, namespace=namespace, name=name)
        if spec is None:
            await admin.delete(target)
            return
        body = {"apiVersion": "/".join(PROXY_API), "kind": kind, "metadata": {"name": name}, "spec": spec}
        await admin.apply(target, body, manager="person", force=True)

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


def _bare(subject: Object) -> Object:
    return {field: subject[field] for field in ("kind", "name")}


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
        self.named = {one for kind in secret for name in world.gets(who, kind) for one in secret[kind][name]}
        self.unnamed = (foreign["Namespaces"] | foreign["Tenants"]) - self._told()

    def _told(self) -> set[str]:
        """Return the namespaces and Tenants that volumes name which the account may read, by a rule perhaps."""
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
            raise AssertionError(f"{error}: {self.who and self.who.user} {differs}, {self.world.tenants}") from None

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
                await self._ask_one(api_path(*where, name=name), name, mine=name in self.world.gets(self.who, kind))
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


async def test_everybody_sees_exactly_what_the_administrator_wrote(
    cluster: Cluster, admin: KubeClient, seed: int, until: Any
) -> None:
    await _hold(cluster, admin, seed, until, ruled=False)


async def test_everybody_sees_what_cluster_resources_show_too_where_the_gate_is_open(
    cluster: Cluster, admin: KubeClient, seed: int, until: Any, ruled: None
) -> None:
    await _hold(cluster, admin, seed, until, ruled=True)


async def _hold(cluster: Cluster, admin: KubeClient, seed: int, until: Any, *, ruled: bool) -> None:
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
            for who in (*world.homes, None):
                token = await _token(who or stranger)
                async with cluster.wire(token) as client, cluster.wire(token, direct=True) as direct:
                    asker = Asker(world, who, client, direct, secret)
                    await asker.settled(until)
                    assert await asker.ask() > len(KINDS)
    finally:
        await admin.delete(api_path(*PROXY_API, "globalproxysettings", name=world.prefix))
        for collection, body in world.bodies():
            await admin.delete(f"{collection}/{body['metadata']['name']}")


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
