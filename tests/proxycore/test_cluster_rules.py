"""Cluster-scoped kinds by the labels of a rule: who is named sees exactly what is chosen, and reads alone.

The names of the tests follow the cases that capsule-proxy checks end to end.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from eventcore.errors import KubeUnreachableError
from eventcore.grants import Choice, ClusterRule, SelectorTerm, SubjectGrant, TenantGrant
from proxycore.discovery import Discovery
from proxycore.filtered import FilteredKinds
from proxycore.kinds import BY_RULE, ProxiedKind
from proxycore.policy import Filtered
from proxycore.rules import Scope
from proxycore.statuses import RefusedError
from tests.proxycore.conftest import TABLE, Tenant, Watching, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RBAC_GROUP = "rbac.authorization.k8s.io"
ROLES = f"/apis/{RBAC_GROUP}/v1/clusterroles"
NAMESPACES = "/api/v1/namespaces"
TENANTS = "/apis/capsule.clastix.io/v1beta2/tenants"
VOLUMES = "/api/v1/persistentvolumes"
STORAGE = "/apis/storage.k8s.io/v1/storageclasses"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ACCESS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
PROXY = "system:serviceaccount:capsule-system:tether-proxy"
READ = ["get", "list", "watch"]
RIGHTS = [
    {"apiGroups": [RBAC_GROUP], "resources": ["clusterroles"], "verbs": READ},
    {"apiGroups": [""], "resources": ["persistentvolumes", "nodes"], "verbs": READ},
    {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": READ},
    {"apiGroups": ["capsule.clastix.io"], "resources": ["tenants"], "verbs": READ},
    {"apiGroups": ["example.com"], "resources": ["widgets"], "verbs": READ},
]


@pytest.fixture
async def ruled(world: World) -> AsyncIterator[World]:
    """A world whose proxy honours rules and may read what they name."""
    await world.allow("tether-proxy-cluster-scoped", PROXY, RIGHTS)
    async with world.proxy(proxy_cluster_scoped=True) as service:
        world.service = service
        yield world


def has(key: str, *values: str) -> tuple[SelectorTerm, ...]:
    return (SelectorTerm(key=key, operator="In" if values else "Exists", values=values),)


def rule(
    group: str, resource: str, selector: tuple[SelectorTerm, ...], *, lists: bool = True, tenant: str = ""
) -> ClusterRule:
    return ClusterRule(groups=(group,), resources=(resource,), selector=selector, lists=lists, tenant=tenant)


async def subject(world: World, *rules: ClusterRule, name: str = "alice", **grant: Any) -> Tenant:
    """Return a client of an account that rules name and that owns nothing, unless the grant says more."""
    user, token = await world.account(f"{name}-home", name)
    await world.capsule_users(("Group", "system:serviceaccounts"))
    await world.grant(SubjectGrant(subject_kind="ServiceAccount", name=user, rules=rules, **grant))
    await world.settle()
    await world.move_on()
    return world.client(token)


async def put(world: World, path: str, name: str, labels: dict[str, str] | None = None, **body: Any) -> None:
    await world.admin.create(path, {"metadata": {"name": name, "labels": labels or {}}, **body})


async def names(client: Tenant, path: str, **options: Any) -> list[str]:
    reply = await client.get(path, **options)
    assert reply.status == 200, reply.body
    return sorted(reply.names)


async def serve(world: World, plural: str, kind: str, scope: str = "Cluster") -> None:
    """Make the API serve a kind of example.com."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    named = {"plural": plural, "kind": kind, "singular": kind.lower()}
    spec = {"group": "example.com", "scope": scope, "versions": [version], "names": named}
    await world.admin.create(CRDS, {"metadata": {"name": f"{plural}.example.com"}, "spec": spec})


@asynccontextmanager
async def watching(client: Tenant, target: str) -> AsyncIterator[Watching]:
    headers = {"Authorization": f"Bearer {client.token}"}
    async with client.session.get(client.url + target, headers=headers) as response:
        assert response.status == 200, await response.text()
        yield Watching(response)


async def test_a_rule_by_label_lists_exactly_the_labelled_for_who_owns_nothing(ruled: World) -> None:
    for name, labels in (("r1", {"share": "yes"}), ("r2", {"share": "yes"}), ("r3", {"share": "no"}), ("r4", {})):
        await put(ruled, ROLES, name, labels)
    by_version = rule(f"{RBAC_GROUP}/*", "clusterroles", has("share", "yes"))
    alice = await subject(ruled, by_version)
    bob = await subject(ruled, by_version, name="bob")

    for client in (alice, bob):
        for accept in ("application/json", TABLE):
            assert await names(client, ROLES, headers={"Accept": accept}) == ["r1", "r2"]
        assert (await client.get(f"{ROLES}/r1")).status == 200
        assert (await client.get(f"{ROLES}/r3")).status == 403
        assert (await client.get(f"{ROLES}/absent")).status == 403


async def test_rules_on_namespaces_and_tenants_join_what_is_owned(ruled: World) -> None:
    for name in ("oil", "gas", "coal"):
        body = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "spec": {"owners": []}}
        await put(ruled, TENANTS, name, {"shown": "yes"} if name == "gas" else None, **body)
    await ruled.namespace("gas-1", {"shown": "yes"})
    await ruled.namespace("coal-1")
    await ruled.namespace("oil-1")
    await ruled.grant(TenantGrant(name="oil", uid="oil", namespaces=("oil-1",)))
    shown = has("shown")
    alice = await subject(
        ruled,
        rule("", "namespaces", shown),
        rule("capsule.clastix.io", "tenants", shown),
        tenants=("oil",),
    )

    assert await names(alice, NAMESPACES) == ["gas-1", "oil-1"]
    assert await names(alice, f"{NAMESPACES}?resourceVersion=0") == ["gas-1", "oil-1"]
    assert await names(alice, f"{NAMESPACES}?labelSelector=shown") == ["gas-1"]
    assert await names(alice, TENANTS) == ["gas", "oil"]
    for path, seen, hidden in ((NAMESPACES, ("oil-1", "gas-1"), "coal-1"), (TENANTS, ("oil", "gas"), "coal")):
        for name in seen:
            assert (await alice.get(f"{path}/{name}")).status == 200, name
        assert (await alice.get(f"{path}/{hidden}")).status == 403
    # Seen is not owned: what is in such a namespace stays with RBAC.
    assert (await alice.get(f"{NAMESPACES}/gas-1/configmaps")).status == 403
    assert (await alice.request("DELETE", f"{NAMESPACES}/gas-1")).status == 403


async def test_a_watch_of_namespaces_follows_the_labels_that_a_rule_chooses(ruled: World) -> None:
    await ruled.namespace("gas-1")
    alice = await subject(ruled, rule("", "namespaces", has("shown", "yes")))
    version = (await alice.get(NAMESPACES)).version

    async with watching(alice, f"{NAMESPACES}?watch=true&resourceVersion={version}") as events:
        await ruled.admin.merge_patch(f"{NAMESPACES}/gas-1", {"metadata": {"labels": {"shown": "yes"}}})
        assert await events.named() == ("ADDED", "gas-1")
        await ruled.admin.merge_patch(f"{NAMESPACES}/gas-1", {"metadata": {"labels": {"shown": "no", "secret": "x"}}})
        type_, gone = await events.event()
    assert (type_, gone["metadata"]["name"]) == ("DELETED", "gas-1")
    assert "secret" not in str(gone)


async def test_rules_give_no_write(ruled: World) -> None:
    await put(ruled, ROLES, "r1", {"share": "yes"})
    alice = await subject(ruled, rule("*", "*", has("share")))
    patch = {"headers": {"Content-Type": "application/merge-patch+json"}, "data": b'{"metadata":{"labels":{"a":"b"}}}'}

    assert (await alice.request("POST", ROLES, json={"metadata": {"name": "x"}, "rules": []})).status == 403
    assert (await alice.request("PATCH", f"{ROLES}/r1", **patch)).status == 403
    assert (await alice.request("PUT", f"{ROLES}/r1", json={"metadata": {"name": "r1"}})).status == 403
    assert (await alice.request("DELETE", f"{ROLES}/r1")).status == 403
    assert (await alice.request("DELETE", ROLES)).status == 403
    assert (await alice.get(f"{ROLES}/r1")).body["metadata"]["labels"] == {"share": "yes"}


async def test_many_rules_are_a_union_and_those_about_others_add_nothing(ruled: World) -> None:
    labels = {"a": {"x": "1"}, "b": {"y": "2"}, "both": {"x": "1", "y": "2"}, "other": {"z": "3"}, "none": {}}
    for name, found in labels.items():
        await put(ruled, ROLES, name, found)
        await put(ruled, STORAGE, name, found, provisioner="x")
        await ruled.namespace(f"ns-{name}", found)
    await ruled.grant(
        SubjectGrant(subject_kind="User", name="somebody else", rules=(rule("*", "*", has("z")),)),
    )
    await ruled.grant(
        SubjectGrant(
            subject_kind="Group",
            name="system:serviceaccounts:alice-home",
            rules=(rule("*.k8s.io", "*", has("y", "2")), rule("", "namespaces", has("y", "1", "2"))),
        )
    )
    alice = await subject(
        ruled, rule("*", "clusterroles", has("x", "1")), rule("*", "namespaces", has("x")), rule("apps", "*", has("z"))
    )

    assert await names(alice, ROLES) == ["a", "b", "both"]
    assert await names(alice, NAMESPACES) == ["ns-a", "ns-b", "ns-both"]
    assert await names(alice, STORAGE) == ["b", "both"]
    for name in labels:
        assert ((await alice.get(f"{ROLES}/{name}")).status == 200) == (name in {"a", "b", "both"}), name


async def test_rules_settings_and_owners_work_together_on_one_kind(ruled: World) -> None:
    for name, labels in (("fast", {}), ("shared", {"share": "yes"}), ("slow", {})):
        await put(ruled, STORAGE, name, labels, provisioner="x")
    await ruled.grant(TenantGrant(name="oil", uid="oil", choices={"StorageClasses": Choice(names=("fast",))}))
    operations: dict[str, dict[str, tuple[str, ...]]] = {"oil": {"StorageClasses": ("List",)}}
    alice = await subject(
        ruled, rule("storage.k8s.io", "storageclasses", has("share")), tenants=("oil",), operations=operations
    )

    assert await names(alice, STORAGE) == ["fast", "shared"]
    assert (await alice.get(f"{STORAGE}/slow")).status == 403


async def test_a_rule_that_matches_no_object_lists_nothing_with_success(ruled: World) -> None:
    await put(ruled, ROLES, "r1", {"share": "yes"})
    bob = await subject(ruled, rule("*", "*", has("never")), name="bob")

    assert await names(bob, ROLES) == []
    assert await names(bob, NAMESPACES) == []
    assert (await bob.get(f"{ROLES}/r1")).status == 403


@pytest.mark.parametrize(("lists", "listed"), [(True, ["r1"]), (False, None)], ids=["List", "Get alone"])
async def test_list_means_get_too_and_get_alone_is_absent_from_lists(
    ruled: World, *, lists: bool, listed: list[str] | None
) -> None:
    await put(ruled, ROLES, "r1", {"share": "yes"})
    await put(ruled, VOLUMES, "v1", {"share": "yes"}, spec={})
    alice = await subject(
        ruled,
        rule(RBAC_GROUP, "clusterroles", has("share"), lists=lists),
        rule("", "persistentvolumes", has("share"), lists=lists),
    )

    assert (await alice.get(f"{ROLES}/r1")).status == 200
    assert (await alice.get(f"{VOLUMES}/v1")).status == 200
    assert (await alice.get(ROLES)).status == (200 if listed else 403)
    assert (await alice.get(f"{ROLES}?watch=true&timeoutSeconds=1")).status == (200 if listed else 403)


async def test_a_new_kind_works_without_a_restart(ruled: World) -> None:
    alice = await subject(ruled, rule("example.com", "widgets", has("share")))
    path = "/apis/example.com/v1/widgets"
    assert (await alice.get(path)).status in {403, 404}

    await serve(ruled, "widgets", "Widget")
    for name, labels in (("mine", {"share": "yes"}), ("theirs", {})):
        await put(ruled, path, name, labels, apiVersion="example.com/v1", kind="Widget")

    async with asyncio.timeout(15):  # the discovery is asked again at most once a second
        while (reply := await alice.get(path)).status != 200:
            await asyncio.sleep(0.1)
    assert reply.names == ["mine"]
    async with watching(alice, f"{path}?watch=true&resourceVersion={reply.version}") as events:
        await ruled.admin.merge_patch(f"{path}/theirs", {"metadata": {"labels": {"share": "too"}}})
        assert await events.named() == ("ADDED", "theirs")


async def test_a_rule_that_names_kinds_in_namespaces_gives_nothing(ruled: World) -> None:
    await ruled.allow("far-too-much", PROXY, [{"apiGroups": ["*"], "resources": ["*"], "verbs": READ}])
    await serve(ruled, "gadgets", "Gadget", scope="Namespaced")
    labels = {"labels": {"share": "yes"}, "name": "x", "namespace": "default"}
    await ruled.admin.create("/api/v1/namespaces/default/secrets", {"metadata": labels, "stringData": {"a": "b"}})
    alice = await subject(ruled, rule("*", "*", has("share")), rule("", "secrets", has("share")))

    for target in (
        "/api/v1/secrets",
        "/api/v1/secrets?watch=true",
        "/api/v1/namespaces/default/secrets",
        "/api/v1/namespaces/default/secrets/x",
        "/api/v1/secrets/x",
        "/apis/example.com/v1/gadgets",
        "/api/v1/configmaps",
    ):
        reply = await alice.get(target)
        assert reply.status in {403, 404}, target
        assert reply.body["kind"] == "Status"


async def test_a_kind_that_the_proxy_may_not_read_is_told_and_shows_nothing(world: World) -> None:
    await put(world, ROLES, "r1", {"share": "yes"})
    async with world.proxy(proxy_cluster_scoped=True) as service:
        world.service = service
        alice = await subject(world, rule(RBAC_GROUP, "clusterroles", has("share")))

        for target in (ROLES, f"{ROLES}/r1"):
            reply = await alice.get(target)
            assert (reply.status, reply.body["reason"]) == (503, "ServiceUnavailable")
            assert "tell the administrator" in reply.body["message"]
            assert "r1" not in reply.body["message"]


async def test_what_a_wildcard_names_and_the_proxy_may_not_read_stays_with_rbac(world: World) -> None:
    await put(world, ROLES, "r1", {"share": "yes"})
    async with world.proxy(proxy_cluster_scoped=True) as service:
        world.service = service
        alice = await subject(world, rule("*", "*", has("share")))

        assert (await alice.get(ROLES)).status == 403
        assert (await alice.get(f"{ROLES}/r1")).status == 403
        assert not await can_i(alice, "list", RBAC_GROUP, "clusterroles")
        assert not await can_i(alice, "get", RBAC_GROUP, "clusterroles", "r1")
        user = "system:serviceaccount:alice-home:alice"
        await world.allow(
            "own-right", user, [{"apiGroups": [RBAC_GROUP], "resources": ["clusterroles"], "verbs": READ}]
        )
        assert (await alice.get(f"{ROLES}/r1")).status == 200
        assert "r1" in await names(alice, ROLES)
        async with watching(alice, f"{ROLES}?watch=true&fieldSelector=metadata.name%3Dr1") as events:
            assert await events.named() == ("ADDED", "r1")


async def test_without_the_gate_rules_give_nothing(world: World) -> None:
    await world.allow("tether-proxy-cluster-scoped", PROXY, RIGHTS)
    await put(world, ROLES, "r1", {"share": "yes"})
    await world.namespace("gas-1", {"share": "yes"})
    alice = await subject(world, rule("*", "*", has("share")))

    assert (await alice.get(ROLES)).status == 403
    assert (await alice.get(f"{ROLES}/r1")).status == 403
    assert await names(alice, NAMESPACES) == []
    assert (await alice.get(f"{NAMESPACES}/gas-1")).status == 403


async def test_who_is_no_user_of_capsule_has_no_rule(ruled: World) -> None:
    await put(ruled, ROLES, "r1", {"share": "yes"})
    alice = await subject(ruled, rule("*", "*", has("share")))
    await ruled.capsule_users(("User", "somebody else"))
    await ruled.settle()

    assert (await alice.get(ROLES)).status == 403
    assert (await alice.get(f"{ROLES}/r1")).status == 403
    assert (await alice.get(NAMESPACES)).status == 403


async def test_a_rule_of_a_tenants_setting_ends_with_the_tenant(ruled: World) -> None:
    await put(ruled, ROLES, "r1", {"share": "yes"})
    tenant = TenantGrant(name="oil", uid="oil")
    await ruled.grant(tenant)
    alice = await subject(ruled, rule("*", "*", has("share"), tenant="oil"), tenants=("oil",))
    version = (await alice.get(ROLES)).version

    async with watching(alice, f"{ROLES}?watch=true&resourceVersion={version}") as events:
        await ruled.withdraw(tenant.key())
        type_, error = await events.event()
    assert (type_, error["code"]) == ("ERROR", 410)
    assert (await alice.get(ROLES)).status == 403


async def can_i(client: Tenant, verb: str, group: str, resource: str, name: str = "") -> bool:
    attributes = {"verb": verb, "group": group, "resource": resource, "name": name}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    reply = await client.request("POST", ACCESS, json={**body, "spec": {"resourceAttributes": attributes}})
    assert reply.status == 201, reply.body
    return bool(reply.body["status"]["allowed"])


async def test_self_reviews_say_what_rules_give(ruled: World) -> None:
    await put(ruled, ROLES, "r1", {"share": "yes"})
    await put(ruled, ROLES, "r2")
    await ruled.namespace("gas-1", {"share": "yes"})
    alice = await subject(
        ruled,
        rule(RBAC_GROUP, "clusterroles", has("share")),
        rule("*", "namespaces", has("share")),
        rule("", "secrets", has("share")),
        rule("apps/v1", "deployments", has("share")),
    )

    for verb, name, allowed in (
        ("list", "", True),
        ("watch", "", True),
        ("get", "r1", True),
        ("get", "r2", False),
        ("get", "", False),
        ("delete", "r1", False),
        ("create", "", False),
    ):
        assert await can_i(alice, verb, RBAC_GROUP, "clusterroles", name) is allowed, (verb, name)
    assert await can_i(alice, "get", "", "namespaces", "gas-1")
    assert not await can_i(alice, "get", "", "namespaces", "default")
    assert not await can_i(alice, "list", "", "secrets")
    assert not await can_i(alice, "list", "*", "*")
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}}
    status = (await alice.request("POST", REVIEW, json=body)).body["status"]
    assert {"verbs": ["list", "watch"], "apiGroups": [RBAC_GROUP], "resources": ["clusterroles"]} in status[
        "resourceRules"
    ]
    assert not any({"secrets", "deployments"} & set(one["resources"]) for one in status["resourceRules"])
    assert status["incomplete"] is True


async def test_a_rule_with_a_selector_of_any_length_works(ruled: World) -> None:
    await put(ruled, ROLES, "r1", {"share": "value-0500"})
    await put(ruled, ROLES, "r2", {"share": "other"})
    alice = await subject(
        ruled, rule(RBAC_GROUP, "clusterroles", has("share", *(f"value-{number:04d}" for number in range(1000))))
    )

    assert await names(alice, ROLES) == ["r1"]


async def test_what_is_listed_tells_nothing_of_the_rest(ruled: World) -> None:
    for name, labels in (("a", {}), ("b", {"share": "yes"}), ("c", {})):
        await put(ruled, ROLES, name, labels)
    alice = await subject(ruled, rule(RBAC_GROUP, "clusterroles", has("share")), rule("*", "*", has("never")))

    for query in ("?limit=1", "?limit=1&resourceVersion=0"):
        reply = await alice.get(ROLES + query)
        assert reply.names == ["b"]
        assert set(msgspec.to_builtins(reply.body["metadata"])) <= {"resourceVersion"}


async def test_without_the_discovery_a_rule_shows_nothing_and_says_so() -> None:
    class Away:
        async def get(self, path: str, /) -> bytes:
            raise KubeUnreachableError(path)

    kinds = FilteredKinds(cast("Any", None), cast("Any", None), Discovery(Away()))
    roles = ProxiedKind(setting=BY_RULE, group=RBAC_GROUP, resource="clusterroles")
    known = ProxiedKind(setting="Nodes", group="", resource="nodes")

    with pytest.raises(RefusedError) as caught:
        await kinds.is_served(Filtered(kind=roles, verb="list", scope=Scope()))

    assert caught.value.status.code == 503
    # What is known to be cluster-scoped needs no discovery.
    assert await kinds.is_served(Filtered(kind=known, verb="list", scope=Scope()))
