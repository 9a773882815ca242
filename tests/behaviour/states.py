"""The whole state of one account of a tenant, as a test must find it: everything in its place, or nothing anywhere."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from eventcore.grants import BUCKET
from eventcore.keys import Key, key
from eventcore.kube import api_path
from tests.behaviour.conftest import ACCOUNT, Cluster, Tenancy, eventually, path

Object = dict[str, Any]

PREFIX = "capsule-tether.io/"
MARK = f"{PREFIX}account"
NAMESPACES = api_path("", "v1", "namespaces")
REVIEWS = api_path("authentication.k8s.io", "v1", "selfsubjectreviews")
REVIEW = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
OWN_KINDS = ("Secret", "ConfigMap", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
RBAC = "rbac.authorization.k8s.io"


class Whole:
    """What one account has. ``tenancy`` is where it is at home unless ``home`` names a namespace of the tenant."""

    def __init__(self, tenancy: Tenancy, name: str = ACCOUNT, home: str = "") -> None:
        self.tenancy = tenancy
        self.cluster: Cluster = tenancy.cluster
        self.home = home or tenancy.home
        self.name = name
        self.user = f"system:serviceaccount:{self.home}:{name}"
        self.impersonator = f"{self.home}-{name}-impersonator"
        self.subject = {"kind": "ServiceAccount", "name": name, "namespace": self.home}

    async def has(self, *namespaces: str, copies: set[str] | None = None) -> str:
        """Wait until the account has all that it should, in exactly these namespaces of its; return its token.

        ``copies``: the namespaces, beside its home, that hold its kubeconfig, when those are not all.
        """
        lacking = ["not looked at"]
        places = {self.home, *(namespaces if copies is None else copies)}

        async def whole() -> str | None:
            lacking[:] = await self._lacking(places) or await self._opens(await self.token(), *namespaces)
            return await self.token() if not lacking else None

        try:
            return await eventually(whole)
        except AssertionError as error:
            raise AssertionError(f"{self.user} {error}: {'; '.join(lacking)}") from error

    async def has_nothing(self, *tokens: str, owner: bool = False) -> None:
        """Wait until nothing is left of the account, in the cluster or in ``access``; then its tokens are refused.

        ``owner``: it is switched off, but still an owner, and what the proxy shows an owner stays.
        """
        found = ["not looked at"]

        async def nothing() -> bool:
            found[:] = [*await self.objects(), *await self.grants(owner=owner)]
            return not found

        try:
            await eventually(nothing)
        except AssertionError as error:
            raise AssertionError(f"{self.user} {error} still has: {'; '.join(found)}") from error
        for token in tokens:
            assert not await accepts(self.cluster, token)

    async def token(self) -> str:
        """Return the current token, "" without one."""
        secret = await self.tenancy.get("Secret", self.home, f"{self.name}-token")
        return base64.b64decode((secret.get("data") or {}).get("token", "")).decode() if secret else ""

    async def copies(self) -> dict[str, str]:
        """Return the tokens in the kubeconfigs that were made for the account, by namespace."""
        found = {}
        for one in await listed(self.tenancy, "Secret"):
            metadata = one["metadata"]
            if metadata["name"].startswith(f"{self.name}-kubeconfig") and self._is_own(one):
                config = msgspec.yaml.decode(base64.b64decode(one["data"]["kubeconfig"]), type=Object)
                assert one["data"]["value"] == one["data"]["kubeconfig"]
                assert config["contexts"][0]["context"]["namespace"] == metadata["namespace"]
                found[str(metadata["namespace"])] = str(config["users"][0]["user"]["token"])
        return found

    async def objects(self) -> list[str]:
        """Return what in the cluster was made for the account, by its marks or by its names."""
        found = []
        for kind in OWN_KINDS:
            for one in await listed(self.tenancy, kind):
                name, namespace = one["metadata"]["name"], one["metadata"].get("namespace", "")
                at_home = namespace == self.home and name in {
                    self.name,
                    f"{self.name}-token",
                    f"{self.name}-kubeconfig",
                }
                if self._is_own(one) or at_home or name.startswith(self.impersonator):
                    found.append(f"{kind}/{namespace}/{name}")
        return found

    async def grants(self, *, owner: bool = False) -> list[str]:
        """Return the grants of the account that are in ``access``; of an owner's, only the one for its tokens."""
        keys = [key("account", self.home, self.name)]
        if not owner:
            keys += [key("subject", kind, self.user) for kind in ("ServiceAccount", "User")]
        async with self.cluster.bus() as bus:
            return [str(one) for one in keys if (entry := await bus.kv_get(one)) is not None and entry.value]

    def _is_own(self, obj: Object) -> bool:
        account: str = (obj["metadata"].get("annotations") or {}).get(MARK, "")
        return account == f"{self.home}/{self.name}"

    async def _lacking(self, places: set[str]) -> list[str]:
        """Return what of the account's objects is not as it should be, with kubeconfigs in these namespaces."""
        lacking = []
        binding = await self.tenancy.get("RoleBinding", self.home, self.name)
        if self.home != self.tenancy.home:  # a namespace of the tenant, where Capsule alone gives rights
            if binding:
                lacking.append(f"RoleBinding in a tenant's namespace is {binding}")
        elif not binding or (binding["roleRef"]["name"], binding.get("subjects")) != ("cluster-admin", [self.subject]):
            lacking.append(f"RoleBinding at home is {binding}")
        role = await self.tenancy.get("ClusterRole", "", self.impersonator)
        itself = {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": [self.user]}
        if not role or role.get("rules") != [itself]:
            lacking.append(f"ClusterRole is {role}")
        bound = await self.tenancy.get("ClusterRoleBinding", "", self.impersonator)
        if not bound or (bound["roleRef"]["name"], bound.get("subjects")) != (self.impersonator, [self.subject]):
            lacking.append(f"ClusterRoleBinding is {bound}")
        token, copies = await self.token(), await self.copies()
        if not token or copies != dict.fromkeys(places, token):
            states = {one: "current" if text == token else "another token" for one, text in copies.items()}
            lacking.append(f"kubeconfigs are {states}")
        return lacking

    async def _opens(self, token: str, *namespaces: str) -> list[str]:
        """Return how what the token opens at the proxy differs from these namespaces and nothing else."""
        async with self.cluster.wire(token) as proxy:
            listing = await proxy.get(NAMESPACES)
            seen = sorted(item["metadata"]["name"] for item in listing.body["items"]) if listing.status == 200 else []
            lacking = [] if seen == sorted(namespaces) else [f"the proxy answers {listing.status} and shows {seen}"]
            for name, wanted in (*((one, 200) for one in namespaces), ("kube-system", 403)):
                if (answer := await proxy.get(f"{NAMESPACES}/{name}")).status != wanted:
                    lacking.append(f"the proxy answers {answer.status} for namespace {name}")
            review = await proxy.post(REVIEWS, REVIEW)
            if review.status != 201 or review.body["status"]["userInfo"]["username"] != self.user:
                lacking.append(f"the token is {review}")
        return lacking


async def listed(tenancy: Tenancy, kind: str) -> list[Object]:
    """Return all objects of a kind."""
    items: list[Object] = msgspec.json.decode(await tenancy.admin.get(path(kind)))["items"]
    return items


async def accepts(cluster: Cluster, token: str) -> bool:
    """Tell whether the proxy knows whose a token is."""
    async with cluster.wire(token) as proxy:
        status = (await proxy.post(REVIEWS, REVIEW)).status
    assert status in {201, 401}, status
    return status == 201


async def refuses(cluster: Cluster, token: str) -> None:
    """Wait until the proxy refuses a token."""

    async def refused() -> bool:
        return not await accepts(cluster, token)

    await eventually(refused)


async def everything(cluster: Cluster) -> list[Object]:
    """Return every object of every kind that can be listed in the cluster, Events aside: those are its history."""
    found: list[Object] = []
    async with cluster.wire(direct=True) as api:
        groups = (await api.get("/apis")).body["groups"]
        roots = ["/api/v1", *(f"/apis/{version['groupVersion']}" for group in groups for version in group["versions"])]
        for root in roots:
            resources = (await api.get(root)).body["resources"]
            for one in resources:
                if "list" not in one["verbs"] or "/" in one["name"] or one["kind"] == "Event":
                    continue
                listing = await api.get(f"{root}/{one['name']}")
                assert listing.status == 200, listing
                found += [{"kind": one["kind"], **item} for item in listing.body["items"]]
    return found


async def grants(cluster: Cluster) -> set[Key]:
    """Return the keys of all grants that there are."""
    async with cluster.bus() as bus:
        bucket = await bus.js.key_value(BUCKET)
        return {Key.of_token(one) for one in await bucket.keys()}
