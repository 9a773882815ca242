"""Capsule's part, in miniature: the admission that keeps tenants inside their Tenant, and its controllers.

It behaves as Capsule 0.14 does where readers can see it. Nothing here knows of Tether.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tether.devcluster.capsule_controllers import capsule_controllers, run
from tether.devcluster.capsule_crds import CAPSULE_CRDS, GROUP
from tether.devcluster.capsule_facts import (
    CONTROLLED_LABEL,
    CORDONED_LABEL,
    MANAGED_BY_LABEL,
    NEW_TENANT_LABEL,
    PROMOTE_LABEL,
    TENANT_LABEL,
    CapsuleFacts,
    tenant_references,
)
from tether.devcluster.contracts import ApiError
from tether.devcluster.objects import dig, labels_of, metadata, name_of
from tether.devcluster.resources import NAMESPACES
from tether.devcluster.tokens import split_username

if TYPE_CHECKING:
    from tether.devcluster.contracts import Admission, AdmissionRequest, Object, StoreApi

__all__ = ["CAPSULE_CRDS", "admission", "capsule_controllers", "run"]

_NAMESPACES_WEBHOOK = "namespaces.projectcapsule.dev"
_CORDONING_WEBHOOK = "cordoning.projectcapsule.dev"
_MANAGED_WEBHOOK = "managed.projectcapsule.dev"
_ACCOUNTS_WEBHOOK = "serviceaccounts.projectcapsule.dev"
_TENANTS_WEBHOOK = "tenants.projectcapsule.dev"
_EVENT_GROUPS = ("", "events.k8s.io")


def admission(store: StoreApi, *, validate_tenants: bool = True) -> Admission:
    """Return Capsule's webhooks as one admission: it assigns namespaces, stamps labels, and denies with 403.

    ``validate_tenants=False`` lets owners with malformed account names pass, as they may exist on a cluster whose
    webhooks were down.
    """
    webhooks = _Webhooks(CapsuleFacts(store), store)

    def admit(request: AdmissionRequest) -> None:
        if request.subresource:
            return
        if request.resource == NAMESPACES:
            webhooks.namespace(request)
        elif request.resource.group == GROUP and not request.resource.namespaced:
            if validate_tenants:
                webhooks.tenant(request)
        elif request.resource.namespaced:
            webhooks.namespaced(request)

    return admit


class _Webhooks:
    def __init__(self, facts: CapsuleFacts, store: StoreApi) -> None:
        self._facts = facts
        self._store = store

    def namespace(self, request: AdmissionRequest) -> None:
        if self._facts.is_administrator(request.user):
            self._adopt_for_administrator(request)
        elif request.operation == "CREATE":
            self._create_namespace(request)
        elif request.operation == "UPDATE":
            self._update_namespace(request)
        else:
            self._require_owned(request)

    def namespaced(self, request: AdmissionRequest) -> None:
        namespace = self._store.get(NAMESPACES, "", request.namespace)
        tenant = self._facts.tenant_of(namespace) if namespace else None
        if namespace is None or tenant is None or _is_event(request):
            return
        administrator = self._facts.is_administrator(request.user)
        if _is_cordoned(tenant, namespace) and self._facts.is_capsule_user(request.user):
            raise _denied(
                _CORDONING_WEBHOOK, f"the Tenant {name_of(tenant)} is cordoned: its objects cannot change now"
            )
        if not administrator:
            _refuse_controlled(request)
            self._refuse_promotion(request, tenant)
        if request.obj is not None:
            labels = metadata(request.obj).setdefault("labels", {})
            labels[MANAGED_BY_LABEL] = labels[NEW_TENANT_LABEL] = name_of(tenant)

    def tenant(self, request: AdmissionRequest) -> None:
        if request.operation == "DELETE":
            if request.resource.kind == "Tenant" and dig(request.old, "spec", "preventDeletion"):
                raise _denied(_TENANTS_WEBHOOK, "the Tenant is protected and cannot be deleted: preventDeletion is set")
            return
        owners = [dig(request.obj, "spec")] if request.resource.kind == "TenantOwner" else []
        if request.resource.kind == "Tenant":
            owners = dig(request.obj, "spec", "owners") or []
        for owner in owners:
            name = str(dig(owner, "name") or "")
            if dig(owner, "kind") == "ServiceAccount" and split_username(name) is None:
                why = f'owner name "{name}" is no ServiceAccount: write system:serviceaccount:<namespace>:<name>'
                raise _denied(_TENANTS_WEBHOOK, why)

    def _adopt_for_administrator(self, request: AdmissionRequest) -> None:
        """Give a namespace that an administrator labels to that Tenant."""
        if request.obj is None:
            return
        tenant = self._facts.tenant(labels_of(request.obj).get(TENANT_LABEL, ""))
        if tenant is not None:
            _assign(request.obj, tenant)

    def _create_namespace(self, request: AdmissionRequest) -> None:
        obj = request.obj
        if obj is None:
            return
        if not self._facts.is_capsule_user(request.user):
            _require_agreement(obj)
            if tenant_references(obj):
                raise _denied(_NAMESPACES_WEBHOOK, "only tenant owners may create a Namespace that references a Tenant")
            return
        self._refuse_protected(request.name)
        tenant = self._choose_tenant(request, obj)
        name = name_of(tenant)
        if dig(tenant, "metadata", "deletionTimestamp"):
            raise _denied(_NAMESPACES_WEBHOOK, f"the Tenant {name} is being deleted")
        if dig(tenant, "spec", "cordoned"):
            raise _denied(_CORDONING_WEBHOOK, f"the Tenant {name} is cordoned: no Namespace can be created in it now")
        forced = dig(tenant, "spec", "forceTenantPrefix")
        if forced is None:
            forced = self._facts.configuration().get("forceTenantPrefix")
        if forced and not request.name.startswith(f"{name}-"):
            why = f"the Namespace doesn't match the tenant prefix, expected {name}-{request.name}"
            raise _denied(_NAMESPACES_WEBHOOK, why)
        quota = dig(tenant, "spec", "namespaceOptions", "quota")
        if quota is not None and self._count_namespaces(tenant) >= int(quota):
            why = "cannot exceed Namespace quota: please, reach out to the system administrators"
            raise _denied(_NAMESPACES_WEBHOOK, why)
        _assign(obj, tenant)

    def _update_namespace(self, request: AdmissionRequest) -> None:
        obj, old = request.obj, request.old
        if obj is None or old is None:
            return
        if _binding(old) != ("", ()) and self._facts.tenant_of(old) is None:
            why = (
                "the tenant ownership of the Namespace is incomplete: label and owner reference do not name one Tenant"
            )
            raise _denied(_NAMESPACES_WEBHOOK, why)
        tenant = self._facts.tenant_of(old)
        if tenant is not None and self._facts.is_capsule_user(request.user) and self._facts.owns(request.user, tenant):
            _assign(obj, tenant)  # what an owner strips is put back
        _require_agreement(obj)
        if _binding(obj) != _binding(old):
            why = (
                "the Tenant of a Namespace cannot be added, changed or removed: label and owner reference are Capsule's"
            )
            raise _denied(_NAMESPACES_WEBHOOK, why)
        self._require_owned(request)

    def _require_owned(self, request: AdmissionRequest) -> None:
        """Refuse a Capsule user who changes or deletes a namespace that is not its own, or is cordoned."""
        if not self._facts.is_capsule_user(request.user):
            return
        namespace = request.old or {}
        tenant = self._facts.tenant_of(namespace)
        if tenant is None or not self._facts.owns(request.user, tenant):
            why = f"you do not own the Tenant of the Namespace {request.name}, so you cannot change it"
            raise _denied(_NAMESPACES_WEBHOOK, why)
        if _is_cordoned(tenant, namespace):
            raise _denied(
                _CORDONING_WEBHOOK, f"the Tenant {name_of(tenant)} is cordoned: its Namespaces cannot change now"
            )

    def _choose_tenant(self, request: AdmissionRequest, obj: Object) -> Object:
        owned = {name_of(tenant): tenant for tenant in self._facts.owned_by(request.user)}
        references, label = tenant_references(obj), labels_of(obj).get(TENANT_LABEL, "")
        if len(references) > 1:
            raise _denied(_NAMESPACES_WEBHOOK, "a Namespace belongs to one Tenant")
        if not owned:
            why = "You do not have any Tenant assigned: please, reach out to the system administrators"
            raise _denied(_NAMESPACES_WEBHOOK, why)
        asked = label or (str(references[0].get("name")) if references else "")
        if asked:
            chosen = owned.get(asked)
            uids = {reference.get("uid") for reference in references}
            if chosen is None or uids - {chosen["metadata"]["uid"]}:
                why = f"Cannot assign the desired namespace to a non-owned Tenant: {asked}"
                raise _denied(_NAMESPACES_WEBHOOK, why, code=400)
            return chosen
        if len(owned) == 1:
            return next(iter(owned.values()))
        for name in sorted(owned, key=len, reverse=True):  # oil-gas before oil, as both are prefixes of oil-gas-prod
            if request.name.startswith(f"{name}-"):
                return owned[name]
        why = f"Unable to assign namespace to tenant. Please use {TENANT_LABEL} label when creating a namespace"
        raise _denied(_NAMESPACES_WEBHOOK, why)

    def _refuse_protected(self, name: str) -> None:
        expression = str(self._facts.configuration().get("protectedNamespaceRegex") or "")
        if not expression:
            return
        try:
            protected = re.search(expression, name) is not None
        except re.error:
            raise _denied(
                _NAMESPACES_WEBHOOK, "protectedNamespaceRegex of the configuration does not compile"
            ) from None
        if protected:
            why = (
                f"Creating namespaces with name matching {expression} regexp is not allowed; please, reach out to the "
            )
            raise _denied(_NAMESPACES_WEBHOOK, why + "system administrators")

    def _count_namespaces(self, tenant: Object) -> int:
        uid = tenant["metadata"]["uid"]
        references = (tenant_references(namespace) for namespace in self._store.list(NAMESPACES))
        return sum(any(one.get("uid") == uid for one in found) for found in references)

    def _refuse_promotion(self, request: AdmissionRequest, tenant: Object) -> None:
        if request.obj is None or request.resource.plural != "serviceaccounts" or request.resource.group:
            return
        if PROMOTE_LABEL not in labels_of(request.obj):
            return
        why = ""
        if not self._facts.promotes():
            why = "service account owner promotion is disabled. Contact your system administrators"
        elif not self._facts.promotes(tenant):
            why = "service account owner promotion is disabled for this tenant. Contact your system administrators"
        elif not self._facts.owns(request.user, tenant):
            why = f"{request.user.username} not allowed to promote serviceaccount to tenant owner"
        if why:
            raise _denied(_ACCOUNTS_WEBHOOK, why)


def _assign(namespace: Object, tenant: Object) -> None:
    """Give a namespace the owner reference and the label of its Tenant."""
    meta = metadata(namespace)
    others = [one for one in meta.get("ownerReferences") or () if one not in tenant_references(namespace)]
    reference = {
        "apiVersion": tenant["apiVersion"],
        "kind": "Tenant",
        "name": name_of(tenant),
        "uid": tenant["metadata"]["uid"],
    }
    meta["ownerReferences"] = [*others, reference]
    meta.setdefault("labels", {})[TENANT_LABEL] = name_of(tenant)


def _binding(namespace: Object) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return what ties a namespace to a Tenant: label, and names and uids of the references."""
    references = tuple((str(one.get("name")), str(one.get("uid"))) for one in tenant_references(namespace))
    return labels_of(namespace).get(TENANT_LABEL, ""), references


def _require_agreement(namespace: Object) -> None:
    """Refuse a namespace whose label and owner reference do not name one Tenant; Capsule answers 500 to that."""
    label, references = labels_of(namespace).get(TENANT_LABEL, ""), tenant_references(namespace)
    names = ", ".join(str(one.get("name")) for one in references)
    why = ""
    if label and not references:
        why = f'namespace has tenant label "{label}" but no Tenant ownerReference'
    elif references and not label:
        why = f'namespace has Tenant ownerReference "{names}" but no tenant label'
    elif label != names:
        why = f'namespace label "{label}" does not match owner reference "{names}"'
    if why:
        raise _denied(_NAMESPACES_WEBHOOK, why, code=500)


def _is_cordoned(tenant: Object, namespace: Object) -> bool:
    return bool(dig(tenant, "spec", "cordoned")) or labels_of(namespace).get(CORDONED_LABEL) == "true"


def _is_event(request: AdmissionRequest) -> bool:
    return request.resource.plural == "events" and request.resource.group in _EVENT_GROUPS


def _refuse_controlled(request: AdmissionRequest) -> None:
    found = [labels_of(obj).get(CONTROLLED_LABEL) for obj in (request.obj, request.old) if obj is not None]
    if "controller" in found:
        raise _denied(_MANAGED_WEBHOOK, f"{request.resource.kind} {request.name} is managed by Capsule's controller")


def _denied(webhook: str, why: str, *, code: int = 403) -> ApiError:
    reason = "Forbidden" if code == 403 else ""  # noqa: PLR2004 -- Capsule gives no other answer a reason
    return ApiError(code, reason, f'admission webhook "{webhook}" denied the request: {why}')
