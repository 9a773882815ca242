"""A change reaches every key that it concerns, and the indexes are what the objects say, whatever came before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventcore.grants import ClusterRule, Grant
from eventcore.keys import ObjectKey, key
from eventcore.objects import KubeObject, PartialObject, decode_object
from eventcore.views import Change, ObjectRecord
from tests.naming import short
from workers.access import MOST_GENERATIONS, account_grant, config_grant, subject_grant, tenant_grant
from workers.names import lockdown_name
from workers.ownership import Account, Owner, is_enabled
from workers.relations import Relations
from workers.routing import Route, all_routes, route
from workers.setting_status import status_key, status_of
from workers.user_entries import annotation, listed, remembered

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = 30.0
Objects = dict[ObjectKey, dict[str, Any]]

HOMES, NAMES, TENANTS, SPACES = ("h1", "h2"), ("a", "b"), ("oil", "gas"), ("s1", "s2", "h2")


class Cluster:
    """A view in the making: each change goes through the router's step."""

    def __init__(self) -> None:
        self.relations = Relations(flux_account="gitops-reconciler")
        self.records: dict[ObjectKey, ObjectRecord] = {}
        self.sequence = 0

    def put(self, kind: str, namespace: str, name: str, body: dict[str, Any] | None) -> set[Route]:
        """Set or, with None, delete an object; return what the router asks for."""
        return route(self.change(kind, namespace, name, body), self.relations)

    def change(self, kind: str, namespace: str, name: str, body: dict[str, Any] | None) -> Change[ObjectRecord]:
        self.sequence += 1
        target = ObjectKey(kind, namespace, name)
        old = self.records.get(target)
        deleted = body is None
        metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}"} | (body or {}).get("metadata", {})
        obj: KubeObject
        if deleted:
            obj = msgspec.convert({"metadata": metadata}, PartialObject)
        else:
            obj = decode_object(kind, msgspec.json.encode((body or {}) | {"metadata": metadata}))
        new = ObjectRecord(
            key=target,
            sequence=self.sequence,
            id=str(self.sequence),
            uid=metadata["uid"],
            resource_version=str(self.sequence),
            deleted=deleted,
            time=NOW,
            body=b"",
            obj=obj,
        )
        self.records[target] = new
        return Change(old=old, new=new, sequence=self.sequence)


def from_nothing(cluster: Cluster) -> Relations:
    """Return relations that were read at once, as after a start."""
    fresh = Relations(flux_account="gitops-reconciler")
    for record in cluster.records.values():
        fresh.apply(Change(old=None, new=record, sequence=record.sequence))
    return fresh


def outcome(relations: Relations) -> dict[Route, object]:
    """Return what each key should come to, by what is known: the model that routing is measured by."""
    found: dict[Route, object] = {}
    configuration = relations.configuration
    memories = remembered(configuration.metadata.annotations) if configuration else {}
    users = listed(configuration)
    for account in memories:
        found["rbac", account.key()] = memories[account], ("ServiceAccount", account.username) in users
    for account, service_account in relations.accounts.items():
        tenants, _ = relations.owned_at(account, NOW, GRACE)
        if not is_enabled(service_account) or not tenants or relations.foreign_home(account, tenants):
            continue
        uid = service_account.metadata.uid
        entry = memories.get(account), ("ServiceAccount", account.username) in users
        why = (uid, tuple(sorted(tenants)))
        found["rbac", account.key()], found["token", account.key()] = (why, entry), why
        found["access", key("account", account.namespace, account.name)] = account_grant(relations, account, uid)
        for target in relations.targets(account, tenants):
            found["kubeconfig", key(account.namespace, account.name, target)] = uid
        for target in relations.lockdown_targets(account, tenants):
            found["rbac", key(account.namespace, account.name, target)] = why
    grants: list[Grant | None] = [tenant_grant(relations, name) for name in relations.tenants]
    subjects = {owner for name in relations.tenants for owner in relations.owners(name).all}
    subjects |= relations.settings.subjects.all() | relations.bindings.subjects.all()
    grants += [subject_grant(relations, owner, NOW, GRACE, gate=True, reflects=True)[0] for owner in subjects]
    grants.append(config_grant(relations.configuration))
    found |= {("access", grant.key()): grant for grant in grants if grant is not None}
    for place, one in relations.settings.all.items():
        (condition,) = status_of(one, relations, config_grant(relations.configuration), gate=True).conditions
        found["access", status_key(place)] = (condition.status, condition.reason, condition.message)
    return found


accounts = st.builds(Account, st.sampled_from(HOMES), st.sampled_from(NAMES))
labels = st.dictionaries(st.just("owner.projectcapsule.dev/promote"), st.just("true"), max_size=1)
enabled = st.dictionaries(st.just("capsule.addon.fluxcd/enabled"), st.sampled_from(["true", "false"]), max_size=1)
opted = st.dictionaries(st.just("capsule.addon.fluxcd/kubeconfig-global"), st.just("false"), max_size=1)
owners = st.one_of(
    accounts.map(lambda account: {"kind": "ServiceAccount", "name": account.username}),
    st.sampled_from(HOMES).map(lambda home: {"kind": "Group", "name": f"system:serviceaccounts:{home}"}),
    st.sampled_from([{"kind": "User", "name": "dana"}, {"kind": "ServiceAccount", "name": "malformed"}]),
)
bound = st.one_of(
    accounts.map(lambda account: {"kind": "ServiceAccount", "name": account.name, "namespace": account.namespace}),
    st.sampled_from([{"kind": "User", "name": "dana"}, {"kind": "Group", "name": "system:serviceaccounts:h1"}]),
)
uids = st.sampled_from(["u1", "u2"])


resources = st.fixed_dictionaries(
    {
        "apiGroups": st.just(["*"]),
        "resources": st.sampled_from([["nodes"], ["*"]]),
        "operations": st.sampled_from([["Get"], ["List"], []]),
        "selector": st.sampled_from([{"matchLabels": {"a": "b"}}, {}]),
    }
)


WATCHED = ("ServiceAccount", "Namespace", "Tenant", "TenantOwner", "CapsuleConfiguration", "ProxySetting", "Secret")
Step = tuple[str, str, str, dict[str, Any] | None]


@st.composite
def changes(draw: st.DrawFn) -> Step:
    """Draw one object as it becomes, None: deleted."""
    kind = draw(
        st.sampled_from(
            [
                "ServiceAccount",
                "Namespace",
                "Tenant",
                "TenantOwner",
                "CapsuleConfiguration",
                "ProxySetting",
                "GlobalProxySettings",
                "Secret",
                "RoleBinding",
                "AnyRoleBinding",
            ]
        )
    )
    namespace, name, body = "", "", dict[str, Any]()
    match kind:
        case "ServiceAccount":
            account = draw(accounts)
            namespace, name = account.namespace, account.name
            metadata = {"uid": draw(uids), "labels": draw(labels), "annotations": draw(enabled) | draw(opted)}
            body = {"metadata": metadata}
        case "Namespace":
            name = draw(st.sampled_from(SPACES))
            tenant = draw(st.sampled_from(TENANTS))
            label = draw(st.sampled_from([tenant, tenant, *TENANTS]))
            reference = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "name": tenant}
            reference["uid"] = draw(uids)
            marks = {"labels": {"capsule.clastix.io/tenant": label}, "ownerReferences": [reference]}
            body = {"metadata": draw(st.sampled_from([marks, marks, {}]))}
        case "Tenant":
            name = draw(st.sampled_from(TENANTS))
            deleting = draw(st.sampled_from([{}, {}, {"deletionTimestamp": NOW}]))
            generation = draw(st.integers(1, 2))
            status: dict[str, Any] = draw(st.sampled_from([{}, {"owners": [draw(owners)], "observedGeneration": 2}]))
            classes = draw(st.sampled_from([{}, {"storageClasses": {"allowed": ["fast"]}}]))
            may = draw(st.sampled_from([{}, {"proxySettings": [{"kind": "Nodes", "operations": ["List"]}]}]))
            named = [owner | may for owner in draw(st.lists(owners, max_size=2))]
            selecting = draw(st.sampled_from([{}, {"matchOwners": [{"matchLabels": {"team": "x"}}]}]))
            permitting = draw(st.sampled_from([{}, {"capsule-tether.io/cluster-resources": "true"}]))
            body = {
                "metadata": {"uid": draw(uids), "generation": generation, "annotations": permitting} | deleting,
                "spec": {"owners": named, "permissions": selecting} | classes,
                "status": status,
            }
        case "TenantOwner":
            name = draw(st.sampled_from(["to1", "to2"]))
            found: dict[str, str] = draw(st.sampled_from([{"team": "x"}, {"projectcapsule.dev/tenant": "oil"}, {}]))
            body = {"metadata": {"labels": found}, "spec": draw(owners)}
        case "ProxySetting":
            namespace, name = draw(st.sampled_from(SPACES)), "settings"
            given = [{"kind": "Nodes", "operations": draw(st.sampled_from([["List"], ["List", "Update"]]))}]
            subjects = draw(st.lists(owners, min_size=1, max_size=2))
            chosen = {"proxySettings": given, "clusterResources": draw(st.lists(resources, max_size=1))}
            body = {"spec": {"subjects": [subject | chosen for subject in subjects]}}
        case "GlobalProxySettings":
            name = "settings"
            ruled: dict[str, Any] = {"subjects": draw(st.lists(owners, min_size=1, max_size=2))}
            ruled["clusterResources"] = draw(st.lists(resources, min_size=1, max_size=2))
            body = {"spec": {"rules": [ruled]}}
        case "CapsuleConfiguration":
            name = "default"
            named = [{"kind": "ServiceAccount", "name": one.username} for one in draw(st.lists(accounts, max_size=2))]
            memory = {annotation(one): f"users {one} oil" for one in draw(st.lists(accounts, max_size=2))}
            users = [*named, *draw(st.lists(owners, max_size=1))]
            body = {
                "metadata": {"annotations": memory},
                "spec": {"allowServiceAccountPromotion": draw(st.booleans()), "users": users},
            }
        case "RoleBinding":
            account = draw(accounts)
            name, namespace = lockdown_name(account), draw(st.sampled_from(SPACES))
            marks = {"labels": {"capsule-tether.io/component": "rbac"}}
            body = {"metadata": marks | {"annotations": {"capsule-tether.io/account": str(account)}}}
        case "AnyRoleBinding":
            name, namespace = draw(st.sampled_from(NAMES)), draw(st.sampled_from(SPACES))
            shared: dict[str, str] = draw(
                st.sampled_from([{}, {"reflection.proxy.projectcapsule.dev/enabled": "true"}])
            )
            body = {"metadata": {"labels": shared}, "subjects": draw(st.lists(bound, max_size=2))}
        case _:
            account = draw(accounts)
            binding = draw(st.booleans())
            name = f"{account.name}-token-1" if binding else f"{account.name}-kubeconfig"
            namespace = account.namespace if binding else draw(st.sampled_from(SPACES))
            annotations = {"capsule-tether.io/account": str(account)}
            if binding:
                uid = draw(uids)
                annotations |= {"capsule-tether.io/generation": "1", "capsule-tether.io/account-uid": uid}
            component = "token" if binding else "kubeconfig"
            body = {
                "metadata": {"labels": {"capsule-tether.io/component": component}, "annotations": annotations},
            }
    return kind, namespace, name, draw(st.sampled_from([body, body, body, None]))


@settings(max_examples=150)
@given(st.lists(changes(), max_size=25))
def test_what_came_before_leaves_no_trace_in_the_indexes(
    steps: list[Step],
) -> None:
    cluster = Cluster()
    for step in steps:
        cluster.relations.apply(cluster.change(*step))

    fresh = from_nothing(cluster)
    assert {t: cluster.relations.namespaces_of(t) for t in TENANTS} == {t: fresh.namespaces_of(t) for t in TENANTS}
    assert cluster.relations.interesting() == fresh.interesting()
    for home in (*HOMES, *SPACES):
        assert cluster.relations.interesting_in(home) == fresh.interesting_in(home)
        assert cluster.relations.copies_in(home) == fresh.copies_in(home)
        assert cluster.relations.lockdown_in(home) == fresh.lockdown_in(home)
        assert cluster.relations.promoted_in(home) == fresh.promoted_in(home)
    for tenant in TENANTS:
        # What the spec has just lost does not count as stale; that alone is remembered.
        assert cluster.relations.owners(tenant).certain <= fresh.owners(tenant).certain
        assert cluster.relations.owners(tenant).stale <= fresh.owners(tenant).stale
        for owner in cluster.relations.owners(tenant).all:
            assert tenant in cluster.relations.tenants_of(owner)


@settings(max_examples=200)
@given(st.lists(changes(), max_size=25))
def test_a_change_reaches_every_key_that_comes_to_something_else(
    steps: list[Step],
) -> None:
    cluster = Cluster()
    before = outcome(cluster.relations)
    for step in steps:
        routes = cluster.put(*step)
        after = outcome(cluster.relations)
        changed = {one for one in before.keys() | after.keys() if before.get(one) != after.get(one)}
        # What is not wanted any more in a namespace is found by the object that lies there.
        changed = {one for one in changed if not _is_targeted(one) or one in after or _lies_there(cluster, one)}
        # What is gone has no status.
        changed = {one for one in changed if one[1].parts[0] != "status" or one in after}
        assert changed <= routes, step
        assert set(after) <= all_routes(cluster.relations)
        before = after


def _is_targeted(one: Route) -> bool:
    return one[0] in {"kubeconfig", "rbac"} and len(one[1].parts) > len(Account("", "").key().parts)


def _lies_there(cluster: Cluster, one: Route) -> bool:
    account, target = Account.of_key(one[1]), one[1].parts[2]
    return any(o.key.namespace == target for o in cluster.relations.objects_of(account, one[0]))


def guide() -> Cluster:
    """Return the guide's example as OBJECTS shows it."""
    cluster = Cluster()
    user = "system:serviceaccount:oil-system:gitops-reconciler"
    reference = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "name": "oil", "uid": "uid-oil"}
    metadata = {"labels": {"capsule.clastix.io/tenant": "oil"}, "ownerReferences": [reference]}
    annotations = {"capsule.addon.fluxcd/enabled": "true"}
    cluster.put("Namespace", "", "oil-system", {})
    cluster.put("ServiceAccount", "oil-system", "gitops-reconciler", {"metadata": {"annotations": annotations}})
    cluster.put("Tenant", "", "oil", {"spec": {"owners": [{"kind": "ServiceAccount", "name": user}]}})
    cluster.put("Namespace", "", "oil-production", {"metadata": metadata})
    return cluster


ACCOUNT = key("oil-system", "gitops-reconciler")


def test_a_namespace_that_leaves_reaches_the_tenant_and_the_accounts_that_it_left() -> None:
    cluster = guide()

    routes = cluster.put("Namespace", "", "oil-production", {})

    assert ("access", key("tenant", "oil")) in routes
    assert ("kubeconfig", key("oil-system", "gitops-reconciler", "oil-production")) in routes


def setting(*operations: str, name: str = "dana") -> dict[str, Any]:
    given = [{"kind": "Nodes", "operations": list(operations)}]
    return {"spec": {"subjects": [{"kind": "User", "name": name, "proxySettings": given}]}}


def owning(*operations: str, name: str = "system:serviceaccount:oil-system:gitops-reconciler") -> dict[str, Any]:
    given = [{"kind": "Nodes", "operations": list(operations)}]
    return {"kind": "ServiceAccount", "name": name, "proxySettings": given}


def test_a_proxy_setting_in_a_tenants_namespace_makes_its_subject_as_an_owner_to_the_proxy() -> None:
    cluster = guide()
    dana = Owner("User", "dana")
    route_of_dana = ("access", key("subject", "User", "dana"))

    cluster.put("Tenant", "", "oil", {"spec": {"owners": [owning("List", "Delete")]}})
    status = ("access", key("status", "ProxySetting", "oil-production", "s"))
    assert cluster.put("ProxySetting", "oil-production", "s", setting("List")) == {route_of_dana, status}
    given = subject_grant(cluster.relations, dana, NOW, GRACE)[0]
    assert given is not None
    assert (given.tenants, given.operations) == (("oil",), {"oil": {"Nodes": ("List",)}})

    assert cluster.put("ProxySetting", "oil-production", "s", setting("Delete", name="erin")) == {
        route_of_dana,
        ("access", key("subject", "User", "erin")),
        status,
    }
    assert subject_grant(cluster.relations, dana, NOW, GRACE) == (None, None)
    assert ("access", key("subject", "User", "erin")) in all_routes(cluster.relations)


def test_a_status_that_changes_alone_reaches_only_itself() -> None:
    cluster = guide()
    cluster.put("ProxySetting", "oil-production", "s", setting("List"))
    rules = {"rules": [{"subjects": [{"kind": "User", "name": "dana"}], "clusterResources": []}]}
    cluster.put("GlobalProxySettings", "", "g", {"spec": rules})
    ready = {"status": {"observedGeneration": 1}}

    assert cluster.put("ProxySetting", "oil-production", "s", setting("List") | ready) == {
        ("access", key("status", "ProxySetting", "oil-production", "s"))
    }
    assert cluster.put("GlobalProxySettings", "", "g", {"spec": rules} | ready) == {
        ("access", key("status", "GlobalProxySettings", "", "g"))
    }


def test_a_tenant_that_permits_cluster_resources_reaches_whom_its_settings_name() -> None:
    cluster = guide()
    user = "system:serviceaccount:oil-system:gitops-reconciler"
    tenant = {"spec": {"owners": [{"kind": "ServiceAccount", "name": user}]}}
    chosen = {"apiGroups": ["*"], "resources": ["*"], "selector": {"matchLabels": {"a": "b"}}}
    subjects = [{"kind": "User", "name": "dana", "clusterResources": [chosen]}]
    cluster.put("ProxySetting", "oil-production", "s", {"spec": {"subjects": subjects}})
    dana = Owner("User", "dana")

    def rules() -> tuple[ClusterRule, ...]:
        given = subject_grant(cluster.relations, dana, NOW, GRACE, gate=True)[0]
        return given.rules if given else ()

    # What a tenant can write by itself gives nothing.
    assert rules() == ()
    permitted = {"metadata": {"annotations": {"capsule-tether.io/cluster-resources": "true"}}}
    for body, wanted in ((tenant | permitted, 1), (tenant, 0)):
        routes = cluster.put("Tenant", "", "oil", body)

        assert ("access", key("subject", "User", "dana")) in routes
        assert ("access", key("status", "ProxySetting", "oil-production", "s")) in routes
        assert len(rules()) == wanted
        assert all(rule.tenant == "oil" for rule in rules())


def test_a_proxy_setting_counts_only_while_its_namespace_is_the_tenants() -> None:
    cluster = guide()
    dana = Owner("User", "dana")
    cluster.put("ProxySetting", "elsewhere", "s", setting("List"))
    assert subject_grant(cluster.relations, dana, NOW, GRACE) == (None, None)
    cluster.put("ProxySetting", "oil-production", "s", setting("List"))

    routes = cluster.put("Namespace", "", "oil-production", {})

    assert ("access", key("subject", "User", "dana")) in routes
    assert subject_grant(cluster.relations, dana, NOW, GRACE) == (None, None)


def test_what_a_proxy_setting_gives_ends_at_what_the_tenant_gives_to_every_owner() -> None:
    cluster = guide()
    user = "system:serviceaccount:oil-system:gitops-reconciler"
    account, dana = Owner("ServiceAccount", user), Owner("User", "dana")
    both = [{"kind": one.kind, "name": one.name} for one in (account, dana)]
    given = [
        {"kind": kind, "operations": ["List", "Update", "Delete"]}
        for kind in ("Nodes", "StorageClasses", "PersistentVolumes")
    ]
    spec = {"subjects": [one | {"proxySettings": given} for one in both]}
    routes_of_both = {("access", key("subject", one.kind, one.name)) for one in (account, dana)}
    status = ("access", key("status", "ProxySetting", "oil-production", "s"))

    def operations(owner: Owner) -> dict[str, tuple[str, ...]]:
        found = subject_grant(cluster.relations, owner, NOW, GRACE)[0]
        assert found is not None
        assert found.tenants == ("oil",)
        return found.operations.get("oil", {})

    # Given a tenant of the guide, then its account gives nothing to itself, nor to anybody else
    cluster.put("ProxySetting", "oil-production", "s", {"spec": spec})
    assert operations(account) == operations(dana) == {}

    # When the Tenant gives its owner something, then the owner hands on that and no more
    routes = cluster.put("Tenant", "", "oil", {"spec": {"owners": [owning("List", "Update")]}})
    assert routes >= {*routes_of_both, status}
    assert operations(account) == operations(dana) == {"Nodes": ("List", "Update")}

    # And what one owner has and another has not, neither hands on: nobody knows who wrote it
    second = owning("List", name="system:serviceaccount:oil-system:second")
    for other, wanted in ((second, ("List",)), ({"kind": "User", "name": "erin"}, ())):
        assert status in cluster.put("Tenant", "", "oil", {"spec": {"owners": [owning("List", "Update"), other]}})
        assert operations(dana) == ({"Nodes": wanted} if wanted else {})
    assert operations(account) == {"Nodes": ("List", "Update")}  # its own, by the administrator's hand

    # Nor does one that an administrator brings otherwise
    cluster.put("Tenant", "", "oil", {"spec": {"owners": [owning("List")]}})
    assert operations(dana) == {"Nodes": ("List",)}
    brought = {"metadata": {"labels": {"projectcapsule.dev/tenant": "oil"}}, "spec": {"kind": "User", "name": "erin"}}
    assert cluster.put("TenantOwner", "", "to", brought) >= {*routes_of_both, status}
    assert operations(dana) == {}

    # But where the Tenant permits it, all counts
    permitted = {"metadata": {"annotations": {"capsule-tether.io/cluster-resources": "true"}}}
    assert cluster.put("Tenant", "", "oil", {"spec": {"owners": [owning("List")]}} | permitted) >= routes_of_both
    assert operations(dana) == {one["kind"]: ("List", "Update", "Delete") for one in given}


def test_a_status_that_capsule_writes_concerns_nobody() -> None:
    cluster = guide()
    user = "system:serviceaccount:oil-system:gitops-reconciler"
    spec = {"owners": [{"kind": "ServiceAccount", "name": user}]}

    routes = cluster.put("Tenant", "", "oil", {"spec": spec, "status": {"namespaces": ["oil-production"]}})

    assert routes == set()


def test_an_account_without_the_annotation_and_without_objects_of_ours_concerns_nobody() -> None:
    cluster = guide()

    assert cluster.put("ServiceAccount", "oil-production", "default", {}) == set()


def test_a_token_that_is_another_one_reaches_every_kubeconfig_and_a_touched_one_only_the_token() -> None:
    cluster = guide()
    marks = {
        "labels": {"capsule-tether.io/component": "token"},
        "annotations": {"capsule-tether.io/account": "oil-system/gitops-reconciler", "capsule-tether.io/digest": "1"},
    }
    copies = {
        ("kubeconfig", key("oil-system", "gitops-reconciler", space)) for space in ("oil-system", "oil-production")
    }

    assert copies < cluster.put("Secret", "oil-system", "gitops-reconciler-token", {"metadata": marks})
    assert cluster.put("Secret", "oil-system", "gitops-reconciler-token", {"metadata": marks}) == {
        ("token", ACCOUNT),
        ("access", key("account", "oil-system", "gitops-reconciler")),
    }
    marks["annotations"]["capsule-tether.io/digest"] = "2"
    assert copies < cluster.put("Secret", "oil-system", "gitops-reconciler-token", {"metadata": marks})


def test_another_ca_reaches_every_kubeconfig_and_nothing_else() -> None:
    routes = guide().put("CASecret", "capsule-system", "capsule-proxy", {})

    assert routes == {
        ("kubeconfig", key("oil-system", "gitops-reconciler", space)) for space in ("oil-system", "oil-production")
    }


def test_objects_of_ours_whose_account_is_gone_are_still_looked_at() -> None:
    cluster = guide()
    marks = {
        "labels": {"capsule-tether.io/component": "kubeconfig"},
        "annotations": {"capsule-tether.io/account": "gone/deployer"},
    }
    cluster.put("Secret", "oil-production", "deployer-kubeconfig", {"metadata": marks})

    routes = all_routes(cluster.relations)

    assert ("kubeconfig", key("gone", "deployer", "oil-production")) in routes
    assert ("token", key("gone", "deployer")) in routes


@pytest.mark.parametrize("generation", ["7", "9" * 24, "9" * 5000], ids=short)
@pytest.mark.parametrize(("kind", "component"), [("Secret", "token"), ("RoleBinding", "rbac"), ("Secret", "rbac")])
def test_what_somebody_marks_elsewhere_with_an_account_of_others_does_not_concern_it(
    kind: str, component: str, generation: str
) -> None:
    cluster = guide()
    before = all_routes(cluster.relations)
    marks = {
        "labels": {"capsule-tether.io/component": component},
        "annotations": {
            "capsule-tether.io/account": "oil-system/gitops-reconciler",
            "capsule-tether.io/generation": generation,
            "capsule-tether.io/account-uid": "uid-gitops-reconciler",
        },
    }

    assert cluster.put(kind, "oil-production", "gitops-reconciler-token-7", {"metadata": marks}) == set()
    assert cluster.relations.objects_of(Account("oil-system", "gitops-reconciler")) == []
    assert all_routes(cluster.relations) == before
    # Nor does that of an account that is not there make work.
    marks["annotations"]["capsule-tether.io/account"] = "nowhere/nobody"
    assert cluster.put(kind, "oil-production", "gitops-reconciler-token-7", {"metadata": marks}) == set()
    assert all_routes(cluster.relations) == before


def test_only_secrets_that_are_named_by_their_generation_are_in_the_grant() -> None:
    cluster = guide()
    account = Account("oil-system", "gitops-reconciler")
    for name, generation in [
        ("gitops-reconciler-token-2", "2"),
        ("gitops-reconciler-token-3", "9" * 24),
        ("gitops-reconciler-token-4", "9" * 5000),
        ("mine", "5"),
        *((f"gitops-reconciler-token-{number}", str(number)) for number in range(100, 300)),
    ]:
        marks = {
            "labels": {"capsule-tether.io/component": "token"},
            "annotations": {
                "capsule-tether.io/account": str(account),
                "capsule-tether.io/generation": generation,
                "capsule-tether.io/account-uid": "u1",
            },
        }
        cluster.put("Secret", "oil-system", name, {"metadata": marks})

    # Of more than Tether would make, the newest.
    named = [secret.generation for secret in account_grant(cluster.relations, account, "u1").secrets]
    assert named == list(range(300 - MOST_GENERATIONS, 300))
    for number in range(100, 300):
        cluster.put("Secret", "oil-system", f"gitops-reconciler-token-{number}", None)
    assert [secret.generation for secret in account_grant(cluster.relations, account, "u1").secrets] == [2]


def test_a_promoted_account_owns_the_tenant_of_its_namespace_while_it_is_the_tenants() -> None:
    # given promotion is allowed, and an account of the tenant's namespace carries the label
    cluster = guide()
    namespace = cluster.records[ObjectKey("Namespace", "", "oil-production")].obj
    promoted = Owner("ServiceAccount", "system:serviceaccount:oil-production:deployer")
    label = {"metadata": {"labels": {"owner.projectcapsule.dev/promote": "true"}}}
    routes = cluster.put("ServiceAccount", "oil-production", "deployer", label)
    assert cluster.relations.tenants_of(promoted) == set()
    routes = cluster.put("CapsuleConfiguration", "", "default", {"spec": {"allowServiceAccountPromotion": True}})
    assert cluster.relations.tenants_of(promoted) == {"oil"}
    assert ("access", key("subject", *msgspec.structs.astuple(promoted))) in routes

    # when the namespace leaves, and when it comes back
    routes = cluster.put("Namespace", "", "oil-production", {})
    assert cluster.relations.tenants_of(promoted) == set()
    assert ("access", key("subject", *msgspec.structs.astuple(promoted))) in routes
    cluster.put("Namespace", "", "oil-production", msgspec.to_builtins(namespace))
    assert cluster.relations.tenants_of(promoted) == {"oil"}

    # and when the label goes
    routes = cluster.put("ServiceAccount", "oil-production", "deployer", {})
    assert cluster.relations.tenants_of(promoted) == set()
    assert ("access", key("subject", *msgspec.structs.astuple(promoted))) in routes


@pytest.mark.parametrize("ends", ["label", "configuration", "tenant"])
def test_a_promotion_that_is_over_counts_no_more_even_if_the_status_still_names_the_account(ends: str) -> None:
    # given a Capsule that tells in the status whom promotion makes an owner
    cluster = guide()
    promoted = Owner("ServiceAccount", "system:serviceaccount:oil-production:deployer")
    label = {"metadata": {"labels": {"owner.projectcapsule.dev/promote": "true"}}}
    cluster.put("ServiceAccount", "oil-production", "deployer", label)
    cluster.put("CapsuleConfiguration", "", "default", {"spec": {"allowServiceAccountPromotion": True}})
    body = msgspec.to_builtins(cluster.records[ObjectKey("Tenant", "", "oil")].obj)
    body["status"] = {"owners": [{"kind": promoted.kind, "name": promoted.name}]}
    cluster.put("Tenant", "", "oil", body)
    assert cluster.relations.tenants_of(promoted) == {"oil"}

    # when it ends
    match ends:
        case "label":
            routes = cluster.put("ServiceAccount", "oil-production", "deployer", {})
        case "configuration":
            routes = cluster.put("CapsuleConfiguration", "", "default", {})
        case _:
            body["spec"]["permissions"] = {"allowOwnerPromotion": False}
            routes = cluster.put("Tenant", "", "oil", body)

    # then the account owns nothing
    assert cluster.relations.tenants_of(promoted) == set()
    assert ("access", key("subject", *msgspec.structs.astuple(promoted))) in routes


def _with_status(observed: int, *names: str, spec: tuple[str, ...] = ()) -> dict[str, Any]:
    def users(found: tuple[str, ...]) -> list[dict[str, str]]:
        return [{"kind": "User", "name": name} for name in found]

    return {
        "metadata": {"generation": 2},
        "spec": {"owners": users(spec)},
        "status": {"observedGeneration": observed, "owners": users(names)},
    }


def test_owners_in_a_stale_status_count_for_the_grace_and_not_after() -> None:
    cluster = Cluster()
    cluster.put("Tenant", "", "oil", _with_status(1, "dana"))
    owner = Owner("User", "dana")

    grant, ends = subject_grant(cluster.relations, owner, NOW + timedelta(seconds=29), 30)
    assert grant is not None
    assert ends == NOW + timedelta(seconds=30)
    assert subject_grant(cluster.relations, owner, NOW + timedelta(seconds=30), 30) == (None, None)
    cluster.put("Tenant", "", "oil", _with_status(2, "dana"))
    assert subject_grant(cluster.relations, owner, NOW + timedelta(days=1), 30)[0] is not None


def test_who_is_an_owner_by_the_status_alone_is_looked_at_when_that_is_outdated_and_when_it_is_no_longer() -> None:
    cluster = Cluster()
    cluster.put("Tenant", "", "oil", _with_status(2, "dana", "omar", spec=("omar",)))
    dana, omar = (("access", key("subject", "User", name)) for name in ("dana", "omar"))

    outdated = cluster.put("Tenant", "", "oil", _with_status(1, "dana", "omar", spec=("omar",)))
    current = cluster.put("Tenant", "", "oil", _with_status(2, "dana", "omar", spec=("omar",)))

    # Nothing else tells that the grace began, or that it is over.
    assert dana in outdated
    assert dana in current
    assert omar not in outdated | current


@pytest.mark.parametrize("observed", [0, 1])
def test_an_owner_that_the_spec_has_lost_is_gone_whatever_the_status_still_says(observed: int) -> None:
    cluster = Cluster()
    cluster.put("Tenant", "", "oil", _with_status(2, "dana", "omar", spec=("dana", "omar")))

    routes = cluster.put("Tenant", "", "oil", _with_status(observed, "dana", "omar", spec=("omar",)))

    assert cluster.relations.tenants_of(Owner("User", "dana")) == set()
    assert ("access", key("subject", "User", "dana")) in routes


def test_a_home_that_becomes_a_member_or_is_one_no_more_reaches_all_that_its_account_has() -> None:
    # given the guide's account with a copy in its tenant, and a Tenant of somebody else
    cluster = guide()
    cluster.put("Tenant", "", "gas", {"spec": {"owners": [{"kind": "User", "name": "dana"}]}})
    account = Account("oil-system", "gitops-reconciler")
    everything = {
        ("rbac", account.key()),
        ("token", account.key()),
        ("access", key("account", "oil-system", "gitops-reconciler")),
        ("kubeconfig", key("oil-system", "gitops-reconciler", "oil-system")),
        ("kubeconfig", key("oil-system", "gitops-reconciler", "oil-production")),
        ("rbac", key("oil-system", "gitops-reconciler", "oil-production")),
    }
    reference = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "name": "gas", "uid": "uid-gas"}
    member = {"metadata": {"labels": {"capsule.clastix.io/tenant": "gas"}, "ownerReferences": [reference]}}
    gas = {"spec": {"owners": [{"kind": "User", "name": "dana"}]}}

    # when its home joins that Tenant, the Tenant goes and comes, it is another one, the home leaves; then all is routed
    steps: list[tuple[Step, str]] = [
        (("Namespace", "", "oil-system", member), "gas"),
        (("Tenant", "", "gas", None), ""),
        (("Tenant", "", "gas", gas), "gas"),
        (("Tenant", "", "gas", gas | {"metadata": {"uid": "another"}}), ""),
        (("Tenant", "", "gas", gas), "gas"),
        (("Tenant", "", "gas", gas | {"metadata": {"deletionTimestamp": NOW}}), ""),
        (("Tenant", "", "gas", gas), "gas"),
        (("Namespace", "", "oil-system", {}), ""),
    ]
    for step, foreign in steps:
        assert cluster.put(*step) >= everything, step
        assert cluster.relations.foreign_home(account, {"oil"}) == foreign

    # and when the account becomes an owner of the Tenant that its home is a member of
    cluster.put("Namespace", "", "oil-system", member)
    own = {"kind": "ServiceAccount", "name": account.username}
    assert cluster.put("Tenant", "", "gas", {"spec": {"owners": [own]}}) >= everything
    assert cluster.relations.foreign_home(account, {"oil", "gas"}) == ""
