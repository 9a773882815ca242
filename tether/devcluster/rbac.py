"""RBAC over the roles and bindings in the store: who may do what, and who may give which rights to others.

The index follows the store by its changes and is brought up to date before every decision, so a decision never misses
a write that was answered before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tether.devcluster.contracts import Admission, AdmissionRequest, Attributes, Object, UserInfo
from tether.devcluster.errors import forbidden, not_found
from tether.devcluster.objects import dig, labels_of, name_of, namespace_of
from tether.devcluster.resources import BUILT_IN, RBAC
from tether.devcluster.tokens import username_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tether.devcluster.contracts import Change, Resource
    from tether.devcluster.store import Store

MASTERS = "system:masters"

_KINDS = {row.plural: row for row in BUILT_IN if row.group == RBAC}
ROLES, CLUSTER_ROLES = _KINDS["roles"], _KINDS["clusterroles"]
ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS = _KINDS["rolebindings"], _KINDS["clusterrolebindings"]
_ROLE_PLURALS = ("roles", "clusterroles")


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One PolicyRule."""

    verbs: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    @classmethod
    def of(cls, rule: Object) -> Rule:
        """Return the rule of a role; a field that is no list counts as empty."""
        return cls(
            verbs=_texts(rule.get("verbs")),
            groups=_texts(rule.get("apiGroups")),
            resources=_texts(rule.get("resources")),
            names=_texts(rule.get("resourceNames")),
            urls=_texts(rule.get("nonResourceURLs")),
        )

    def allows(self, asked: Attributes) -> bool:
        """Tell whether the rule allows the request."""
        if not _any_or(self.verbs, asked.verb):
            return False
        if not asked.resource:
            return any(_url_covers(url, asked.path) for url in self.urls)
        return (
            _any_or(self.groups, asked.group)
            and self._has_resource(asked.resource, asked.subresource)
            and (not self.names or asked.name in self.names)
        )

    def covers(self, other: Rule) -> bool:
        """Tell whether everything that ``other`` allows is allowed by this rule; ``other`` is a single right."""
        if not all(_any_or(self.verbs, verb) for verb in other.verbs):
            return False
        if other.urls:
            return all(any(_url_covers(mine, url) for mine in self.urls) for url in other.urls)
        split = (resource.partition("/") for resource in other.resources)
        return (
            bool(other.resources)
            and all(_any_or(self.groups, group) for group in other.groups)
            and all("*" in self.resources or self._has_resource(main, sub) for main, _, sub in split)
            and (not self.names or (bool(other.names) and set(other.names) <= set(self.names)))
        )

    def single_rights(self) -> Iterator[Rule]:
        """Yield the rule as rules of one verb and one resource (or path) each."""
        for verb in self.verbs:
            for url in self.urls:
                yield Rule(verbs=(verb,), urls=(url,))
            for group in self.groups:
                for resource in self.resources:
                    for name in self.names or ("",):
                        names = (name,) if name else ()
                        yield Rule(verbs=(verb,), groups=(group,), resources=(resource,), names=names)

    def words(self) -> str:
        """Return the rule as kube-apiserver writes it in messages."""
        parts = (
            ("APIGroups", self.groups),
            ("Resources", self.resources),
            ("NonResourceURLs", self.urls),
            ("ResourceNames", self.names),
            ("Verbs", self.verbs),
        )
        return "{" + ", ".join(f"{label}:{_quoted(values)}" for label, values in parts if values) + "}"

    def as_object(self) -> Object:
        """Return the rule as it stands in a SelfSubjectRulesReview."""
        fields: dict[str, Any] = {"verbs": list(self.verbs)}
        if self.urls:
            return fields | {"nonResourceURLs": list(self.urls)}
        fields |= {"apiGroups": list(self.groups), "resources": list(self.resources)}
        return fields | ({"resourceNames": list(self.names)} if self.names else {})

    def _has_resource(self, resource: str, subresource: str) -> bool:
        if "*" in self.resources:
            return True
        if not subresource:
            return resource in self.resources
        return f"{resource}/{subresource}" in self.resources or f"*/{subresource}" in self.resources


class _Binding(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    namespace: str
    name: str
    role_kind: str
    role_name: str

    @property
    def role(self) -> tuple[str, str]:
        return (self.namespace if self.role_kind == "Role" else "", self.role_name)

    def words(self, subject: tuple[str, str]) -> str:
        """Return the binding as the reason of a decision names it."""
        where = f"{self.name}/{self.namespace}" if self.namespace else self.name
        kind, name = subject
        if name.startswith("system:serviceaccount:"):
            _, _, namespace, name = name.split(":")
            kind, name = "ServiceAccount", f"{name}/{namespace}"
        return f'{self.kind} "{where}" of {self.role_kind} "{self.role_name}" to {kind} "{name}"'


_Subject = tuple[str, str]
_Found = dict[_Subject, dict[str, _Binding]]


class RbacAuthorizer:
    """Implements ``contracts.Authorizer``; the group system:masters may do everything."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._version = -1
        self._changes = store.changes()
        self._roles: dict[tuple[str, str], tuple[Rule, ...]] = {}
        self._bindings: dict[str, _Found] = {}

    def authorize(self, attributes: Attributes) -> tuple[bool, str]:
        if MASTERS in attributes.user.groups:
            return True, ""
        self._catch_up()
        missing: list[str] = []
        for subject, binding in self._bindings_of(attributes.user, attributes.namespace):
            rules = self._roles.get(binding.role)
            if rules is None:
                missing.append(_role_not_found(binding))
                continue
            for rule in rules:
                if rule.allows(attributes):
                    return True, f"RBAC: allowed by {binding.words(subject)}"
        texts = list(dict.fromkeys(missing))
        if not texts:
            return False, ""
        return False, f"RBAC: {texts[0]}" if len(texts) == 1 else f"RBAC: [{', '.join(texts)}]"

    def rules_of(self, user: UserInfo, namespace: str) -> list[Rule]:
        """Return every rule that the user holds in a namespace ("" for the cluster), cluster-wide ones included."""
        self._catch_up()
        everything = [
            Rule(verbs=("*",), groups=("*",), resources=("*",)),
            Rule(verbs=("*",), urls=("*",)),
        ]
        held = everything if MASTERS in user.groups else []
        for _, binding in self._bindings_of(user, namespace):
            held.extend(self._roles.get(binding.role, ()))
        return held

    def rules_of_role(self, kind: str, namespace: str, name: str) -> tuple[Rule, ...] | None:
        """Return the rules of a Role or ClusterRole, None when it is not there."""
        self._catch_up()
        return self._roles.get((namespace if kind == "Role" else "", name))

    def _bindings_of(self, user: UserInfo, namespace: str) -> Iterator[tuple[_Subject, _Binding]]:
        subjects = [("User", user.username), *(("Group", group) for group in user.groups)]
        for scope in ("", namespace) if namespace else ("",):
            found = self._bindings.get(scope, {})
            for subject in subjects:
                for binding in found.get(subject, {}).values():
                    yield subject, binding

    def _catch_up(self) -> None:
        if self._version == self._store.version:
            return
        changes = self._changes.pending()
        whole = bool(changes) and changes[0].resource_version == self._version + 1
        if whole and changes[-1].resource_version == self._store.version:
            for change in changes:
                if change.resource.group == RBAC:
                    self._apply(change)
        else:  # the first time, and after the store ended our subscription
            self._rebuild()
        self._version = self._store.version

    def _rebuild(self) -> None:
        self._changes.close()
        self._changes = self._store.changes()
        self._roles.clear()
        self._bindings.clear()
        for resource in _KINDS.values():
            for obj in self._store.list(resource):
                self._add(resource, obj)

    def _apply(self, change: Change) -> None:
        if change.old is not None:
            self._remove(change.resource, change.old)
        if change.type != "DELETED":
            self._add(change.resource, change.obj)

    def _add(self, resource: Resource, obj: Object) -> None:
        if resource.plural in _ROLE_PLURALS:
            self._roles[namespace_of(obj), name_of(obj)] = rules_of_object(obj)
            return
        binding = _binding(resource, obj)
        scope = self._bindings.setdefault(binding.namespace, {})
        for subject in _subjects(obj):
            scope.setdefault(subject, {})[binding.name] = binding

    def _remove(self, resource: Resource, obj: Object) -> None:
        if resource.plural in _ROLE_PLURALS:
            self._roles.pop((namespace_of(obj), name_of(obj)), None)
            return
        scope = self._bindings.get(namespace_of(obj), {})
        for subject in _subjects(obj):
            scope.get(subject, {}).pop(name_of(obj), None)


def rules_of_object(role: Object) -> tuple[Rule, ...]:
    """Return the rules of a Role or ClusterRole object."""
    return tuple(Rule.of(rule) for rule in role.get("rules") or () if isinstance(rule, dict))


def uncovered(held: Iterable[Rule], wanted: Iterable[Rule]) -> list[Rule]:
    """Return the single rights of ``wanted`` that no held rule covers, verbs of one resource together."""
    mine = list(held)
    rights = [right for rule in wanted for right in rule.single_rights() if not any(one.covers(right) for one in mine)]
    verbs: dict[Rule, list[str]] = {}
    for right in rights:
        verbs.setdefault(msgspec.structs.replace(right, verbs=()), []).extend(right.verbs)
    return [msgspec.structs.replace(rest, verbs=tuple(dict.fromkeys(names))) for rest, names in verbs.items()]


def aggregated_rules(role: Object, roles: Iterable[Object]) -> list[Object] | None:
    """Return the rules that a ClusterRole gathers from others by label; None when it gathers none."""
    selectors = dig(role, "aggregationRule", "clusterRoleSelectors")
    if not isinstance(selectors, list):
        return None
    gathered: list[Object] = []
    for other in sorted(roles, key=name_of):
        chosen = any(_selects(selector, labels_of(other)) for selector in selectors)
        if chosen and name_of(other) != name_of(role):
            gathered.extend(rule for rule in other.get("rules") or () if rule not in gathered)
    return gathered


def escalation_admission(authorizer: RbacAuthorizer) -> Admission:
    """Return the admission that lets nobody give rights that they do not hold, but for the verbs escalate and bind."""

    def admit(request: AdmissionRequest) -> None:
        if request.resource.group != RBAC or request.obj is None or MASTERS in request.user.groups:
            return
        if request.resource.plural in _ROLE_PLURALS:
            _admit_role(authorizer, request, request.obj)
        else:
            _admit_binding(authorizer, request, request.obj)

    return admit


def _admit_role(authorizer: RbacAuthorizer, request: AdmissionRequest, role: Object) -> None:
    rules = rules_of_object(role)
    gathers = role.get("aggregationRule")
    before = request.old
    if before is not None and rules == rules_of_object(before) and gathers == before.get("aggregationRule"):
        return
    if gathers and (before is None or gathers != before.get("aggregationRule")):
        # What will be gathered is not known yet, so only somebody with every right may ask for it.
        rules = (*rules, Rule(verbs=("*",), groups=("*",), resources=("*",)), Rule(verbs=("*",), urls=("*",)))
    if _may(authorizer, request, "escalate", request.resource.plural, request.name):
        return
    _refuse_uncovered(authorizer, request, rules)


def _admit_binding(authorizer: RbacAuthorizer, request: AdmissionRequest, binding: Object) -> None:
    before = request.old
    if before is not None and all(before.get(field) == binding.get(field) for field in ("subjects", "roleRef")):
        return
    kind, name = str(dig(binding, "roleRef", "kind")), str(dig(binding, "roleRef", "name"))
    resource = ROLES if kind == "Role" else CLUSTER_ROLES
    if _may(authorizer, request, "bind", resource.plural, name):
        return
    rules = authorizer.rules_of_role(kind, request.namespace, name)
    if rules is None:
        raise not_found(resource, name)
    _refuse_uncovered(authorizer, request, rules)


def _may(authorizer: RbacAuthorizer, request: AdmissionRequest, verb: str, plural: str, name: str) -> bool:
    asked = Attributes(
        user=request.user,
        verb=verb,
        group=RBAC,
        version="v1",
        resource=plural,
        namespace=request.namespace,
        name=name,
    )
    return authorizer.authorize(asked)[0]


def _refuse_uncovered(authorizer: RbacAuthorizer, request: AdmissionRequest, rules: Iterable[Rule]) -> None:
    missing = uncovered(authorizer.rules_of(request.user, request.namespace), rules)
    if missing:
        listed = "\n".join(sorted(rule.words() for rule in missing))
        why = (
            f'user "{request.user.username}" (groups={_quoted(request.user.groups)}) is attempting to grant '
            f"RBAC permissions not currently held:\n{listed}"
        )
        raise forbidden(request.resource, request.name, why)


def _binding(resource: Resource, obj: Object) -> _Binding:
    return _Binding(
        kind=resource.kind,
        namespace=namespace_of(obj),
        name=name_of(obj),
        role_kind=str(dig(obj, "roleRef", "kind") or ""),
        role_name=str(dig(obj, "roleRef", "name") or ""),
    )


def _subjects(binding: Object) -> list[_Subject]:
    found: list[_Subject] = []
    for subject in binding.get("subjects") or ():
        kind, name = str(subject.get("kind") or ""), str(subject.get("name") or "")
        if kind == "ServiceAccount":
            namespace = str(subject.get("namespace") or namespace_of(binding))
            if namespace:
                found.append(("User", username_of(namespace, name)))
        elif kind in {"User", "Group"}:
            found.append((kind, name))
    return found


def _role_not_found(binding: _Binding) -> str:
    plural = "roles" if binding.role_kind == "Role" else "clusterroles"
    singular = plural.removesuffix("s")
    return f'{singular}.{RBAC} "{binding.role_name}" not found'


def _selects(selector: Any, labels: dict[str, str]) -> bool:
    wanted = dig(selector, "matchLabels")
    return isinstance(wanted, dict) and bool(wanted) and all(labels.get(key) == value for key, value in wanted.items())


def _any_or(allowed: tuple[str, ...], asked: str) -> bool:
    return "*" in allowed or asked in allowed


def _url_covers(allowed: str, path: str) -> bool:
    return allowed in {"*", path} or (allowed.endswith("*") and path.startswith(allowed[:-1]))


def _quoted(values: Iterable[str]) -> str:
    return "[" + " ".join(f'"{value}"' for value in values) + "]"


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()
