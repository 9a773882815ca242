"""A drawn cluster, and the model of what each of its people may see of it: what the administrator wrote."""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Iterator

import msgspec

from eventcore.kube import KubeClient, api_path
from tests.behaviour.conftest import Object, Tenancy, path

LABEL = "capsule.clastix.io/tenant"
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
Subjects = frozenset[tuple[str, str]]
"""Kind and name of all that somebody is, as owners and rules name them."""
PERMITTED = "capsule-tether.io/cluster-resources"
PROXY_API = ("capsule.clastix.io", "v1beta1")


class World:
    """One drawn cluster: three accounts, a person, three tenants, and objects of every kind, with names of this world.

    ``ruled``: whether proxy and workers have the gate by which clusterResources count.
    """

    def __init__(self, draw: random.Random, tenancies: list[Tenancy], *, ruled: bool) -> None:
        self.draw = draw
        self.ruled = ruled
        self.homes = tenancies
        self.prefix = f"d{secrets.token_hex(3)}"
        self.person = f"{self.prefix}-dana"
        self.team = f"{self.prefix}-team"
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
                    {"kind": "User", "name": self.person},
                    {"kind": "Group", "name": self.team},
                    {"kind": "ServiceAccount", "name": f"system:serviceaccount:{self.prefix}:nobody"},
                ],
                self.draw.randint(0, 3),
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
                {"kind": "User", "name": self.person},
                {"kind": "Group", "name": self.team},
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

    def everybody(self) -> Iterator[Subjects]:
        """Yield the subjects that each account is, and those of the person, last."""
        for home in self.homes:
            yield frozenset({("ServiceAccount", home.user), ("Group", f"system:serviceaccounts:{home.home}")})
        yield frozenset({("User", self.person), ("Group", self.team)})

    # The model: what somebody sees, from what was written alone.

    def owned(self, who: Subjects) -> Iterator[tuple[str, list[Object]]]:
        """Yield each tenant that somebody owns, in any way, with the settings of that."""
        for name, spec in self.tenants.items():
            subjects = [*spec["owners"], *self._inside(name)]
            found = [owner for owner in subjects if (owner["kind"], owner["name"]) in who]
            if found:
                yield name, [setting for owner in found for setting in owner["proxySettings"]]

    def _inside(self, tenant: str) -> Iterator[Object]:
        """Yield the subject of a tenant's ProxySetting with what counts of it: what every owner of the tenant has."""
        one, owners = self.inside.get(tenant), self.tenants[tenant]["owners"]
        if one is None:
            return
        has = [{(s["kind"], op) for s in owner["proxySettings"] for op in s["operations"]} for owner in owners]
        settings = one["proxySettings"]
        if tenant not in self.permits:
            settings = [
                {"kind": setting["kind"], "operations": [op]}
                for setting in settings
                for op in setting["operations"]
                if all((setting["kind"], op) in mine for mine in has)
            ]
        yield one | {"proxySettings": settings}

    def sees(self, who: Subjects, kind: str) -> set[str] | None:
        """Return the names of this world that somebody sees of a kind; None where nothing of the kind is theirs."""
        found, shown = self._uses_of(who, kind), self._shown(who, kind, "List")
        return found if shown is None else shown | (found or set())

    def gets(self, who: Subjects, kind: str) -> set[str]:
        """Return the names of this world that somebody gets by asking for them."""
        return (self.sees(who, kind) or set()) | (self._shown(who, kind, "Get") or set())

    def _shown(self, who: Subjects, kind: str, operation: str) -> set[str] | None:
        """Return what clusterResources show to somebody; None where none speaks of them and the kind."""
        if not self.ruled:
            return None
        subjects = [*self.everywhere, *(one for name, one in self.inside.items() if name in self.permits)]
        rules = [
            rule["selector"]["matchLabels"]
            for subject in subjects
            if (subject["kind"], subject["name"]) in who
            for rule in subject["clusterResources"]
            # List means Get too
            if KINDS[kind][2] in rule["resources"] and {operation, "List"} & {*rule.get("operations", ("List", "Get"))}
        ]
        if not rules:
            return None
        objects = self.objects.get(kind, {}).items()
        return {n for n, body in objects if any(r.items() <= body["metadata"]["labels"].items() for r in rules)}

    def _uses_of(self, who: Subjects, kind: str) -> set[str] | None:
        """Return what somebody sees through the tenants that they own."""
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
