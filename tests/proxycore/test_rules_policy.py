"""Scopes and the cutting of answers, against small models of their own: nobody is shown what is not theirs."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventcore.grants import (
    CapsuleUserRef,
    Choice,
    ClusterRule,
    ConfigGrant,
    Grant,
    SelectorTerm,
    SubjectGrant,
    TenantGrant,
    decode_grant,
    encode_grant,
)
from eventcore.keys import Key
from proxycore.documents import View, filter_list, filter_one
from proxycore.identities import Identity
from proxycore.kinds import NAMESPACE_KIND, ruled_kind_of
from proxycore.policy import Filtered, Forward, Freshness, ListUpstream, ReadOne, Refuse, decide
from proxycore.requestinfo import parse
from proxycore.rule_matching import names_group
from proxycore.rules import Scope, Seen, scope_of
from proxycore.statuses import RefusedError

FRESH = Freshness(ready=True, age=1.0)
PATHS = {
    "Nodes": "/api/v1/nodes",
    "StorageClasses": "/apis/storage.k8s.io/v1/storageclasses",
    "PersistentVolumes": "/api/v1/persistentvolumes",
    "Tenant": "/apis/capsule.clastix.io/v1beta2/tenants",
    "Namespaces": "/api/v1/namespaces",
    "": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
}
"""By the kind's name in proxySettings; Namespaces and what rules alone speak of have none."""
SETTINGS = ["Nodes", "StorageClasses", "PersistentVolumes", "Tenant"]
USERS = ["dana", "erin", "system:serviceaccount:a:b"]
GROUPS = ["devs", "ops"]
TENANTS = ["oil", "gas", "global"]
NAMES = ["a", "b", "ab", "c"]
SPACES = ["oil-1", "gas-1"]
VERBS = {"GET": "Get", "PUT": "Update", "PATCH": "Update", "DELETE": "Delete"}


class Memory:
    """Grants in a dict."""

    def __init__(self, *grants: Grant) -> None:
        self.grants: dict[Key, Grant] = {grant.key(): grant for grant in grants}

    def get(self, target: Key, /) -> Grant | None:
        return self.grants.get(target)


terms = st.builds(
    lambda key, operator, values: SelectorTerm(
        key=key, operator=operator, values=tuple(sorted(values)) if operator in {"In", "NotIn"} else ()
    ),
    st.sampled_from(["for", "tier"]),
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist", "Near"]),
    st.sets(st.sampled_from(["oil", "gas"]), min_size=1),
)
choices = st.builds(
    lambda names, pattern, selectors: Choice(
        names=tuple(sorted(names)), pattern=pattern, selectors=tuple(tuple(one) for one in selectors)
    ),
    st.sets(st.sampled_from(NAMES), max_size=2),
    st.sampled_from(["", "^a", "b$", "(", "c|a"]),
    st.lists(st.lists(terms, max_size=2), max_size=2),
)
operations = st.dictionaries(
    st.sampled_from(SETTINGS),
    st.sets(st.sampled_from(["List", "Update", "Delete"])).map(lambda found: tuple(sorted(found))),
)
rules = st.builds(
    lambda groups, resources, selector, lists, tenant: ClusterRule(
        groups=tuple(sorted(groups)),
        resources=tuple(sorted(resources)),
        selector=tuple(selector),
        lists=lists,
        tenant=tenant,
    ),
    st.sets(st.sampled_from(["", "*", "storage.k8s.io", "*.k8s.io", "rbac.*/v1", "/v1", "*/v2", "other"]), max_size=2),
    st.sets(st.sampled_from(["*", "nodes", "storageclasses", "clusterroles", "namespaces", "tenants"]), max_size=2),
    st.lists(terms, max_size=2),
    st.booleans(),
    st.sampled_from(["", *TENANTS]),
)
memories = st.builds(
    lambda owners, tenants: Memory(
        ConfigGrant(users=tuple(CapsuleUserRef(kind="Group", name=name) for name in ("system:authenticated",))),
        *(
            SubjectGrant(
                subject_kind=kind, name=name, tenants=tuple(sorted(given)), operations=given, rules=tuple(ruled)
            )
            for (kind, name), (given, ruled) in owners.items()
        ),
        *(
            TenantGrant(name=name, uid="u", namespaces=tuple(sorted(spaces)), choices=allowed)
            for name, (spaces, allowed) in tenants.items()
        ),
    ),
    st.dictionaries(
        st.one_of(
            st.tuples(st.sampled_from(["User", "ServiceAccount"]), st.sampled_from(USERS)),
            st.tuples(st.just("Group"), st.sampled_from(GROUPS)),
        ),
        st.tuples(st.dictionaries(st.sampled_from(TENANTS), operations), st.lists(rules, max_size=3)),
    ),
    st.dictionaries(
        st.sampled_from(TENANTS),
        st.tuples(
            st.sets(st.sampled_from(SPACES)),
            st.dictionaries(st.sampled_from(["Nodes", "StorageClasses"]), choices),
        ),
    ),
)
identities = st.builds(
    lambda user, groups: Identity(user=user, groups=(*sorted(groups), "system:authenticated")),
    st.sampled_from(USERS),
    st.sets(st.sampled_from(GROUPS)),
)
objects = st.fixed_dictionaries(
    {
        "name": st.sampled_from([*NAMES, *TENANTS, *SPACES]),
        "labels": st.dictionaries(
            st.sampled_from(["for", "tier", "capsule.clastix.io/tenant"]), st.sampled_from(["oil", "gas"])
        ),
        "claim": st.sampled_from(["", *SPACES]),
    }
)


def model(memory: Memory, who: Identity, setting: str, operation: str, one: dict[str, Any]) -> bool:
    """Say in another way whether somebody may do a thing: go through every grant and ask whether it speaks of it."""
    for grant in memory.grants.values():
        if not isinstance(grant, SubjectGrant):
            continue
        own = {"ServiceAccount", "User"} if who.user.count(":") == 3 else {"User"}
        if not (grant.subject_kind in own and grant.name == who.user) and not (
            grant.subject_kind == "Group" and grant.name in who.groups
        ):
            continue
        alive = {one.name for one in memory.grants.values() if isinstance(one, TenantGrant)}
        if any(rule.tenant in {"", *alive} and names(rule, setting, operation, one) for rule in grant.rules):
            return True
        for tenant in memory.grants.values():
            if not isinstance(tenant, TenantGrant) or tenant.name not in grant.tenants:
                continue
            if setting == "Namespaces":
                if one["name"] in tenant.namespaces and operation in {"Get", "List"}:
                    return True
                continue
            if setting == "Tenant":
                if one["name"] == tenant.name and operation in {"Get", "List"}:
                    return True
                continue
            given = grant.operations.get(tenant.name, {}).get(setting, ())
            asked = "List" if operation == "Get" else operation
            if "List" in given and asked in given and chosen(tenant, setting, one):
                return True
    return False


def names(rule: ClusterRule, setting: str, operation: str, one: dict[str, Any]) -> bool:
    """Say whether a rule gives an operation on an object of a kind."""
    _, *parts = PATHS[setting].strip("/").split("/")
    group, version, resource = parts if len(parts) == 3 else ("", *parts)
    by_group = any(
        fnmatchcase(f"{group}/{version}" if "/" in pattern else group, pattern) and pattern.count("/") < 2
        for pattern in rule.groups
    )
    return (
        by_group
        and (resource in rule.resources or "*" in rule.resources)
        and (operation == "Get" or (operation == "List" and rule.lists))
        and bool(rule.selector)
        and holds(rule.selector, one["labels"])
    )


def chosen(tenant: TenantGrant, setting: str, one: dict[str, Any]) -> bool:
    label = one["labels"].get("capsule.clastix.io/tenant", "")
    if setting == "PersistentVolumes":
        by_claim = one["claim"] in tenant.namespaces
        return by_claim and label in {"", tenant.name} if one["claim"] else label == tenant.name
    choice = tenant.choices.get(setting, Choice())
    by_pattern = choice.pattern not in {"", "("} and re.search(choice.pattern, one["name"]) is not None
    return one["name"] in choice.names or by_pattern or any(holds(s, one["labels"]) for s in choice.selectors)


def holds(selector: tuple[SelectorTerm, ...], labels: dict[str, str]) -> bool:
    def one(term: SelectorTerm) -> bool:
        match term.operator:
            case "In":
                return labels.get(term.key) in term.values
            case "NotIn":
                return labels.get(term.key) not in term.values
            case "Exists":
                return term.key in labels
            case "DoesNotExist":
                return term.key not in labels
            case _:
                return False

    return all(one(term) for term in selector)


def as_seen(one: dict[str, Any]) -> Seen:
    return Seen(name=one["name"], labels=one["labels"], claim_namespace=one["claim"])


@given(memories, identities, st.sampled_from(list(PATHS)), st.sampled_from(list(VERBS)), objects)
def test_a_request_touches_exactly_what_the_grants_name(
    memory: Memory, who: Identity, setting: str, method: str, one: dict[str, Any]
) -> None:
    decision = decide(parse(method, f"{PATHS[setting]}/{one['name']}"), who, memory, FRESH)

    assert shows(decision, one) == model(memory, who, setting, VERBS[method], one)


@given(memories, identities, st.sampled_from(list(PATHS)), objects)
def test_list_and_watch_agree_and_what_is_listed_can_be_read(
    memory: Memory, who: Identity, setting: str, one: dict[str, Any]
) -> None:
    targets = [f"{PATHS[setting]}/{one['name']}", PATHS[setting], f"{PATHS[setting]}?watch=1"]

    read, listed, watched = (decide(parse("GET", target), who, memory, FRESH) for target in targets)

    assert shows(listed, one) == model(memory, who, setting, "List", one)
    assert not isinstance(listed, Filtered) or not isinstance(watched, Filtered) or listed.scope == watched.scope
    assert isinstance(listed, Filtered) == isinstance(watched, Filtered)
    assert shows(read, one) >= shows(listed, one)
    everything = [grant for grant in memory.grants.values() if isinstance(grant, SubjectGrant)]
    if all(rule.lists for grant in everything for rule in grant.rules):
        assert shows(read, one) == shows(listed, one)


ruled = st.tuples(
    st.lists(
        st.builds(
            lambda group, resource, selector, lists, tenant: ClusterRule(
                groups=(group,), resources=(resource,), selector=tuple(selector), lists=lists, tenant=tenant
            ),
            st.sampled_from(["", "*", "/v1", "rbac.authorization.k8s.io", "*.k8s.io", "rbac.*/v1", "*/v2"]),
            st.sampled_from(["*", "clusterroles", "namespaces", "storageclasses"]),
            st.lists(terms, max_size=2),
            st.booleans(),
            st.sampled_from(["", "oil", "gas"]),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sets(st.sampled_from(["oil", "gas"])),
    st.sampled_from(["User", "Group"]),
)


@settings(max_examples=200)
@given(
    ruled,
    st.sampled_from(["", "Namespaces", "StorageClasses"]),
    st.sampled_from(["GET", "LIST", "PUT"]),
    objects,
    st.booleans(),
)
def test_rules_show_exactly_what_they_name(
    drawn: tuple[list[ClusterRule], set[str], str],
    setting: str,
    method: str,
    one: dict[str, Any],
    inside: bool,
) -> None:
    """The same model where rules are many: each part of a rule decides often here."""
    given_rules, alive, kind = drawn
    memory = Memory(
        ConfigGrant(users=(CapsuleUserRef(kind="User", name="dana"),)),
        SubjectGrant(subject_kind=kind, name="dana" if kind == "User" else "devs", rules=tuple(given_rules)),
        *(TenantGrant(name=name, uid=name) for name in alive),
    )
    who = Identity(user="dana", groups=("devs",))
    target = PATHS[setting] if method == "LIST" else f"{PATHS[setting]}/{one['name']}"

    decision = decide(parse("PUT" if method == "PUT" else "GET", target), who, memory, FRESH)

    operation = {"GET": "Get", "LIST": "List", "PUT": "Update"}[method]
    assert shows(decision, one) == model(memory, who, setting, operation, one)
    if inside and isinstance(decision, Filtered):
        # What lives in a namespace is never shown, whatever discovery said of its kind.
        assert not decision.scope.allows(msgspec.structs.replace(as_seen(one), namespace="default"))


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("*", "core/v1 apps/v1 rbac.k8s.io/v1 rbac.k8s.io/v2"),
        ("", "core/v1"),
        ("apps", "apps/v1"),
        ("*.k8s.io", "rbac.k8s.io/v1 rbac.k8s.io/v2"),
        ("r*.k8s*", "rbac.k8s.io/v1 rbac.k8s.io/v2"),
        ("rbac.k8s.io/v2", "rbac.k8s.io/v2"),
        ("*/v1", "core/v1 apps/v1 rbac.k8s.io/v1"),
        ("rbac.*/*", "rbac.k8s.io/v1 rbac.k8s.io/v2"),
        ("/v1", "core/v1"),
        ("core", ""),
        ("v1", ""),
        ("rbac", ""),
        (".*", ""),
        ("rbac.k8s.io/", ""),
        ("rbac.k8s.io/v1/x", ""),
    ],
)
def test_a_pattern_names_these_groups(pattern: str, named: str) -> None:
    kinds = [("", "v1"), ("apps", "v1"), ("rbac.k8s.io", "v1"), ("rbac.k8s.io", "v2")]

    found = [f"{group or 'core'}/{version}" for group, version in kinds if names_group(pattern, group, version)]

    assert found == named.split()


def shows(decision: object, one: dict[str, Any]) -> bool:
    """Say whether a decision shows an object to the caller."""
    match decision:
        case Filtered(scope=scope):
            return scope.allows(as_seen(one))
        case ListUpstream(names=found):
            return one["name"] in found
        case ReadOne(name):
            return bool(name == one["name"])
        case _:
            return False


@given(memories, identities, st.sampled_from(list(PATHS)))
def test_a_grant_that_is_lost_never_widens_a_scope(memory: Memory, who: Identity, setting: str) -> None:
    everything = [
        {"name": name, "labels": labels, "claim": claim}
        for name in (*NAMES, *TENANTS)
        for labels in ({}, {"for": "oil"}, {"tier": "gas", "capsule.clastix.io/tenant": "oil"})
        for claim in ("", "oil-1")
    ]
    kind = ruled_kind_of(parse("GET", PATHS[setting])) or NAMESPACE_KIND
    whole = scope_of(who, memory, kind, "list") or Scope()

    for target in list(memory.grants):
        less = scope_of(who, Memory(*(g for k, g in memory.grants.items() if k != target)), kind, "list") or Scope()
        assert all(whole.allows(as_seen(one)) for one in everything if less.allows(as_seen(one)))


@given(memories)
def test_a_grant_with_settings_comes_back_from_the_bucket(memory: Memory) -> None:
    for grant in memory.grants.values():
        assert decode_grant(grant.key().token(), encode_grant(grant)) == grant


@given(st.lists(objects, max_size=6), st.sets(st.sampled_from(NAMES)), st.booleans())
def test_no_byte_of_another_object_is_in_an_answer(found: list[dict[str, Any]], mine: set[str], whole: bool) -> None:
    secret = [f"content-{number}-" for number in range(len(found))]
    items = [
        {"metadata": {"name": one["name"], "labels": one["labels"], "uid": mark}, "spec": {"secret": mark}}
        for one, mark in zip(found, secret, strict=True)
    ]
    meta = {"resourceVersion": "7", "continue": "content-of-the-next", "remainingItemCount": 9}
    plain = {"kind": "L", "apiVersion": "v1", "metadata": meta, "items": items}
    rows = [{"cells": [item["metadata"]["uid"]], "object": item} for item in items]
    table = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "columnDefinitions": [], "rows": rows}
    scope = Scope(names=frozenset(mine))
    kept = [mark for one, mark in zip(found, secret, strict=True) if one["name"] in mine]

    for form, document in (("json", plain), ("metadata", plain), ("table", table)):
        for include in ("None", "Metadata", "Object"):
            view = View(form=form, include=include, whole=whole)  # type: ignore[arg-type]  # the three forms
            answer = filter_list(msgspec.json.encode(document), view, scope.allows)
            text = answer.decode()
            assert re.findall(r"content-\d+-", text) == [] or set(re.findall(r"content-\d+-", text)) <= set(kept)
            assert all(mark in text for mark in kept)
            assert "content-of-the-next" not in text
            assert "remainingItemCount" not in text
    for item, one in zip(items, found, strict=True):
        answer_of_one = filter_one(msgspec.json.encode(item), View(form="json", whole=whole), scope.allows)
        assert (answer_of_one is not None) == (one["name"] in mine)


@pytest.mark.parametrize("pattern", ["(?=oil)", "(?!gas).*", "(?<=x)oil", r"(o)\1", "(", "[", "a{9999}"])
def test_an_expression_that_re2_does_not_know_matches_nothing(pattern: str) -> None:
    scope = Scope(patterns=frozenset({pattern}))

    assert not any(scope.allows(Seen(name=name)) for name in ("oil", "oo", "xoil", "", "a"))


def test_an_expression_matches_anywhere_unless_it_is_anchored() -> None:
    assert Scope(patterns=frozenset({"oil"})).allows(Seen(name="big-oil-fast"))
    assert not Scope(patterns=frozenset({"^oil$"})).allows(Seen(name="oil-fast"))
    # In RE2 the dollar is the end of the text, not the end before a last newline.
    assert not Scope(patterns=frozenset({"^oil$"})).allows(Seen(name="oil\n"))


def test_an_expression_cannot_take_long() -> None:
    assert not Scope(patterns=frozenset({"^(a+)+$"})).allows(Seen(name="a" * 250 + "!"))


DANA = Identity(user="dana", groups=("system:authenticated",))
EVERYTHING = ("List", "Update", "Delete")
RICH = Memory(
    ConfigGrant(users=(CapsuleUserRef(kind="User", name="dana"),)),
    SubjectGrant(
        subject_kind="User",
        name="dana",
        tenants=("oil",),
        operations={"oil": {"Nodes": EVERYTHING, "StorageClasses": EVERYTHING}},
    ),
    TenantGrant(
        name="oil", uid="u", choices={"Nodes": Choice(selectors=((),)), "StorageClasses": Choice(names=("a",))}
    ),
)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/api/v1/nodes"),
        ("DELETE", "/api/v1/nodes"),
        ("PUT", "/api/v1/nodes"),
        ("PATCH", "/api/v1/nodes"),
        ("HEAD", "/api/v1/nodes"),
        ("HEAD", "/api/v1/nodes/n"),
        ("OPTIONS", "/api/v1/nodes/n"),
        ("GET", "/api/v1/nodes/n/status"),
        ("GET", "/api/v1/nodes/n/proxy/metrics"),
        ("PATCH", "/api/v1/nodes/n/status"),
        ("GET", "/api/v1/proxy/nodes/n"),
        ("POST", "/api/v1/nodes/n"),
        ("GET", "/api/v1/namespaces/x/nodes"),
        ("GET", "/apis/other.example/v1/nodes"),
        ("GET", "/apis/v1/nodes"),
        ("PUT", "/apis/metrics.k8s.io/v1beta1/nodes/n"),
        ("GET", "/apis/metrics.k8s.io/v1beta1/nodes?watch=1"),
        ("PUT", "/apis/capsule.clastix.io/v1beta2/tenants/oil"),
        ("DELETE", "/apis/capsule.clastix.io/v1beta2/tenants/oil"),
        ("GET", "/apis/networking.k8s.io/v1/ingressclasses"),
    ],
)
def test_whatever_is_not_meant_goes_as_the_caller(method: str, target: str) -> None:
    assert decide(parse(method, target), DANA, RICH, FRESH) == Forward()


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("setting", list(PATHS))
def test_a_rule_lets_nobody_write(method: str, setting: str) -> None:
    term = SelectorTerm(key="for", operator="DoesNotExist")
    everything = ClusterRule(groups=("*",), resources=("*",), selector=(term,))
    memory = Memory(
        ConfigGrant(users=(CapsuleUserRef(kind="User", name="dana"),)),
        SubjectGrant(subject_kind="User", name="dana", rules=(everything,)),
    )

    assert isinstance(decide(parse("GET", f"{PATHS[setting]}/a"), DANA, memory, FRESH), Filtered)
    assert decide(parse(method, f"{PATHS[setting]}/a"), DANA, memory, FRESH) == Forward()
    assert decide(parse(method, PATHS[setting]), DANA, memory, FRESH) == Forward()


@pytest.mark.parametrize(("only", "seen"), [("", "abc"), ("oil", "a"), ("gas", "b"), ("coal", "")])
def test_a_url_of_one_tenant_has_the_rules_of_that_tenant_alone(only: str, seen: str) -> None:
    rules = tuple(
        ClusterRule(
            groups=("*",), resources=("*",), selector=(SelectorTerm(key=name, operator="Exists"),), tenant=tenant
        )
        for name, tenant in (("a", "oil"), ("b", "gas"), ("c", ""))
    )
    memory = Memory(
        ConfigGrant(users=(CapsuleUserRef(kind="User", name="dana"),)),
        SubjectGrant(subject_kind="User", name="dana", tenants=("gas", "oil"), rules=rules),
        *(TenantGrant(name=name, uid=name) for name in ("gas", "oil")),
    )
    who = msgspec.structs.replace(DANA, only=only)

    decision = decide(parse("GET", PATHS[""]), who, memory, FRESH)

    shown = [one for one in "abc" if shows(decision, {"name": "x", "labels": {one: ""}, "claim": ""})]
    assert "".join(shown) == seen


def test_the_old_watch_path_of_one_object_is_narrowed_to_it() -> None:
    found = decide(parse("GET", "/api/v1/watch/nodes/n"), DANA, RICH, FRESH)

    assert isinstance(found, Filtered)
    assert (found.verb, found.kind.path) == ("watch", "/api/v1/nodes")
    assert ("fieldSelector", "metadata.name=n") in found.query.passed_on
    with pytest.raises(RefusedError):
        decide(parse("GET", "/api/v1/watch/nodes/n?fieldSelector=metadata.name%3Dm"), DANA, RICH, FRESH)


def test_the_version_in_a_path_cannot_become_a_query() -> None:
    found = decide(parse("GET", "/api/v1%3Fwatch=1&x=/nodes"), DANA, RICH, FRESH)

    assert isinstance(found, Filtered)
    assert found.kind.path == "/api/v1%3Fwatch%3D1%26x%3D/nodes"


@pytest.mark.parametrize("target", ["/api/v1/nodes", "/api/v1/nodes?watch=1", "/api/v1/nodes/n"])
def test_old_grants_are_refused_where_they_would_decide(target: str) -> None:
    found = decide(parse("GET", target), DANA, RICH, Freshness(ready=True, age=31))

    assert isinstance(found, Refuse)
    assert found.status.code == 503
