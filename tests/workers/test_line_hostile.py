"""A whole line under what a developer in one namespace can write: the victim is onboarded and revoked meanwhile."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from eventcore.objects import ANNOTATION_ACCOUNT, LABEL_COMPONENT
from tests.workers.test_line import HOME, NAME, nothing_is_left

if TYPE_CHECKING:
    from tests.workers.conftest import Line

Object = dict[str, Any]
TOO_LONG = "a" * 6000


def poison(name: str, component: str = "token", account: str = f"x/{TOO_LONG}") -> Object:
    """Return a Secret that says to be ours."""
    labels, annotations = {LABEL_COMPONENT: component}, {ANNOTATION_ACCOUNT: account}
    metadata = {"name": name, "namespace": "dev", "labels": labels, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}


def binding(name: str) -> Object:
    """Return a RoleBinding that says to be ours."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": "dev", "labels": {LABEL_COMPONENT: "rbac"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": TOO_LONG, "apiGroup": "rbac.authorization.k8s.io"}],
    }


async def dev(line: Line) -> None:
    await line.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "dev"}})


async def create(line: Line, obj: Object) -> None:
    """Create an object by POST, since a name of thousands of characters is no path."""
    await line.client.create(line.path(obj["kind"], obj["metadata"]["namespace"]), obj)


async def test_objects_that_no_key_can_name_delay_neither_onboarding_nor_revocation(line: Line) -> None:
    # given a developer's Secrets and RoleBindings with names and accounts of thousands of characters
    await dev(line)
    for component in ("token", "rbac", "kubeconfig"):
        await create(line, poison(f"hostile-{component}", component))
    for number in range(20):
        await create(line, binding(f"{number:02}:{'b' * 5000}"))

    async with line.everything():
        # when a tenant is onboarded, more of them come, and it loses its owner
        await line.settle()
        token = await line.token("oil-production")
        for number in range(20, 40):
            await create(line, binding(f"{number:02}:{'b' * 5000}"))
        await create(line, poison("another"))
        await line.patch("Tenant", "", "oil", {"spec": {"owners": [{"kind": "User", "name": "dana"}]}})

        # then nothing of it is left, and each RoleBinding was told
        await nothing_is_left(line, token)
        await line.until_recorded("watcher", "refused", "RoleBinding/dev/39:bbb")
        assert line.bus.connected


def rewrite(line: Line, owners: list[Object], **metadata: Any) -> None:
    """Give the Tenant these owners, in one step with whatever its metadata should hold."""
    store = line.api.store
    tenants = store.resource("capsule.clastix.io", "tenants")
    assert tenants is not None
    new = deepcopy(store.get(tenants, "", "oil"))
    assert new is not None
    new["spec"]["owners"] = owners
    for field, content in metadata.items():
        new["metadata"][field] = (new["metadata"].get(field) or {}) | content
    store.update(tenants, new)


DANA: Object = {"kind": "User", "name": "dana"}
OWNER: Object = {"kind": "ServiceAccount", "name": f"system:serviceaccount:{HOME}:{NAME}"}


async def test_a_tenant_as_large_as_etcd_takes_that_loses_its_owner_is_revoked(line: Line) -> None:
    async with line.everything():
        await line.settle()
        token = await line.token("oil-production")

        # when a tenant grows by what nobody reads, and its owner is removed
        rewrite(line, [DANA], annotations={"note": "x" * 1_400_000}, labels={f"l{n}": "x" * 63 for n in range(2000)})

        # then nothing of it is left, and nothing was set aside
        await nothing_is_left(line, token)
        assert not [one for one in line.audit if one.action == "refused"]


async def test_a_tenant_that_cannot_be_published_takes_away_what_it_gave(line: Line) -> None:
    async with line.everything():
        # given an owner in the spec of a Tenant
        await line.settle()
        token = await line.token("oil-production")

        # when the spec grows over what a message may be, while the owner goes
        rewrite(line, [DANA, {"kind": "User", "name": "e" * 5_000_000}])

        # then nothing of it is left, and it is told
        await nothing_is_left(line, token)
        await line.until_recorded("watcher", "refused", "Tenant/oil")
        # and when it fits again the tenant works again
        rewrite(line, [OWNER])
        await line.until_there("Secret", "oil-production", f"{NAME}-kubeconfig")
