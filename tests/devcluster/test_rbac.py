"""RBAC decides as Kubernetes' does, follows every write, and lets nobody give what they do not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import strategies

from tether.devcluster import bootstrap
from tether.devcluster.contracts import AdmissionRequest, ApiError, Attributes, Object, Operation, UserInfo
from tether.devcluster.rbac import (
    CLUSTER_ROLE_BINDINGS,
    CLUSTER_ROLES,
    ROLE_BINDINGS,
    ROLES,
    RbacAuthorizer,
    Rule,
    aggregated_rules,
    escalation_admission,
    uncovered,
)
from tether.devcluster.resources import RBAC
from tether.devcluster.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tether.devcluster.contracts import Resource

BOB = UserInfo(username="bob", groups=("devs", "system:authenticated"))
ADMIN = UserInfo(username="root", groups=("system:masters",))


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    bootstrap.apply(store)
    yield store
    store.close()


@pytest.fixture
def authorizer(store: Store) -> RbacAuthorizer:
    return RbacAuthorizer(store)


def role(store: Store, name: str, *rules: Object, namespace: str = "") -> Object:
    meta = {"name": name, "namespace": namespace} if namespace else {"name": name}
    return store.create(ROLES if namespace else CLUSTER_ROLES, {"metadata": meta, "rules": list(rules)})


def bind(
    store: Store, name: str, kind: str, role_name: str, *, namespace: str = "", subject: Object | None = None
) -> Object:
    meta = {"name": name, "namespace": namespace} if namespace else {"name": name}
    body = {
        "metadata": meta,
        "roleRef": {"apiGroup": RBAC, "kind": kind, "name": role_name},
        "subjects": [subject or {"kind": "User", "name": "bob", "apiGroup": RBAC}],
    }
    return store.create(ROLE_BINDINGS if namespace else CLUSTER_ROLE_BINDINGS, body)


def rule(verbs: str, resources: str, *, groups: tuple[str, ...] = ("",), names: tuple[str, ...] = ()) -> Object:
    made: Object = {"verbs": verbs.split(), "resources": resources.split(), "apiGroups": list(groups)}
    return made | ({"resourceNames": list(names)} if names else {})


def asked(
    verb: str,
    resource: str,
    *,
    user: UserInfo = BOB,
    namespace: str = "",
    name: str = "",
    sub: str = "",
    group: str = "",
) -> Attributes:
    return Attributes(
        user=user, verb=verb, resource=resource, namespace=namespace, name=name, subresource=sub, group=group
    )


def test_nobody_may_anything_without_a_binding(authorizer: RbacAuthorizer) -> None:
    assert authorizer.authorize(asked("get", "secrets", namespace="default")) == (False, "")


def test_masters_may_everything(authorizer: RbacAuthorizer) -> None:
    assert authorizer.authorize(asked("delete", "nodes", user=ADMIN))[0]


def test_a_cluster_binding_counts_in_every_namespace_and_names_itself(store: Store, authorizer: RbacAuthorizer) -> None:
    role(store, "reader", rule("get list", "pods"))
    bind(store, "readers", "ClusterRole", "reader")

    for namespace in ("", "default", "kube-system"):
        allowed, reason = authorizer.authorize(asked("list", "pods", namespace=namespace))
        assert allowed
        assert reason == 'RBAC: allowed by ClusterRoleBinding "readers" of ClusterRole "reader" to User "bob"'


def test_a_namespaced_binding_of_a_cluster_role_counts_in_its_namespace_alone(
    store: Store, authorizer: RbacAuthorizer
) -> None:
    role(store, "reader", rule("get", "pods"))
    bind(store, "readers", "ClusterRole", "reader", namespace="default")

    assert authorizer.authorize(asked("get", "pods", namespace="default")) == (
        True,
        'RBAC: allowed by RoleBinding "readers/default" of ClusterRole "reader" to User "bob"',
    )
    assert not authorizer.authorize(asked("get", "pods", namespace="kube-system"))[0]
    assert not authorizer.authorize(asked("get", "pods"))[0]


def test_a_role_counts_in_its_own_namespace(store: Store, authorizer: RbacAuthorizer) -> None:
    role(store, "reader", rule("get", "pods"), namespace="default")
    bind(store, "readers", "Role", "reader", namespace="default")

    assert authorizer.authorize(asked("get", "pods", namespace="default"))[0]


def test_a_binding_in_a_namespace_lets_delete_that_namespace(store: Store, authorizer: RbacAuthorizer) -> None:
    role(store, "deleter", rule("delete", "namespaces"))
    bind(store, "deleters", "ClusterRole", "deleter", namespace="default")

    assert authorizer.authorize(asked("delete", "namespaces", namespace="default", name="default"))[0]
    assert not authorizer.authorize(asked("delete", "namespaces", namespace="kube-system", name="kube-system"))[0]


@pytest.mark.parametrize(
    "subject",
    [
        {"kind": "Group", "name": "devs"},
        {"kind": "Group", "name": "system:authenticated"},
        {"kind": "User", "name": "bob"},
    ],
)
def test_users_and_groups_are_subjects(store: Store, authorizer: RbacAuthorizer, subject: Object) -> None:
    role(store, "reader", rule("get", "pods"))
    bind(store, "readers", "ClusterRole", "reader", subject=subject)

    allowed, reason = authorizer.authorize(asked("get", "pods"))

    assert allowed
    assert reason.endswith(f'to {subject["kind"]} "{subject["name"]}"')


def test_an_account_is_a_subject_by_namespace_and_name(store: Store, authorizer: RbacAuthorizer) -> None:
    role(store, "reader", rule("get", "pods"))
    bind(
        store,
        "readers",
        "ClusterRole",
        "reader",
        subject={"kind": "ServiceAccount", "name": "gitops", "namespace": "default"},
    )
    account = UserInfo(username="system:serviceaccount:default:gitops")
    other = UserInfo(username="system:serviceaccount:kube-system:gitops")

    allowed, reason = authorizer.authorize(asked("get", "pods", user=account))

    assert allowed
    assert reason.endswith('to ServiceAccount "gitops/default"')
    assert not authorizer.authorize(asked("get", "pods", user=other))[0]


@pytest.mark.parametrize(
    ("granted", "question", "expected"),
    [
        (rule("*", "*", groups=("*",)), asked("patch", "deployments", group="apps", sub="status"), True),
        (rule("get", "pods"), asked("get", "pods", sub="log"), False),
        (rule("get", "pods/log"), asked("get", "pods", sub="log"), True),
        (rule("get", "pods/log"), asked("get", "pods"), False),
        (rule("update", "*/scale", groups=("apps",)), asked("update", "deployments", group="apps", sub="scale"), True),
        (rule("update", "*/scale", groups=("apps",)), asked("update", "deployments", group="apps"), False),
        (rule("get", "secrets", names=("a",)), asked("get", "secrets", name="a"), True),
        (rule("get", "secrets", names=("a",)), asked("get", "secrets", name="b"), False),
        (rule("list", "secrets", names=("a",)), asked("list", "secrets"), False),
        (rule("get", "deployments"), asked("get", "deployments", group="apps"), False),
        (rule("get", "secrets"), asked("list", "secrets"), False),
    ],
)
def test_a_rule_allows_exactly_what_it_says(
    store: Store, authorizer: RbacAuthorizer, granted: Object, question: Attributes, *, expected: bool
) -> None:
    role(store, "granted", granted)
    bind(store, "granted", "ClusterRole", "granted")

    assert authorizer.authorize(question)[0] is expected


@pytest.mark.parametrize(
    ("url", "path", "expected"),
    [
        ("/metrics", "/metrics", True),
        ("/metrics", "/metrics/slow", False),
        ("/metrics/*", "/metrics/slow", True),
        ("*", "/anything", True),
        ("/metrics/*", "/metrics", False),
    ],
)
def test_paths_are_allowed_exactly_or_by_prefix(
    store: Store, authorizer: RbacAuthorizer, url: str, path: str, *, expected: bool
) -> None:
    role(store, "paths", {"verbs": ["get"], "nonResourceURLs": [url]})
    bind(store, "paths", "ClusterRole", "paths")

    assert authorizer.authorize(Attributes(user=BOB, verb="get", path=path))[0] is expected


def test_every_write_counts_at_once(store: Store, authorizer: RbacAuthorizer) -> None:
    question = asked("get", "pods")
    bind(store, "readers", "ClusterRole", "reader")
    missing = 'RBAC: clusterrole.rbac.authorization.k8s.io "reader" not found'
    assert authorizer.authorize(question) == (False, missing)

    made = role(store, "reader", rule("get", "pods"))
    assert authorizer.authorize(question)[0]

    store.update(CLUSTER_ROLES, {**made, "rules": []})
    assert authorizer.authorize(question) == (False, "")

    store.update(CLUSTER_ROLES, {"metadata": {"name": "reader"}, "rules": [rule("get", "pods")]})
    assert authorizer.authorize(question)[0]

    store.delete(CLUSTER_ROLE_BINDINGS, "", "readers")
    assert not authorizer.authorize(question)[0]


def test_a_changed_subject_loses_and_wins(store: Store, authorizer: RbacAuthorizer) -> None:
    role(store, "reader", rule("get", "pods"))
    binding = bind(store, "readers", "ClusterRole", "reader")
    dana = UserInfo(username="dana")
    assert authorizer.authorize(asked("get", "pods"))[0]

    store.update(CLUSTER_ROLE_BINDINGS, {**binding, "subjects": [{"kind": "User", "name": "dana"}]})

    assert not authorizer.authorize(asked("get", "pods"))[0]
    assert authorizer.authorize(asked("get", "pods", user=dana))[0]


def test_the_index_is_whole_after_the_store_cut_its_watches(store: Store, authorizer: RbacAuthorizer) -> None:
    assert not authorizer.authorize(asked("get", "pods"))[0]

    store.close_watches()
    role(store, "reader", rule("get", "pods"))
    bind(store, "readers", "ClusterRole", "reader")

    assert authorizer.authorize(asked("get", "pods"))[0]
    store.delete(CLUSTER_ROLE_BINDINGS, "", "readers")
    assert not authorizer.authorize(asked("get", "pods"))[0]


@pytest.mark.parametrize(
    ("name", "verb", "resource", "group", "expected"),
    [
        ("view", "list", "pods", "", True),
        ("view", "list", "secrets", "", False),
        ("view", "list", "rolebindings", RBAC, False),
        ("edit", "get", "secrets", "", True),
        ("edit", "create", "deployments", "apps", True),
        ("edit", "create", "rolebindings", RBAC, False),
        ("admin", "create", "rolebindings", RBAC, True),
        ("admin", "list", "pods", "", True),
        ("admin", "delete", "namespaces", "", False),
        ("admin", "update", "resourcequotas", "", False),
        ("admin", "get", "kustomizations", "kustomize.toolkit.fluxcd.io", False),
        ("cluster-admin", "get", "kustomizations", "kustomize.toolkit.fluxcd.io", True),
    ],
)
def test_the_well_known_roles_hold_their_rights(
    store: Store, authorizer: RbacAuthorizer, name: str, verb: str, resource: str, group: str, *, expected: bool
) -> None:
    bind(store, "known", "ClusterRole", name, namespace="default")

    assert authorizer.authorize(asked(verb, resource, group=group, namespace="default"))[0] is expected


def test_everybody_may_ask_about_themselves_and_the_unknown_see_the_version_alone(authorizer: RbacAuthorizer) -> None:
    anybody = UserInfo(username="system:anonymous", groups=("system:unauthenticated",))

    assert authorizer.authorize(asked("create", "selfsubjectaccessreviews", group="authorization.k8s.io"))[0]
    assert authorizer.authorize(Attributes(user=BOB, verb="get", path="/apis/apps/v1"))[0]
    assert authorizer.authorize(Attributes(user=anybody, verb="get", path="/version"))[0]
    assert not authorizer.authorize(Attributes(user=anybody, verb="get", path="/apis"))[0]


def test_bootstrapping_again_repairs_the_roles_and_keeps_what_others_added(store: Store) -> None:
    cluster_admin = store.get(CLUSTER_ROLES, "", "cluster-admin")
    assert cluster_admin is not None
    store.update(CLUSTER_ROLES, {**cluster_admin, "rules": []})
    role(store, "mine", rule("get", "pods"))

    bootstrap.apply(store)
    version = store.version
    bootstrap.apply(store)

    repaired = store.get(CLUSTER_ROLES, "", "cluster-admin")
    assert repaired is not None
    assert repaired["rules"][0]["verbs"] == ["*"]
    assert store.get(CLUSTER_ROLES, "", "mine") is not None
    assert store.version == version


def test_a_role_gathers_the_rules_of_those_with_its_label_once_and_in_order() -> None:
    labels = {"aggregate": "true"}
    one = {"metadata": {"name": "b", "labels": labels}, "rules": [rule("get", "pods")]}
    two = {"metadata": {"name": "a", "labels": labels}, "rules": [rule("get", "nodes"), rule("get", "pods")]}
    other = {"metadata": {"name": "c"}, "rules": [rule("get", "secrets")]}
    gathering = {
        "metadata": {"name": "all", "labels": labels},
        "rules": [rule("*", "*")],
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": labels}]},
    }

    assert aggregated_rules(gathering, [one, two, other, gathering]) == [rule("get", "nodes"), rule("get", "pods")]
    assert aggregated_rules(one, [one, two]) is None


words = strategies.sampled_from(["a", "b", "*"])
names = strategies.lists(words, min_size=1, max_size=2).map(tuple)
rules = strategies.builds(
    Rule,
    verbs=names,
    groups=names,
    resources=strategies.lists(strategies.sampled_from(["p", "p/s", "*/s", "*"]), min_size=1, max_size=2).map(tuple),
    names=strategies.lists(strategies.sampled_from(["x", "y"]), max_size=2).map(tuple),
)


@hypothesis.given(held=strategies.lists(rules, max_size=3), wanted=rules)
def test_what_is_covered_allows_nothing_that_is_not_held(held: list[Rule], wanted: Rule) -> None:
    questions = (
        asked(verb, "p", group=group, sub=sub, name=name)
        for verb in ("a", "b", "c")
        for group in ("a", "b", "c")
        for sub in ("", "s", "t")
        for name in ("x", "y", "z", "")
    )

    if any(wanted.allows(one) and not any(rule.allows(one) for rule in held) for one in questions):
        assert uncovered(held, [wanted])


@hypothesis.given(rules)
def test_every_rule_covers_itself(one: Rule) -> None:
    assert uncovered([one], [one]) == []


def admit(
    authorizer: RbacAuthorizer,
    resource: Resource,
    obj: Object,
    *,
    user: UserInfo = BOB,
    old: Object | None = None,
    operation: Operation = "CREATE",
) -> None:
    meta = obj["metadata"]
    escalation_admission(authorizer)(
        AdmissionRequest(
            operation=operation,
            resource=resource,
            subresource="",
            namespace=meta.get("namespace", ""),
            name=meta["name"],
            user=user,
            obj=obj,
            old=old,
        ),
    )


def new_role(*granted: Object) -> Object:
    return {"metadata": {"name": "new", "namespace": "default"}, "rules": list(granted)}


def new_binding(name: str, kind: str = "ClusterRole") -> Object:
    return {
        "metadata": {"name": "new", "namespace": "default"},
        "roleRef": {"apiGroup": RBAC, "kind": kind, "name": name},
        "subjects": [{"kind": "User", "name": "eve"}],
    }


def test_nobody_writes_a_role_with_rights_that_they_do_not_hold(store: Store, authorizer: RbacAuthorizer) -> None:
    bind(store, "editors", "ClusterRole", "edit", namespace="default")
    admit(authorizer, ROLES, new_role(rule("get list", "secrets")))

    with pytest.raises(ApiError) as caught:
        admit(authorizer, ROLES, new_role(rule("get", "secrets"), rule("get delete", "nodes", names=("n",))))

    assert caught.value.code == 403
    assert caught.value.message == (
        'roles.rbac.authorization.k8s.io "new" is forbidden: user "bob" (groups=["devs" "system:authenticated"]) '
        "is attempting to grant RBAC permissions not currently held:\n"
        '{APIGroups:[""], Resources:["nodes"], ResourceNames:["n"], Verbs:["get" "delete"]}'
    )


def test_the_verb_escalate_lifts_the_check_for_the_roles_that_it_names(
    store: Store, authorizer: RbacAuthorizer
) -> None:
    role(store, "escalator", rule("escalate", "roles", groups=(RBAC,), names=("new",)))
    bind(store, "escalators", "ClusterRole", "escalator")
    other = new_role(rule("*", "*")) | {"metadata": {"name": "other", "namespace": "default"}}

    admit(authorizer, ROLES, new_role(rule("*", "*")))

    with pytest.raises(ApiError):
        admit(authorizer, ROLES, other)


def test_masters_grant_everything(authorizer: RbacAuthorizer) -> None:
    admit(authorizer, ROLES, new_role(rule("*", "*", groups=("*",))), user=ADMIN)
    admit(authorizer, ROLE_BINDINGS, new_binding("no-such-role"), user=ADMIN)


def test_a_role_whose_rules_stay_is_written_without_holding_them(store: Store, authorizer: RbacAuthorizer) -> None:
    old = role(store, "new", rule("*", "*"), namespace="default")
    relabelled = {**old, "metadata": {**old["metadata"], "labels": {"a": "b"}}}

    admit(authorizer, ROLES, relabelled, old=old, operation="UPDATE")

    with pytest.raises(ApiError):
        admit(authorizer, ROLES, {**old, "rules": [rule("get", "nodes")]}, old=old, operation="UPDATE")


def test_only_somebody_with_every_right_asks_for_aggregation(store: Store, authorizer: RbacAuthorizer) -> None:
    gathering = {
        "metadata": {"name": "new"},
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]},
    }
    bind(store, "editors", "ClusterRole", "admin")
    with pytest.raises(ApiError, match="not currently held"):
        admit(authorizer, CLUSTER_ROLES, gathering)

    bind(store, "rulers", "ClusterRole", "cluster-admin")

    admit(authorizer, CLUSTER_ROLES, gathering)


def test_nobody_binds_a_role_whose_rights_they_do_not_hold(store: Store, authorizer: RbacAuthorizer) -> None:
    bind(store, "viewers", "ClusterRole", "view", namespace="default")
    admit(authorizer, ROLE_BINDINGS, new_binding("view"))

    with pytest.raises(ApiError, match="is attempting to grant RBAC permissions not currently held") as caught:
        admit(authorizer, ROLE_BINDINGS, new_binding("edit"))

    assert caught.value.code == 403


def test_an_admin_of_one_namespace_cannot_bind_for_the_cluster(store: Store, authorizer: RbacAuthorizer) -> None:
    bind(store, "admins", "ClusterRole", "admin", namespace="default")
    cluster_wide = new_binding("view") | {"metadata": {"name": "new"}}

    with pytest.raises(ApiError, match="not currently held"):
        admit(authorizer, CLUSTER_ROLE_BINDINGS, cluster_wide)


def test_the_verb_bind_lifts_the_check_for_the_roles_that_it_names(store: Store, authorizer: RbacAuthorizer) -> None:
    role(store, "binder", rule("bind", "clusterroles", groups=(RBAC,), names=("edit",)))
    bind(store, "binders", "ClusterRole", "binder")

    admit(authorizer, ROLE_BINDINGS, new_binding("edit"))

    with pytest.raises(ApiError, match="not currently held"):
        admit(authorizer, ROLE_BINDINGS, new_binding("admin"))


def test_binding_a_role_that_is_not_there_is_not_found(authorizer: RbacAuthorizer) -> None:
    with pytest.raises(ApiError) as caught:
        admit(authorizer, ROLE_BINDINGS, new_binding("absent", "Role"))

    assert (caught.value.code, caught.value.message) == (404, 'roles.rbac.authorization.k8s.io "absent" not found')


def test_a_binding_whose_role_and_subjects_stay_is_written_without_holding_it(
    store: Store, authorizer: RbacAuthorizer
) -> None:
    old = bind(store, "new", "ClusterRole", "cluster-admin", namespace="default", subject={"kind": "User", "name": "x"})
    relabelled = {**old, "metadata": {**old["metadata"], "labels": {"a": "b"}}}

    admit(authorizer, ROLE_BINDINGS, relabelled, old=old, operation="UPDATE")

    grown = {**old, "subjects": [*old["subjects"], {"kind": "User", "name": "bob"}]}
    with pytest.raises(ApiError, match="not currently held"):
        admit(authorizer, ROLE_BINDINGS, grown, old=old, operation="UPDATE")
