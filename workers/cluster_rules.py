"""What clusterResources come to for a subject, and why some come to nothing: pure.

Whoever may write in a tenant's namespace may write a ProxySetting there, and a selector can choose everything. So those
in a ProxySetting count only where the Tenant itself, which administrators alone write, says so.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.grants import ClusterRule
from eventcore.objects import ANNOTATION_CLUSTER_RESOURCES, ProxySetting
from workers.choices import terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from eventcore.objects import ClusterResource, LabelSelector, Tenant
    from workers.ownership import Owner
    from workers.proxy_settings import Setting

OPERATIONS: Final = frozenset({"List", "Get"})
NOT_PERMITTED: Final = "NotPermitted"
MOST_REQUIREMENTS: Final = 64
MOST_VALUES: Final = 256
MOST_NAMES: Final = 64
"""Requirements of a selector, values of one, and groups or resources beside it: each costs the proxy on each object."""
_WITH_VALUES: Final = {"In": True, "NotIn": True, "Exists": False, "DoesNotExist": False}
_GROUP: Final = re.compile(r"[a-z0-9.*-]*(/[a-z0-9*]+)?")
_RESOURCE: Final = re.compile(r"\*|[a-z0-9][a-z0-9.-]*")


class Ignored(msgspec.Struct, frozen=True, order=True):
    """Something in a setting that gives nothing. ``reason`` is a word for a condition."""

    reason: str
    message: str

    @property
    def is_refusal(self) -> bool:
        """Whether it is something that the tenant cannot give."""
        return self.reason == NOT_PERMITTED


def permits(tenant: Tenant | None) -> bool:
    """Tell whether all counts that is in the ProxySettings of a tenant: clusterResources, and every operation."""
    return tenant is not None and tenant.metadata.annotations.get(ANNOTATION_CLUSTER_RESOURCES) == "true"


def rules_of(setting: Setting, subject: Owner, tenant: str = "") -> Iterator[ClusterRule]:
    """Yield what a setting lets one subject see. ``tenant``: whose ProxySetting it is."""
    for _, resource in resources_of(setting, subject):
        if wrong(resource) is None and resource.selector is not None:
            yield ClusterRule(
                groups=tuple(resource.api_groups),
                resources=tuple(resource.resources),
                selector=terms(resource.selector.match_labels, resource.selector.match_expressions),
                lists=not resource.operations or "List" in resource.operations,
                tenant=tenant,
            )


def resources_of(setting: Setting, subject: Owner | None = None) -> Iterator[tuple[str, ClusterResource]]:
    """Yield (path in the spec, clusterResources entry) for one subject, or for all."""
    entries: Iterable[tuple[str, list[tuple[str, str]], list[ClusterResource] | None]]
    if isinstance(setting, ProxySetting):
        entries = (
            (f"subjects[{place}]", [(one.kind, one.name)], one.cluster_resources)
            for place, one in enumerate(setting.spec.subjects)
        )
    else:
        entries = (
            (f"rules[{place}]", [(one.kind, one.name) for one in rule.subjects], rule.cluster_resources)
            for place, rule in enumerate(setting.spec.rules)
        )
    for path, subjects, resources in entries:
        if subject is None or (subject.kind, subject.name) in subjects:
            for place, resource in enumerate(resources or ()):
                yield f"spec.{path}.clusterResources[{place}]", resource


def wrong(resource: ClusterResource) -> Ignored | None:
    """Return why an entry gives nothing, None when it gives what it says."""
    if (found := _wrong_selector(resource.selector)) is not None:
        return found
    if unknown := sorted(set(resource.operations or ()) - OPERATIONS):
        return Ignored("OperationUnknown", f"{unknown[0]!r} is neither List nor Get")
    if max(len(resource.api_groups), len(resource.resources)) > MOST_NAMES:
        return Ignored("ResourceInvalid", f"it names more than {MOST_NAMES} groups or resources")
    if not resource.api_groups or not all(_GROUP.fullmatch(group) for group in resource.api_groups):
        return Ignored("GroupInvalid", "its apiGroups are not groups such as rbac.authorization.k8s.io, *.k8s.io or *")
    if not resource.resources or not all(_RESOURCE.fullmatch(one) for one in resource.resources):
        return Ignored("ResourceInvalid", "its resources are not plurals such as clusterroles, or *")
    return None


def _wrong_selector(selector: LabelSelector | None) -> Ignored | None:
    if selector is None or not (selector.match_labels or selector.match_expressions):
        return Ignored("SelectorEmpty", "its selector has no requirement, and so chooses nothing")
    if len(selector.match_labels) + len(selector.match_expressions) > MOST_REQUIREMENTS:
        return Ignored("SelectorInvalid", f"its selector has more than {MOST_REQUIREMENTS} requirements")
    for one in selector.match_expressions:
        if _WITH_VALUES.get(one.operator) is not bool(one.values) or len(one.values) > MOST_VALUES:
            why = f"{one.key[:64]} {one.operator[:64]} is no requirement with these values"
            return Ignored("SelectorInvalid", why)
    return None
