"""What becomes of a request: one quick example for each rule of the policy, whole decisions compared."""

from __future__ import annotations

import msgspec
import pytest

from eventcore.grants import (
    CapsuleUserRef,
    Choice,
    ClusterRule,
    ConfigGrant,
    Grant,
    SelectorTerm,
    SubjectGrant,
    TenantGrant,
)
from eventcore.keys import Key
from eventcore.selectors import Requirement
from proxycore.identities import Identity
from proxycore.kinds import BY_RULE, KINDS, NAMESPACE_KIND, NODE_LEASE, ProxiedKind
from proxycore.listquery import ListQuery
from proxycore.policy import (
    Decision,
    Filtered,
    Forward,
    Freshness,
    ListMemory,
    ListUpstream,
    ReadMemory,
    ReadOne,
    Refuse,
    Review,
    WatchMemory,
    decide,
    is_missing,
    stale,
)
from proxycore.requestinfo import parse
from proxycore.rules import Scope
from proxycore.statuses import RefusedError

FRESH = Freshness(ready=True, age=1.0)
OLD = Freshness(ready=True, age=31.0)
LOADING = Freshness(ready=False)
DANA = Identity(user="dana")
BOB = Identity(user="bob")
NODES = next(kind for kind in KINDS if kind.setting == "Nodes")
ROLES = ProxiedKind(setting=BY_RULE, group="rbac.authorization.k8s.io", resource="clusterroles")
ROLES_PATH = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
REVIEWS_PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
FOR_OIL = (SelectorTerm(key="for", operator="In", values=("oil",)),)
BY_LABEL = Scope(selectors=frozenset({(Requirement("for", "in", ("oil",)),)}))
BY_NAME = Scope(names=frozenset({"n1"}))


class Memory:
    """Grants in a dict."""

    def __init__(self, *grants: Grant) -> None:
        self.grants: dict[Key, Grant] = {grant.key(): grant for grant in grants}

    def get(self, target: Key, /) -> Grant | None:
        return self.grants.get(target)


def memory(*rules: ClusterRule, tenants: tuple[str, ...] = ("oil",)) -> Memory:
    operations: dict[str, dict[str, tuple[str, ...]]] = {"oil": {"Nodes": ("List", "Update")}}
    return Memory(
        ConfigGrant(users=(CapsuleUserRef(kind="User", name="dana"),)),
        SubjectGrant(subject_kind="User", name="dana", tenants=tenants, operations=operations, rules=rules),
        SubjectGrant(subject_kind="User", name="bob", tenants=tenants, operations=operations, rules=rules),
        TenantGrant(name="oil", uid="u", namespaces=("oil-1",), choices={"Nodes": Choice(names=("n1",))}),
    )


def rule(group: str, resource: str) -> ClusterRule:
    return ClusterRule(groups=(group,), resources=(resource,), selector=FOR_OIL)


OIL = memory()
SEES_NAMESPACES = memory(rule("", "namespaces"))
SEES_ROLES = memory(rule("rbac.authorization.k8s.io", "clusterroles"))
SEES_ALL = memory(rule("*", "*"))


def decided(
    method: str, target: str, grants: Memory = OIL, freshness: Freshness = FRESH, identity: Identity = DANA
) -> Decision:
    return decide(parse(method, target), identity, grants, freshness)


# How current memory is.


def test_memory_counts_when_it_is_loaded_and_up_to_its_limit() -> None:
    ages = {age: Freshness(ready=True, age=age, limit=30.0).fresh for age in (0.0, 30.0, 30.1)}

    assert ages == {0.0: True, 30.0: True, 30.1: False}
    assert not Freshness(ready=False).fresh
    assert Freshness(ready=True) == Freshness(ready=True, age=0.0, limit=30.0)


def test_who_is_refused_learns_whether_and_when_to_try_again() -> None:
    loading, old = stale(LOADING), stale(OLD)

    assert (loading.code, old.code, old.retry_after) == (503, 503, 5)
    assert "still reading" in loading.message
    assert "31 s old, over the limit of 30 s" in old.message


# Namespaces.


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("/api/v1/namespaces", ListUpstream(frozenset({"oil-1"}), ListQuery())),
        ("/api/v1/namespaces?resourceVersion=0", ListMemory(frozenset({"oil-1"}), ListQuery(resource_version="0"))),
        ("/api/v1/namespaces?watch=1", WatchMemory(ListQuery(watch=True))),
        ("/api/v1/namespaces/oil-1", ReadOne("oil-1")),
        ("/api/v1/namespaces/oil-1?resourceVersion=0", ReadMemory("oil-1")),
        ("/api/v1/namespaces/oil-1?resourceVersion=1", ReadOne("oil-1")),
        ("/api/v1/namespaces/gas-1", Forward()),
    ],
)
def test_a_request_for_namespaces_becomes(target: str, wanted: Decision) -> None:
    assert decided("GET", target) == wanted


def test_the_old_spelling_of_a_watch_is_one_and_names_its_object() -> None:
    every = decided("GET", "/api/v1/watch/namespaces")
    one = decided("GET", "/api/v1/watch/namespaces/oil-1?fieldSelector=status.phase%3DActive")

    assert every == WatchMemory(ListQuery(watch=True))
    assert isinstance(one, WatchMemory)
    assert one.query.fields == (
        Requirement("metadata.name", "in", ("oil-1",)),
        Requirement("status.phase", "in", ("Active",)),
    )


@pytest.mark.parametrize(
    ("target", "verb", "name"),
    [
        ("/api/v1/namespaces", "list", ""),
        ("/api/v1/namespaces?watch=1", "watch", ""),
        ("/api/v1/watch/namespaces", "watch", ""),
        ("/api/v1/namespaces/gas-1", "get", "gas-1"),
    ],
)
def test_who_has_a_rule_about_namespaces_sees_its_own_and_those_of_the_rule(target: str, verb: str, name: str) -> None:
    found = decided("GET", target, SEES_NAMESPACES)

    assert isinstance(found, Filtered)
    assert (found.kind, found.verb, found.name) == (NAMESPACE_KIND, verb, name)
    assert found.scope == msgspec.structs.replace(BY_LABEL, names=frozenset({"oil-1"}))


def test_the_query_of_a_list_of_namespaces_is_kept_beside_a_rule() -> None:
    found = decided("GET", "/api/v1/namespaces?limit=5", SEES_NAMESPACES)

    assert isinstance(found, Filtered)
    assert found.query == ListQuery(passed_on=(("limit", "5"),))
    assert Filtered(kind=NODES, verb="list", scope=BY_NAME) == Filtered(
        kind=NODES, verb="list", scope=BY_NAME, name="", query=ListQuery()
    )


def test_a_namespace_of_ones_own_is_read_as_such_beside_a_rule() -> None:
    assert decided("GET", "/api/v1/namespaces/oil-1", SEES_NAMESPACES) == ReadOne("oil-1")


@pytest.mark.parametrize("freshness", [OLD, LOADING], ids=["old", "loading"])
@pytest.mark.parametrize("target", ["/api/v1/namespaces", "/api/v1/namespaces/oil-1", "/api/v1/nodes"])
def test_without_current_memory_nothing_is_filtered(target: str, freshness: Freshness) -> None:
    assert decided("GET", target, OIL, freshness) == Refuse(stale(freshness))


@pytest.mark.parametrize(
    "target", ["/api/v1/namespaces", "/api/v1/namespaces/oil-1", "/api/v1/namespaces/gas-1", "/api/v1/nodes"]
)
def test_who_is_no_user_of_capsule_needs_no_memory_once_that_is_known(target: str) -> None:
    for freshness in (FRESH, OLD):
        assert decided("GET", target, OIL, freshness, BOB) == Forward()
    assert decided("GET", target, OIL, LOADING, BOB) == Refuse(stale(LOADING))


def test_the_namespace_of_somebody_else_is_left_to_rbac_also_without_current_memory() -> None:
    assert decided("GET", "/api/v1/namespaces/gas-1", OIL, OLD) == Forward()
    assert decided("GET", "/api/v1/namespaces/gas-1", SEES_NAMESPACES, OLD) == Refuse(stale(OLD))


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/api/v1/namespaces"),
        ("DELETE", "/api/v1/namespaces"),
        ("PUT", "/api/v1/namespaces/oil-1"),
        ("DELETE", "/api/v1/namespaces/oil-1"),
        ("HEAD", "/api/v1/namespaces/oil-1"),
        ("GET", "/api/v1/namespaces/oil-1/pods"),
        ("GET", "/api/v1/namespaces/oil-1/status"),
        ("GET", "/api/v1/proxy/namespaces/oil-1"),
        ("GET", "/version"),
    ],
)
def test_everything_else_goes_as_the_caller(method: str, target: str) -> None:
    for freshness in (FRESH, OLD, LOADING):
        assert decided(method, target, OIL, freshness) == Forward()


# Questions about one's own rights.


def test_a_question_about_ones_own_rights_is_answered_with_what_the_proxy_grants() -> None:
    assert decided("POST", REVIEWS_PATH) == Review(rules=False)
    assert decided("POST", REVIEWS_PATH.replace("access", "rules")) == Review(rules=True)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", REVIEWS_PATH),
        ("PUT", REVIEWS_PATH + "/x"),
        ("POST", REVIEWS_PATH + "/x/status"),
        ("POST", REVIEWS_PATH.replace("/self", "/namespaces/oil-1/self")),
        ("POST", REVIEWS_PATH.replace("authorization.k8s.io", "other")),
        ("POST", REVIEWS_PATH.replace("selfsubject", "subject")),
    ],
)
def test_any_other_question_goes_on_as_it_is(method: str, target: str) -> None:
    assert decided(method, target) == Forward()


def test_a_question_goes_on_as_it_is_without_current_memory_and_for_others() -> None:
    for freshness in (OLD, LOADING):
        assert decided("POST", REVIEWS_PATH, OIL, freshness) == Forward()
    assert decided("POST", REVIEWS_PATH, OIL, FRESH, BOB) == Forward()


# Other kinds of the cluster scope.


@pytest.mark.parametrize(
    ("method", "target", "verb", "name"),
    [
        ("GET", "/api/v1/nodes", "list", ""),
        ("GET", "/api/v1/nodes?watch=1", "watch", ""),
        ("GET", "/api/v1/watch/nodes", "watch", ""),
        ("GET", "/api/v1/nodes/n1", "get", "n1"),
        ("PUT", "/api/v1/nodes/n1", "update", "n1"),
        ("PATCH", "/api/v1/nodes/n1", "patch", "n1"),
    ],
)
def test_what_a_tenant_gives_of_a_kind_is_filtered_by_its_scope(method: str, target: str, verb: str, name: str) -> None:
    found = decided(method, target)

    assert isinstance(found, Filtered)
    assert (found.kind, found.verb, found.name, found.scope) == (NODES, verb, name, BY_NAME)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PUT", "/apis/capsule.clastix.io/v1beta2/tenants/oil"),
        ("DELETE", "/apis/capsule.clastix.io/v1beta2/tenants/oil"),
        ("GET", "/apis/metrics.k8s.io/v1beta1/nodes?watch=1"),
        ("DELETE", "/api/v1/nodes/n1"),
        ("DELETE", "/api/v1/nodes"),
        ("POST", "/api/v1/nodes"),
        ("PATCH", "/api/v1/nodes"),
        ("PUT", "/api/v1/nodes"),
        ("HEAD", "/api/v1/nodes"),
        ("HEAD", "/api/v1/nodes/n1"),
        ("GET", "/api/v1/nodes/n1/status"),
        ("GET", "/apis/storage.k8s.io/v1/storageclasses"),
        ("GET", ROLES_PATH),
    ],
)
def test_what_nothing_gives_goes_as_the_caller(method: str, target: str) -> None:
    assert decided(method, target) == Forward()


@pytest.mark.parametrize(
    ("target", "verb", "watch"),
    [
        ("/api/v1/watch/nodes", "watch", True),
        ("/api/v1/nodes?%77atch=1", "watch", True),
        ("/api/v1/nodes/n1?watch=1", "get", True),
        ("/api/v1/nodes?watch=0", "list", False),
    ],
)
def test_a_watch_is_one_however_it_is_spelled(target: str, verb: str, *, watch: bool) -> None:
    found = decided("GET", target)

    assert isinstance(found, Filtered)
    assert (found.verb, found.query.watch) == (verb, watch)
    assert "fieldSelector" not in dict(found.query.passed_on)


def test_the_query_of_a_read_is_kept_and_a_write_has_none() -> None:
    read = decided("GET", "/api/v1/nodes?limit=5&fieldSelector=a%3Db&labelSelector=x")
    write = decided("PATCH", "/api/v1/nodes/n1?fieldManager=me")

    assert isinstance(read, Filtered)
    assert isinstance(write, Filtered)
    assert read.query.passed_on == (("limit", "5"), ("fieldSelector", "a=b"))
    assert read.query.labels == (Requirement("x", "exists", ()),)
    assert write.query == ListQuery()


def test_the_old_spelling_of_a_watch_of_one_object_selects_it_by_name() -> None:
    found = decided("GET", "/api/v1/watch/nodes/n1?limit=5")

    assert isinstance(found, Filtered)
    assert (found.verb, found.name) == ("watch", "n1")
    assert found.query.passed_on == (("limit", "5"), ("fieldSelector", "metadata.name=n1"))
    with pytest.raises(RefusedError) as refused:
        decided("GET", "/api/v1/watch/nodes/n1?fieldSelector=a%3Db")
    assert refused.value.status.code == 400


@pytest.mark.parametrize(("grants", "optional"), [(SEES_ROLES, False), (SEES_ALL, True)], ids=["named", "by a star"])
def test_a_kind_that_only_rules_speak_of_is_filtered_and_may_be_missing_where_a_star_names_it(
    grants: Memory, *, optional: bool
) -> None:
    found = decided("GET", ROLES_PATH, grants)

    assert isinstance(found, Filtered)
    assert found.kind == msgspec.structs.replace(ROLES, optional=optional)
    assert (found.verb, found.scope) == ("list", BY_LABEL)
    assert decide(parse("GET", ROLES_PATH), DANA, grants, FRESH, discovered=False) == Forward()
    assert decided("DELETE", ROLES_PATH + "/x", grants) == Forward()
    assert decided("GET", ROLES_PATH, grants, OLD) == Refuse(stale(OLD))
    assert decided("GET", ROLES_PATH, grants, OLD, BOB) == Forward()


def test_a_known_kind_is_never_missing_for_a_star() -> None:
    found = decided("GET", "/api/v1/nodes", SEES_ALL)

    assert isinstance(found, Filtered)
    assert found.kind == NODES


def test_the_lease_of_a_node_is_read_like_the_node() -> None:
    found = decided("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1")

    assert isinstance(found, Filtered)
    assert (found.kind, found.verb, found.name, found.scope) == (NODE_LEASE, "get", "n1", BY_NAME)


def test_while_loading_a_kind_that_only_rules_speak_of_is_left_to_rbac_where_no_rule_is_known() -> None:
    assert decided("GET", ROLES_PATH, OIL, LOADING) == Forward()
    assert decided("GET", ROLES_PATH, SEES_ROLES, LOADING) == Refuse(stale(LOADING))
    assert decided("GET", ROLES_PATH, SEES_ROLES, LOADING, BOB) == Refuse(stale(LOADING))


def test_while_loading_nobody_knows_what_is_given_of_a_known_kind() -> None:
    assert decided("GET", "/apis/storage.k8s.io/v1/storageclasses", OIL, LOADING) == Refuse(stale(LOADING))


# A 404 in place of a 403.


def missing(
    target: str = "/api/v1/namespaces/new/secrets/s",
    method: str = "GET",
    grants: Memory = OIL,
    freshness: Freshness = FRESH,
    identity: Identity = DANA,
    *,
    exists: bool = False,
) -> bool:
    return is_missing(parse(method, target), identity, grants, freshness, exists=exists)


def test_an_owner_is_told_that_a_namespace_is_not_there() -> None:
    assert missing()
    assert missing("/api/v1/namespaces/new")
    assert missing("/apis/apps/v1/namespaces/new/deployments/d")


def test_nobody_else_is_told_and_nothing_else() -> None:
    assert not missing(exists=True)
    assert not missing(freshness=OLD)
    assert not missing(identity=BOB)
    assert not missing(grants=memory(tenants=("gone",)))
    assert not missing(method="DELETE")
    assert not missing(method="HEAD")
    assert not missing("/api/v1/namespaces/new/secrets")
    assert not missing("/api/v1/namespaces/new/pods/p/log")
    assert not missing("/api/v1/nodes/n1")
    assert not missing("/api/v1/namespaces")
