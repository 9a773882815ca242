"""What a caller is told of its own rights is what the proxy then does, and a missing namespace is told as such."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore.grants import Choice, SelectorTerm, SubjectGrant, TenantGrant
from proxycore.identities import Identity
from proxycore.reviews import REASON, add_access, add_rules
from tests.proxycore.conftest import TABLE, Tenant, World

if TYPE_CHECKING:
    from collections.abc import Callable

ACCESS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
RULES = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
STORAGE = "/apis/storage.k8s.io/v1/storageclasses"
PATHS = {"namespaces": "/api/v1/namespaces", "storageclasses": STORAGE, "nodes": "/api/v1/nodes"}
GROUPS = {"storageclasses": "storage.k8s.io"}


@pytest.fixture
async def owner(world: World) -> Tenant:
    """Return the owner of a tenant with a namespace, classes by name and by label, and no node."""
    rule = {
        "apiGroups": ["storage.k8s.io"],
        "resources": ["storageclasses"],
        "verbs": ["get", "list", "watch", "delete"],
    }
    await world.allow("tether-proxy-kinds", "system:serviceaccount:capsule-system:tether-proxy", [rule])
    for name, labels in (("fast", {}), ("shared", {"for": "oil"}), ("theirs", {})):
        await world.admin.create(STORAGE, {"metadata": {"name": name, "labels": labels}, "provisioner": "x"})
    user, token = await world.account("oil-system", "gitops-reconciler")
    await world.capsule_users(("Group", "system:serviceaccounts"))
    await world.namespace("oil-1")
    await world.namespace("gas-1")
    term = SelectorTerm(key="for", operator="In", values=("oil",))
    classes = Choice(names=("fast",), selectors=((term,),))
    await world.grant(TenantGrant(name="oil", uid="u", namespaces=("oil-1",), choices={"StorageClasses": classes}))
    operations: dict[str, dict[str, tuple[str, ...]]] = {"oil": {"StorageClasses": ("List", "Delete")}}
    await world.grant(SubjectGrant(subject_kind="ServiceAccount", name=user, tenants=("oil",), operations=operations))
    await world.settle()
    await world.move_on()
    return world.client(token)


async def can_i(owner: Tenant, verb: str, resource: str, name: str = "", **more: Any) -> dict[str, Any]:
    attributes = {"verb": verb, "resource": resource, "group": GROUPS.get(resource, ""), "name": name} | more
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    reply = await owner.request("POST", ACCESS, json={**body, "spec": {"resourceAttributes": attributes}})
    assert reply.status == 201, reply.body
    found: dict[str, Any] = reply.body["status"]
    return found


@pytest.mark.parametrize(
    ("verb", "resource", "name", "allowed"),
    [
        ("list", "namespaces", "", True),
        ("watch", "namespaces", "", True),
        ("get", "namespaces", "oil-1", True),
        ("get", "namespaces", "gas-1", False),
        ("get", "namespaces", "", False),
        ("delete", "namespaces", "oil-1", False),
        ("list", "storageclasses", "", True),
        ("watch", "storageclasses", "", True),
        ("get", "storageclasses", "fast", True),
        ("get", "storageclasses", "shared", True),
        ("get", "storageclasses", "theirs", False),
        ("get", "storageclasses", "missing", False),
        ("get", "storageclasses", "", False),
        ("delete", "storageclasses", "fast", True),
        ("delete", "storageclasses", "theirs", False),
        ("delete", "storageclasses", "", False),
        ("patch", "storageclasses", "fast", False),
        ("deletecollection", "storageclasses", "", False),
        ("list", "nodes", "", False),
        ("*", "namespaces", "", False),
        ("list", "pods", "", False),
    ],
)
async def test_the_answer_to_can_i_is_what_the_proxy_does(
    owner: Tenant, verb: str, resource: str, name: str, *, allowed: bool
) -> None:
    found = await can_i(owner, verb, resource, name)

    assert found["allowed"] is allowed
    assert (found.get("reason") == REASON) is allowed
    if verb in {"get", "list", "delete"} and resource in PATHS and (name or verb == "list"):
        target = PATHS[resource] + (f"/{name}" if name else "")
        done = await owner.request("DELETE" if verb == "delete" else "GET", target)
        assert (done.status == 200) is allowed


async def test_what_the_api_server_allows_itself_stays_its_answer(world: World, owner: Tenant) -> None:
    user = "system:serviceaccount:oil-system:gitops-reconciler"
    await world.allow("lists", user, [{"apiGroups": [""], "resources": ["namespaces", "nodes"], "verbs": ["list"]}])

    assert (await can_i(owner, "list", "namespaces")).get("reason") != REASON
    assert (await can_i(owner, "list", "nodes"))["allowed"]


async def test_all_rules_hold_the_proxys_own(owner: Tenant) -> None:
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}}

    reply = await owner.request("POST", RULES, json=body)

    rules = reply.body["status"]["resourceRules"]
    assert {"verbs": ["list", "watch"], "apiGroups": [""], "resources": ["namespaces"]} in rules
    assert {
        "verbs": ["get"],
        "apiGroups": [""],
        "resources": ["namespaces"],
        "resourceNames": ["oil-1"],
    } in rules
    assert {"verbs": ["list", "watch"], "apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"]} in rules
    assert {
        "verbs": ["get", "delete"],
        "apiGroups": ["storage.k8s.io"],
        "resources": ["storageclasses"],
        "resourceNames": ["fast"],
    } in rules
    assert not any("nodes" in rule["resources"] for rule in rules)
    assert reply.body["status"]["incomplete"] is True  # what is granted by label cannot be listed there
    own = [rule for rule in rules if "selfsubjectaccessreviews" in rule["resources"]]
    assert own, "the API server's own rules are there too"


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"{", {"Content-Type": "application/json"}, 400),
        (b'{"spec":{}}', {"Content-Type": "application/json"}, 422),
    ],
)
async def test_a_review_that_the_api_server_refuses_is_refused(
    owner: Tenant, body: bytes, headers: dict[str, str], code: int
) -> None:
    reply = await owner.request("POST", ACCESS, data=body, headers=headers)

    assert reply.status in {400, code}
    assert reply.body["kind"] == "Status"


async def test_who_is_no_user_of_capsule_gets_the_api_servers_answer(world: World, owner: Tenant) -> None:
    await world.capsule_users(("User", "somebody"))
    await world.settle()

    assert not (await can_i(owner, "list", "namespaces"))["allowed"]


async def test_a_review_that_is_none_is_an_error_and_no_permission() -> None:
    class Nothing:
        def get(self, target: Any, /) -> None:
            """Return no grant."""

    class Never:
        async def permits(self, decision: Any, /) -> bool:
            raise AssertionError(decision)

        async def version_of(self, group: str, version: str, resource: str, /) -> str:
            raise AssertionError(group, version, resource)

        async def may_read(self, kind: Any, /) -> bool:
            raise AssertionError(kind)

    async def never(_: Any) -> bool:
        raise AssertionError("not asked")

    with pytest.raises(msgspec.DecodeError):
        await add_access(b"[]", Identity(user="dana"), Nothing(), Never(), never)
    with pytest.raises(msgspec.DecodeError):
        await add_rules(b"[]", Identity(user="dana"), Nothing(), Never())


MISSING = "/api/v1/namespaces/not-there/serviceaccounts/x"


async def test_an_object_in_a_missing_namespace_is_not_found_for_an_owner(owner: Tenant) -> None:
    found = await owner.get(MISSING)
    group = await owner.get("/apis/apps/v1/namespaces/not-there/deployments/x")

    assert (found.status, found.body["reason"]) == (404, "NotFound")
    assert found.body["details"] == {"name": "x", "kind": "serviceaccounts"}
    assert group.body["message"] == 'deployments.apps "x" not found'

    namespace = await owner.get("/api/v1/namespaces/not-there")
    assert (namespace.status, namespace.body["message"]) == (404, 'namespaces "not-there" not found')


@pytest.mark.parametrize(
    "target",
    [
        "/api/v1/namespaces/gas-1/serviceaccounts/x",
        "/api/v1/namespaces/kube-system/secrets/x",
        "/api/v1/namespaces/not-there/serviceaccounts",
        "/api/v1/namespaces/not-there/pods/x/log",
        "/api/v1/namespaces/not-there/status",
        "/api/v1/namespaces/gas-1",
        "/api/v1/namespaces/kube-system",
        "/api/v1/watch/namespaces/not-there/pods/x",
    ],
)
async def test_any_other_403_stays(owner: Tenant, target: str) -> None:
    assert (await owner.get(target)).status == 403
    assert (await owner.get(target, headers={"Accept": TABLE})).status == 403


@pytest.mark.parametrize("target", [MISSING, "/api/v1/namespaces/not-there"])
async def test_a_403_of_any_other_verb_stays(owner: Tenant, target: str) -> None:
    for method in ("HEAD", "PUT", "PATCH", "DELETE"):
        body = {"data": b"{}"} if method in {"PUT", "PATCH"} else {}
        kind = {"Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json"}
        assert (await owner.request(method, target, headers=kind, **body)).status == 403, method


async def test_who_owns_no_tenant_is_not_told_which_namespaces_there_are(world: World, owner: Tenant) -> None:
    _, token = await world.account("oil-system", "stranger")

    for target in (MISSING, "/api/v1/namespaces/not-there"):
        assert (await world.client(token).get(target)).status == 403
        assert (await owner.get(target)).status == 404


async def test_what_a_stale_memory_does_not_know_is_not_said_to_be_missing(world: World, owner: Tenant) -> None:
    assert (await owner.get(MISSING)).status == 404
    async with world.proxy(max_view_age=1.0, mark_interval=0.1, proxy_port=0) as second:
        await until(lambda: second.fresh)
        world.vouching = False
        await until(lambda: not second.fresh)
        old = type(owner)(owner.session, f"https://127.0.0.1:{second.port}", owner.token)
        assert (await old.get(MISSING)).status == 403


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not holds():
            await asyncio.sleep(0.01)  # memory grows old without telling
