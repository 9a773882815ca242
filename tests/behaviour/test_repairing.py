"""What somebody edits or deletes of ours is put right by itself; what is somebody else's stays as it is."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from eventcore.kube import api_path
from tests.behaviour.states import RBAC, Whole, accepts, refuses

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"
KUBECONFIG = f"{ACCOUNT}-kubeconfig"
TOKEN = f"{ACCOUNT}-token"
ENABLED = "capsule.addon.fluxcd/enabled"
GLOBAL = "capsule.addon.fluxcd/kubeconfig-global"
COMPONENT = "capsule-tether.io/component"
CONTENT = ("data", "type", "immutable", "rules", "roleRef", "subjects")
MALLORY = {"kind": "User", "apiGroup": RBAC, "name": "mallory"}
EVERYTHING = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
OTHER_ROLE = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"}
NONSENSE = base64.b64encode(b"nonsense").decode()


def secret(namespace: str, name: str) -> str:
    return api_path("", "v1", "secrets", namespace=namespace, name=name)


def role_binding(namespace: str, name: str) -> str:
    return api_path(RBAC, "v1", "rolebindings", namespace=namespace, name=name)


def clusterwide(plural: str, name: str) -> str:
    return api_path(RBAC, "v1", plural, name=name)


async def state(tenancy: Tenancy, *places: tuple[str, str, str]) -> list[Object | None]:
    """Return what objects say, marks and all, without what the API server counts."""
    found: list[Object | None] = []
    for place in places:
        obj = await tenancy.get(*place)
        metadata = {key: obj["metadata"].get(key) for key in ("labels", "annotations")} if obj else {}
        found.append({**metadata, **{key: obj.get(key) for key in CONTENT}} if obj else None)
    return found


async def test_edited_rights_are_put_right_without_anything_more_or_less(
    tenancy: Tenancy, until: Any, converging: Any
) -> None:
    # Given an account with everything
    await tenancy.make()
    account = Whole(tenancy)
    token = await account.has()
    places = [("RoleBinding", tenancy.home, ACCOUNT)]
    places += [(kind, "", tenancy.impersonator) for kind in ("ClusterRole", "ClusterRoleBinding")]
    before = await state(tenancy, *places)
    binding, role, bound = (
        role_binding(tenancy.home, ACCOUNT),
        clusterwide("clusterroles", tenancy.impersonator),
        clusterwide("clusterrolebindings", tenancy.impersonator),
    )

    async def put_right() -> bool:
        return await state(tenancy, *places) == before

    # When somebody adds subjects and rules, then they are taken out
    with converging("subjects and rules added to RoleBinding, ClusterRole and ClusterRoleBinding"):
        await tenancy.admin.merge_patch(binding, {"subjects": [account.subject, MALLORY]})
        await tenancy.admin.merge_patch(bound, {"subjects": [account.subject, MALLORY]})
        await tenancy.admin.json_patch(role, [{"op": "add", "path": "/rules/-", "value": EVERYTHING}])
        await until(put_right)

    # When they are taken out, or exchanged, then they are put back
    with converging("subjects and rules replaced"):
        await tenancy.admin.merge_patch(binding, {"subjects": []})
        await tenancy.admin.merge_patch(bound, {"subjects": [MALLORY]})
        await tenancy.admin.merge_patch(role, {"rules": [EVERYTHING]})
        await until(put_right)

    # When they are deleted, then they are made again
    with converging("RoleBinding, ClusterRole and ClusterRoleBinding deleted"):
        for one in (binding, bound, role):
            await tenancy.admin.delete(one)
        await until(put_right)

    # When ours stands there with another role, which nobody can change, then it is made anew
    with converging("roleRef of RoleBinding and ClusterRoleBinding replaced"):
        for place, one, kind in ((places[0], binding, "RoleBinding"), (places[2], bound, "ClusterRoleBinding")):
            obj = await tenancy.must(*place)
            kept = {key: obj["metadata"].get(key) for key in ("name", "namespace", "labels", "annotations")}
            metadata = {key: value for key, value in kept.items() if value}
            body = {"apiVersion": f"{RBAC}/v1", "kind": kind, "metadata": metadata}
            body |= {"roleRef": OTHER_ROLE, "subjects": obj["subjects"]}
            await replace(tenancy, one, body, until)
        await until(put_right)
    assert await account.has() == token


async def replace(tenancy: Tenancy, one: str, body: Object, until: Any) -> None:
    """Put another object where one is. Whoever makes it again may be faster, so it is tried again."""

    async def replaced() -> bool:
        async with tenancy.cluster.wire(direct=True) as api:
            await api.delete(one)
            return bool((await api.post(one.rpartition("/")[0], body)).status == 201)

    await until(replaced)


async def test_a_kubeconfig_that_is_edited_deleted_made_immutable_or_of_another_type_is_put_right(
    tenancy: Tenancy, until: Any, converging: Any
) -> None:
    # Given an account with everything in two namespaces
    await tenancy.make()
    one, two = await tenancy.make_namespaces("one", "two")
    account = Whole(tenancy)
    token = await account.has(one, two)
    homes = (tenancy.home, one, two)
    places = [("Secret", namespace, KUBECONFIG) for namespace in homes]
    before = await state(tenancy, *places)

    async def put_right() -> bool:
        return await state(tenancy, *places) == before

    # When they are deleted, edited and stripped of our label, then they are as they were
    with converging("kubeconfigs deleted and edited by hand"):
        await tenancy.admin.delete(secret(tenancy.home, KUBECONFIG))
        await tenancy.admin.merge_patch(secret(one, KUBECONFIG), {"data": {"kubeconfig": NONSENSE, "more": NONSENSE}})
        await tenancy.admin.merge_patch(secret(two, KUBECONFIG), {"metadata": {"labels": {COMPONENT: None}}})
        await until(put_right)

    # When one is edited and made immutable, and one is ours and of another type, then they are made anew
    with converging("kubeconfig made immutable, and one of another type"):
        patch = {"data": {"kubeconfig": NONSENSE}, "immutable": True}
        await tenancy.admin.merge_patch(secret(one, KUBECONFIG), patch)
        metadata = (await tenancy.must("Secret", two, KUBECONFIG))["metadata"]
        kept = {key: metadata[key] for key in ("name", "namespace", "labels", "annotations")}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": kept, "type": "example.com/other"}
        await replace(tenancy, secret(two, KUBECONFIG), body, until)
        await until(put_right)
    assert await account.has(one, two) == token


async def test_a_token_that_is_deleted_or_spoiled_is_replaced_everywhere(
    tenancy: Tenancy, until: Any, converging: Any
) -> None:
    # Given an account with a namespace
    await tenancy.make()
    (name,) = await tenancy.make_namespaces("production")
    account = Whole(tenancy)
    first = await account.has(name)

    async def another(*before: str) -> str:
        async def replaced() -> bool:
            return await account.token() not in {"", *before}

        await until(replaced)
        return await account.has(name)

    # When its token Secret is deleted, then another one is in every kubeconfig; who holds the first has an overlap
    with converging("token Secret deleted"):
        await tenancy.admin.delete(secret(tenancy.home, TOKEN))
        second = await another(first)
    assert await accepts(tenancy.cluster, first)

    # When what it is bound to is deleted, which revokes it, then it is dead, and another one everywhere
    with converging("token revoked by hand"):
        await tenancy.admin.delete(secret(tenancy.home, f"{TOKEN}-2"))
        third = await another(first, second)
    await refuses(tenancy.cluster, second)

    # When somebody writes another token into the Secret, then it goes nowhere
    with converging("token Secret edited"):
        await tenancy.admin.merge_patch(secret(tenancy.home, TOKEN), {"data": {"token": NONSENSE}})

        async def ours() -> bool:
            return await account.token() not in {"", "nonsense", first, second, third}

        await until(ours)
        await account.has(name)


async def test_what_somebody_else_made_is_left_and_told_or_counts_as_done_where_it_is_right(
    tenancy: Tenancy, until: Any, audit: Any
) -> None:
    # Given rights at home that an administrator gave by hand, exactly as they should be
    await tenancy.make_home()
    account = Whole(tenancy)
    binding = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": ACCOUNT, "namespace": tenancy.home},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [account.subject],
    }
    await tenancy.apply(binding, tenancy.tenant(account.user))
    by_hand = await tenancy.must("RoleBinding", tenancy.home, ACCOUNT)

    # And a namespace that does not get the account's kubeconfig, with a Secret of somebody else in that place
    await tenancy.apply(tenancy.account(**{ENABLED: "true", GLOBAL: "false"}))
    (name,) = await tenancy.make_namespaces("production")
    await account.has(name, copies=set())
    foreign = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": KUBECONFIG, "namespace": name},
        "data": {"kubeconfig": NONSENSE},
    }
    await tenancy.apply(foreign)

    # When the account's kubeconfig is to go everywhere
    await annotate(tenancy, {GLOBAL: None})

    # Then the Secret is left, with a record and one Event on the account that says what to do
    async def told() -> list[Object]:
        target = f"Secret/{name}/{KUBECONFIG}"
        refused = [one for one in await audit() if (one.action, one.object) == ("refused", target)]
        assert {one.account for one in refused} <= {f"{tenancy.home}/{ACCOUNT}"}
        return refused

    assert len(await until(told)) == 1
    events = [one for one in await listed_events(tenancy) if one["reason"] == "ForeignObject"]
    assert [one["involvedObject"]["name"] for one in events] == [ACCOUNT]
    assert "delete or rename it" in events[0]["message"]
    left = await tenancy.must("Secret", name, KUBECONFIG)
    assert left["data"] == foreign["data"]
    assert COMPONENT not in left["metadata"].get("labels", {})

    # And the RoleBinding counts as done: nobody writes it, and it stays when the account is switched off
    await account.has(name, copies=set())
    await annotate(tenancy, {ENABLED: None})
    for place in (("Secret", tenancy.home, TOKEN), ("ClusterRole", "", tenancy.impersonator)):
        await tenancy.gone(*place)
    assert await tenancy.must("RoleBinding", tenancy.home, ACCOUNT) == by_hand
    assert (await tenancy.must("Secret", name, KUBECONFIG))["data"] == foreign["data"]


async def annotate(tenancy: Tenancy, annotations: dict[str, str | None]) -> None:
    path = api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT)
    await tenancy.admin.merge_patch(path, {"metadata": {"annotations": annotations}})


async def listed_events(tenancy: Tenancy) -> list[Object]:
    async with tenancy.cluster.wire(direct=True) as api:
        items: list[Object] = (await api.get(api_path("", "v1", "events", namespace=tenancy.home))).body["items"]
    return items
