"""A tenant of one test: its objects, the users around it, and what Capsule made of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.kubeapi import Client, Object, Reply

GROUP = "/apis/capsule.clastix.io/v1beta2"
TENANTS = f"{GROUP}/tenants"
TENANT_OWNERS = f"{GROUP}/tenantowners"
CONFIGURATION = f"{GROUP}/capsuleconfigurations/default"
NAMESPACES = "/api/v1/namespaces"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
TENANT_LABEL = "capsule.clastix.io/tenant"

Until = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


class Tenancy:
    """One tenant ``name`` and its owner, an account of the namespace ``<name>-system``.

    ``owner`` acts as that account, ``stranger`` as a Capsule user without a Tenant, ``outsider`` as somebody who is
    neither and may write namespaces.
    """

    def __init__(self, admin: Client, name: str, until: Until) -> None:
        self.admin = admin
        self.name = name
        self.until = until
        self.home = f"{name}-system"
        self.user = f"system:serviceaccount:{self.home}:gitops"
        self.users_group = f"{name}-users"
        self.owner = admin.acting(
            self.user, f"system:serviceaccounts:{self.home}", "system:serviceaccounts", "system:authenticated"
        )
        self.stranger = admin.acting(f"{name}-stranger", self.users_group, "system:authenticated")
        self.outsider = admin.acting(f"{name}-outsider", f"{name}-outsiders", "system:authenticated")

    async def make(self, **spec: Any) -> Object:
        """Make home, Tenant and Capsule users, and wait until the owner may create namespaces; returns the Tenant."""
        await self.must(self.admin.post(NAMESPACES, {"metadata": {"name": self.home}}))
        account = {"metadata": {"name": "gitops"}}
        await self.must(self.admin.post(f"{NAMESPACES}/{self.home}/serviceaccounts", account))
        tenant = await self.make_tenant(self.name, **spec)
        await self.add_users(("Group", f"system:serviceaccounts:{self.home}"), ("Group", self.users_group))
        await self.until(lambda: may(self.stranger, "create", "namespaces"))
        probe = {"metadata": {"name": f"{self.name}-probe"}}

        async def assigned() -> bool:
            # Capsule goes by the owners in the status, and its webhooks learn of those by a watch.
            return (await self.owner.post(NAMESPACES, probe, params={"dryRun": "All"})).status == 201

        await self.until(assigned)
        return tenant

    async def make_tenant(self, name: str, **spec: Any) -> Object:
        """Make a Tenant of the owner."""
        owners = [{"kind": "ServiceAccount", "name": self.user}]
        body = {
            "apiVersion": "capsule.clastix.io/v1beta2",
            "kind": "Tenant",
            "metadata": {"name": name},
            "spec": {"owners": owners, **spec},
        }
        made: Object = (await self.must(self.admin.post(TENANTS, body))).body
        return made

    async def add_users(self, *users: tuple[str, str]) -> None:
        """Add subjects (kind, name) to the Capsule users; the list is atomic, so by JSON patch."""
        patch = [{"op": "add", "path": "/spec/users/-", "value": {"kind": kind, "name": name}} for kind, name in users]
        await self.must(self.admin.patch(CONFIGURATION, patch, "json-patch+json"))

    async def make_namespace(self, name: str) -> Object:
        """Make a namespace of the tenant as its owner."""
        made: Object = (await self.must(self.owner.post(NAMESPACES, {"metadata": {"name": name}}))).body
        return made

    async def tenant(self) -> Object:
        found: Object = (await self.must(self.admin.get(f"{TENANTS}/{self.name}"))).body
        return found

    async def status(self, **wanted: Any) -> Object:
        """Return the status of the Tenant once its fields are as they are wanted."""

        async def there() -> Object | None:
            status: Object = (await self.tenant()).get("status") or {}
            return status if all(status.get(key) == value for key, value in wanted.items()) else None

        found: Object = await self.until(there)
        return found

    async def bindings(self, namespace: str) -> dict[str, list[str]]:
        """Return the names of the subjects by the ClusterRole that they hold in a namespace through Capsule."""
        listed = await self.must(self.admin.get(f"{RBAC}/namespaces/{namespace}/rolebindings"))
        found: dict[str, list[str]] = {}
        for item in listed.body["items"]:
            if "capsule.clastix.io/role-binding" in item["metadata"].get("labels", {}):
                subjects = [subject["name"] for subject in item.get("subjects") or []]
                found.setdefault(item["roleRef"]["name"], []).extend(subjects)
        return {role: sorted(subjects) for role, subjects in found.items()}

    async def must(self, request: Awaitable[Reply]) -> Reply:
        """Return the answer of a request that has to succeed."""
        reply = await request
        assert reply.status in {200, 201}, reply
        return reply


async def may(client: Client, verb: str, resource: str, *, namespace: str = "", group: str = "") -> bool:
    """Ask the API server whether a client may do something."""
    attributes = {"verb": verb, "resource": resource, "namespace": namespace, "group": group}
    review = {"spec": {"resourceAttributes": attributes}}
    answer = await client.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    assert answer.status == 201, answer
    return bool(answer.body["status"]["allowed"])


def condition(status: Object, kind: str) -> str:
    """Return the status of a condition, "" when it is not there."""
    found = [one["status"] for one in status.get("conditions") or [] if one["type"] == kind]
    return found[0] if found else ""
