"""What a Tenant allows of each cluster-scoped kind, compiled for the proxy: pure.

The boundary is what an administrator wrote in the Tenant. A field that is not there allows nothing; the one exception
is the node selector, since a tenant without one runs on every node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from eventcore.grants import Choice, SelectorTerm
from workers.ownership import Owner

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from eventcore.objects import (
        AllowedClasses,
        LabelSelectorRequirement,
        ProxySetting,
        ProxySubject,
        Tenant,
        TenantSpecOwner,
    )

OPERATIONS: Final = ("List", "Update", "Delete")


def choices(tenant: Tenant) -> dict[str, Choice]:
    """Return what a tenant may use, by the kind's name in proxySettings."""
    spec = tenant.spec
    found = {
        "DeviceClasses": _classes(spec.device_classes),
        "GatewayClasses": _classes(spec.gateway_options.allowed_classes if spec.gateway_options else None),
        "IngressClasses": _classes(spec.ingress_options.allowed_classes if spec.ingress_options else None),
        "Nodes": Choice(selectors=(terms(spec.node_selector or {}, ()),)),
        "PriorityClasses": _classes(spec.priority_classes),
        "RuntimeClasses": _classes(spec.runtime_classes),
        "StorageClasses": _classes(spec.storage_classes),
    }
    return {kind: choice for kind, choice in found.items() if choice is not None}


def operations(tenant: Tenant) -> dict[Owner, dict[str, tuple[str, ...]]]:
    """Return what each owner may do by kind, all entries of the Tenant for it together; none for who may do nothing."""
    return _together(tenant.spec.owners)


def merged(*given: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return what several grants of operations by kind come to together."""
    kinds = sorted({kind for one in given for kind in one})
    return {kind: tuple(op for op in OPERATIONS if any(op in one.get(kind, ()) for one in given)) for kind in kinds}


def setting_operations(setting: ProxySetting, subject: Owner) -> dict[str, tuple[str, ...]]:
    """Return what a ProxySetting would let a subject do by kind; of that counts what is under the `ceiling`."""
    entries = (one for one in setting.spec.subjects if (one.kind, one.name) == (subject.kind, subject.name))
    return _together(entries).get(subject, {})


def ceiling(tenant: Tenant | None, owners: Collection[Owner]) -> dict[str, frozenset[str]]:
    """Return what a ProxySetting of a tenant may give at most: what the Tenant gives to each single one of its owners.

    Each of them may have written it, and hands on no more than it has by the administrator's hand.
    """
    if tenant is None or not owners:
        return {}
    given = operations(tenant)
    first, *others = (given.get(owner, {}) for owner in owners)
    found = {
        kind: frozenset(allowed).intersection(*(one.get(kind, ()) for one in others)) for kind, allowed in first.items()
    }
    return {kind: allowed for kind, allowed in found.items() if allowed}


def under(given: dict[str, tuple[str, ...]], most: dict[str, frozenset[str]]) -> dict[str, tuple[str, ...]]:
    """Return of operations by kind those that are under a ceiling."""
    found = {kind: tuple(op for op in ops if op in most.get(kind, ())) for kind, ops in given.items()}
    return {kind: ops for kind, ops in found.items() if ops}


def above(setting: ProxySetting, most: dict[str, frozenset[str]]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (path in the spec, kind, operations) of what a ProxySetting names above a ceiling."""
    for place, subject in enumerate(setting.spec.subjects):
        for number, one in enumerate(subject.proxy_settings or ()):
            over: list[str] = [op for op in OPERATIONS if op in one.operations and op not in most.get(one.kind, ())]
            if over:
                yield f"spec.subjects[{place}].proxySettings[{number}]", one.kind, over


def _together(entries: Iterable[TenantSpecOwner | ProxySubject]) -> dict[Owner, dict[str, tuple[str, ...]]]:
    found: dict[Owner, dict[str, set[str]]] = {}
    for entry in entries:
        for setting in entry.proxy_settings or ():
            kinds = found.setdefault(Owner(entry.kind, entry.name), {})
            kinds.setdefault(setting.kind, set()).update(setting.operations)
    return {owner: named for owner, kinds in found.items() if (named := _named(kinds))}


def _named(kinds: dict[str, set[str]]) -> dict[str, tuple[str, ...]]:
    named = {kind: tuple(one for one in OPERATIONS if one in given) for kind, given in sorted(kinds.items())}
    return {kind: given for kind, given in named.items() if given}


def terms(labels: Mapping[str, str], expressions: Sequence[LabelSelectorRequirement]) -> tuple[SelectorTerm, ...]:
    """Return a label selector as terms."""
    return (
        *(SelectorTerm(key=name, operator="In", values=(value,)) for name, value in sorted(labels.items())),
        *(SelectorTerm(key=one.key, operator=one.operator, values=tuple(sorted(one.values))) for one in expressions),
    )


def _classes(allowed: AllowedClasses | None) -> Choice | None:
    """Names, the default, the regular expression and the selector together; an empty selector chooses nothing here."""
    if allowed is None:
        return None
    names = {*(allowed.allowed or ()), allowed.default} - {""}
    selector = terms(allowed.match_labels or {}, allowed.match_expressions or ())
    if not names and not allowed.allowed_regex and not selector:
        return None
    return Choice(names=tuple(sorted(names)), pattern=allowed.allowed_regex, selectors=(selector,) if selector else ())
