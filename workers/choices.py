"""What a Tenant allows of each cluster-scoped kind, compiled for the proxy: pure.

The boundary is what an administrator wrote in the Tenant. A field that is not there allows nothing; the one exception
is the node selector, since a tenant without one runs on every node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from eventcore.grants import Choice, SelectorTerm

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from eventcore.objects import (
        AllowedClasses,
        LabelSelectorRequirement,
        ProxySetting,
        ProxySubject,
        Tenant,
        TenantSpecOwner,
    )
    from workers.ownership import Owner

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


def operations(tenant: Tenant, owner: Owner) -> dict[str, tuple[str, ...]]:
    """Return what an owner may do by kind: all entries of the Tenant for this owner together."""
    return _together(tenant.spec.owners, owner)


def merged(*given: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return what several grants of operations by kind come to together."""
    kinds = sorted({kind for one in given for kind in one})
    return {kind: tuple(op for op in OPERATIONS if any(op in one.get(kind, ()) for one in given)) for kind in kinds}


def setting_operations(setting: ProxySetting, subject: Owner) -> dict[str, tuple[str, ...]]:
    """Return what a ProxySetting lets a subject do by kind."""
    return _together(setting.spec.subjects, subject)


def _together(entries: Iterable[TenantSpecOwner | ProxySubject], owner: Owner) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for entry in entries:
        if (entry.kind, entry.name) != (owner.kind, owner.name):
            continue
        for setting in entry.proxy_settings or ():
            found.setdefault(setting.kind, set()).update(setting.operations)
    named = {kind: tuple(one for one in OPERATIONS if one in given) for kind, given in sorted(found.items())}
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
