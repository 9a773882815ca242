"""Which keys a change of the cluster concerns: the union of what it was related to and what it is related to now.

Pure. The relations are updated in the same step, between the two looks: a view that has run ahead has already
forgotten whom a namespace left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from eventcore.grants import AccountGrant
from eventcore.keys import Key, ObjectKey, WorkerName, key
from eventcore.objects import ANNOTATION_PROXY_URL, LABEL_COMPONENT, Tenant, TenantOwner
from workers.choices import operations
from workers.cluster_rules import permits
from workers.desired import ANNOTATION_DIGEST
from workers.names import same_cluster_role, token_name
from workers.own_objects import OWN_KINDS, is_ca_copy, is_lockdown, own_account
from workers.ownership import LABEL_PROMOTE, Account, Owner, is_live, namespace_claims
from workers.relations import Relations, live
from workers.setting_status import status_key
from workers.user_entries import listed, remembered

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from eventcore.grants import Grant
    from eventcore.objects import KubeObject
    from eventcore.views import Change, ObjectRecord
    from workers.proxy_settings import Setting

Route = tuple[WorkerName, Key]
CONFIG_KEY = key("config")


def route(change: Change[ObjectRecord], relations: Relations) -> set[Route]:
    """Return what has to be reconciled because of one change, and bring ``relations`` up to date."""
    record = change.new or change.old
    if record is None:
        return set()
    old, new = live(change.old), live(change.new)
    target = record.key
    routes: set[Route] = set()
    match target.kind:
        case "ServiceAccount":
            routes = _both(change, relations, lambda: _account_routes(target, (old, new), relations))
        case "Namespace":
            routes = _namespace_change(change, relations, target.name)
        case "Tenant":
            routes = _tenant_change(change, relations, cast("Tenant | None", old), cast("Tenant | None", new))
        case "TenantOwner":
            routes = _owners_change(change, relations, list(relations.tenants))
            routes |= _subjects(Owner(o.spec.kind, o.spec.name) for o in (old, new) if isinstance(o, TenantOwner))
        case "CapsuleConfiguration":
            routes = _configuration_change(change, relations) | _statuses(relations.settings.all)
        case "CASecret" | "CAConfigMap":
            routes = set().union(*(kubeconfig_routes(account, relations) for account in relations.interesting()))
            routes |= {ca_route(namespace) for namespace in relations.ca_namespaces()}
        case "ProxySetting" | "GlobalProxySettings" | "AnyRoleBinding":
            routes = _setting_change(change, relations, target, (old, new))
        case kind if kind in OWN_KINDS:
            routes = _both(change, relations, lambda: _own_routes((old, new), relations))
    return routes


def all_routes(relations: Relations) -> set[Route]:
    """Return every key: of desired state, and of our own objects that may have lost their reason or their marks."""
    routes: set[Route] = {("access", CONFIG_KEY)}
    routes |= {ca_route(namespace) for namespace in relations.ca_namespaces()}
    for account in relations.interesting() | relations.losers():
        routes |= account_routes(account, relations)
    for name in relations.tenants:
        routes.add(tenant_route(name))
        routes |= _subjects(relations.owners(name).all)
    for target in relations.settings.all:
        routes |= _subjects(relations.settings.subjects.counting(target)) | _statuses([target])
    return routes | _subjects(relations.bindings.subjects.all())


def grant_routes(grants: Collection[Grant], relations: Relations) -> set[Route]:
    """Return the keys of grants, and every key of the accounts that they are for: they may have lost all that shows."""
    routes: set[Route] = {("access", grant.key()) for grant in grants}
    accounts = [Account(grant.namespace, grant.name) for grant in grants if isinstance(grant, AccountGrant)]
    return routes.union(*(account_routes(account, relations) for account in accounts))


def account_routes(account: Account, relations: Relations) -> set[Route]:
    """Return every key of an account."""
    routes: set[Route] = {("rbac", account.key()), ("token", account.key()), ("access", account_grant_key(account))}
    return routes | kubeconfig_routes(account, relations) | lockdown_routes(account, relations)


def kubeconfig_routes(account: Account, relations: Relations) -> set[Route]:
    """Return a key for each namespace where the account's kubeconfig belongs or lies, or may lie without our marks."""
    targets = relations.targets(account, relations.tenants_of_account(account)) | {account.namespace}
    targets |= {one.key.namespace for one in relations.objects_of(account, "kubeconfig")}
    targets |= {one.namespace for one in relations.lost_of(account, "kubeconfig")}
    return {("kubeconfig", kubeconfig_key(account, target)) for target in targets}


def lockdown_routes(account: Account, relations: Relations) -> set[Route]:
    """Return a key for each namespace where Flux's default account is, or should be, bound for an account."""
    targets = relations.lockdown_targets(account, relations.tenants_of_account(account))
    found = [*(one.key for one in relations.objects_of(account, "rbac")), *relations.lost_of(account, "rbac")]
    targets |= {key.namespace for key in found if is_lockdown(key, account)}
    return {("rbac", kubeconfig_key(account, target)) for target in targets}


def kubeconfig_key(account: Account, target: str) -> Key:
    """Return the key of what an account has in one namespace."""
    return key(account.namespace, account.name, target)


def ca_route(namespace: str) -> Route:
    """Return the key of the copy of the proxy's CA in a namespace: two parts, where a kubeconfig's has three."""
    return "kubeconfig", key("ca", namespace)


def account_grant_key(account: Account) -> Key:
    """Return the key of an account's grant."""
    return key("account", account.namespace, account.name)


def tenant_route(name: str) -> Route:
    """Return the key of a tenant's grant, with its worker."""
    return "access", key("tenant", name)


def subject_grant_key(owner: Owner) -> Key:
    """Return the key of an owner's grant."""
    return key("subject", owner.kind, owner.name)


def _both(change: Change[ObjectRecord], relations: Relations, look: Callable[[], set[Route]]) -> set[Route]:
    before = look()
    relations.apply(change)
    return before | look()


def _subjects(owners: Iterable[Owner]) -> set[Route]:
    return {("access", subject_grant_key(owner)) for owner in owners}


def _statuses(targets: Iterable[ObjectKey]) -> set[Route]:
    return {("access", status_key(target)) for target in targets}


def _settings_in(namespace: str, relations: Relations) -> set[Route]:
    """Return what depends on the tenant whose namespace this is: ProxySettings, and whom they and RoleBindings name."""
    subjects = relations.settings.subjects.subjects_in(namespace) | relations.bindings.subjects.subjects_in(namespace)
    return _subjects(subjects) | _statuses(relations.settings.keys_in(namespace))


def _settings_of(tenant: str, relations: Relations) -> set[Route]:
    """Return what depends on which part of a tenant's ProxySettings counts: whom they name, and their status."""
    found = set[Route]()
    for namespace in relations.namespaces_of(tenant):
        found |= _subjects(relations.settings.subjects.subjects_in(namespace))
        found |= _statuses(relations.settings.keys_in(namespace))
    return found


def _setting_change(
    change: Change[ObjectRecord],
    relations: Relations,
    target: ObjectKey,
    states: tuple[KubeObject | None, KubeObject | None],
) -> set[Route]:
    """Return whom a setting or RoleBinding named and names, and a setting's status, alone if nothing else changed."""
    is_setting = target.kind != "AnyRoleBinding"
    index = (relations.settings if is_setting else relations.bindings).subjects
    before = index.counting_in(target.namespace)
    relations.apply(change)
    after = index.counting_in(target.namespace)
    routes = _statuses([target]) if is_setting and states[1] is not None else set[Route]()
    if is_setting and _said(states[0]) == _said(states[1]):
        return routes
    # Where the subjects of a namespace are more than count, one object decides about the next.
    nobody = frozenset[Owner]()
    for place in before.keys() | after.keys():
        was, will = before.get(place, nobody), after.get(place, nobody)
        if place == target or (was is not will and was != will):
            routes |= _subjects(was | will)
            routes |= _statuses([place] if is_setting else [])
    return routes


def _said(state: KubeObject | None) -> object:
    setting = cast("Setting | None", state)
    return setting and (setting.spec, setting.metadata.uid, setting.metadata.deletion_timestamp)


def _account_routes(
    target: ObjectKey, states: tuple[KubeObject | None, KubeObject | None], relations: Relations
) -> set[Route]:
    account = Account(target.namespace, target.name)
    routes: set[Route] = set()
    if any(state is not None and LABEL_PROMOTE in state.metadata.labels for state in states):
        routes |= _subjects([Owner("ServiceAccount", account.username)])
    if relations.is_interesting(account):
        routes |= account_routes(account, relations)
        # The plain name of a cluster-scoped object goes to one of the accounts that would have it.
        routes |= {("rbac", other.key()) for other in same_cluster_role(account) if relations.is_interesting(other)}
    return routes


def _namespace_change(change: Change[ObjectRecord], relations: Relations, name: str) -> set[Route]:
    """Return what depends on a Namespace; all that the accounts have whose home it is, when it is another tenant's."""
    before = _membership(name, relations)
    routes = _both(change, relations, lambda: _namespace_routes(name, relations))
    if before != _membership(name, relations):
        routes |= _homes([name], relations)
    return routes


def _membership(name: str, relations: Relations) -> tuple[str, bool]:
    """Return whose a namespace is, and whether it says that it is anybody's."""
    namespace = relations.namespaces.get(name)
    return relations.tenant_of(name), namespace is not None and bool(namespace_claims(namespace))


def _homes(names: Iterable[str], relations: Relations) -> set[Route]:
    """Return every key of the accounts that live in these namespaces."""
    accounts = {account for name in names for account in relations.interesting_in(name)}
    return set().union(*(account_routes(account, relations) for account in accounts))


def _namespace_routes(name: str, relations: Relations) -> set[Route]:
    """Return what depends on whose a namespace is, and on whether it is there."""
    routes: set[Route] = set()
    routes |= _settings_in(name, relations)
    if name in relations.ca_namespaces():
        routes.add(ca_route(name))
    namespace = relations.namespaces.get(name)
    claims = set(namespace_claims(namespace)) if namespace else set()
    for tenant in claims | {relations.tenant_of(name)} - {""}:
        routes.add(tenant_route(tenant))
        for account in relations.accounts_of_tenant(tenant):
            routes.add(("kubeconfig", kubeconfig_key(account, name)))
            if name in relations.lockdown_targets(account, {tenant}):
                routes.add(("rbac", kubeconfig_key(account, name)))
    routes |= {("kubeconfig", kubeconfig_key(account, name)) for account in relations.copies_in(name)}
    routes |= {("rbac", kubeconfig_key(account, name)) for account in relations.lockdown_in(name)}
    for account in relations.interesting_in(name):
        routes |= {("rbac", account.key()), ("token", account.key()), ("kubeconfig", kubeconfig_key(account, name))}
    for account in relations.promoted_in(name):
        routes |= _subjects([Owner("ServiceAccount", account.username)])
        if relations.is_interesting(account):
            routes |= account_routes(account, relations)
    return routes


def _configuration_change(change: Change[ObjectRecord], relations: Relations) -> set[Route]:
    """Return what depends on Capsule's configuration; of its users only whose entry or memory came or went."""
    before = relations.configuration
    routes = _owners_change(change, relations, list(relations.tenants))
    routes.add(("access", CONFIG_KEY))
    after = relations.configuration
    memories = [remembered(one.metadata.annotations) if one else {} for one in (before, after)]
    accounts = {account for account in {*memories[0], *memories[1]} if len({m.get(account) for m in memories}) > 1}
    for kind, name in listed(before) ^ listed(after):
        accounts |= relations.accounts_of(Owner(kind, name))
    routes |= {("rbac", account.key()) for account in accounts}
    return routes


def _tenant_change(
    change: Change[ObjectRecord], relations: Relations, old: Tenant | None, new: Tenant | None
) -> set[Route]:
    """Return what depends on a Tenant: all of it when it comes or goes, else only the owners that came or went.

    Capsule writes the status with every namespace, and that alone concerns nobody.
    """
    tenant = new or old
    if tenant is None:
        return set()
    name = tenant.metadata.name
    if old and new and old.metadata.uid == new.metadata.uid and is_live(old) == is_live(new):
        routes = _owners_change(change, relations, [name])
        if old.spec != new.spec:
            routes.add(tenant_route(name))
        if _server(old) != _server(new):
            routes = routes.union(*(kubeconfig_routes(a, relations) for a in relations.accounts_of_tenant(name)))
        if permits(old) != permits(new) or old.spec.owners != new.spec.owners:
            routes |= _settings_of(name, relations)
        # What an owner may do stands in its entry; an owner that stays may have got another one.
        before, after = operations(old), operations(new)
        return routes | _subjects(
            owner for owner in relations.owners(name).all if before.get(owner) != after.get(owner)
        )
    return _both(change, relations, lambda: _whole_tenant(name, relations))


def _server(tenant: Tenant) -> str:
    return tenant.metadata.annotations.get(ANNOTATION_PROXY_URL, "")


def _whole_tenant(name: str, relations: Relations) -> set[Route]:
    routes = {tenant_route(name), *_subjects(relations.owners(name).all)}
    # A home is of a live Tenant or of none, and with that its accounts may have everything or nothing.
    routes |= _homes(relations.claimed(name), relations)
    for namespace in relations.claimed(name):
        routes |= _settings_in(namespace, relations)
    for account in relations.accounts_of_tenant(name):
        routes |= account_routes(account, relations)
    return routes


def _owners_change(change: Change[ObjectRecord], relations: Relations, tenants: Iterable[str]) -> set[Route]:
    """Apply a change that may alter who owns these tenants; return what concerns the owners that came or went.

    An owner that is one by an outdated status alone, or was, counts as both: that it ends by itself has to be known.
    What an owner that went has left in namespaces is found by our own objects there.
    """
    before = {name: relations.owners(name) for name in tenants}
    relations.apply(change)
    routes: set[Route] = set()
    for name, owners in before.items():
        after = relations.owners(name)
        if owners.all != after.all:
            routes |= _settings_of(name, relations)  # they hand on what all owners have
        for owner in (owners.certain ^ after.certain) | (owners.stale ^ after.stale):
            routes |= _subjects([owner])
            for account in relations.accounts_of(owner):
                routes |= account_routes(account, relations)
    return routes


def _own_routes(states: tuple[KubeObject | None, KubeObject | None], relations: Relations) -> set[Route]:
    """Return whose object of ours came, went or was touched; a token that is another one concerns every copy."""
    routes: set[Route] = set()
    for state in states:
        metadata = state.metadata if state else None
        if metadata is not None and is_ca_copy(metadata):
            routes.add(ca_route(metadata.namespace))
        account = own_account(metadata)
        if metadata is None or account is None:
            continue
        match metadata.labels.get(LABEL_COMPONENT):
            case "rbac":
                place = ObjectKey("RoleBinding", metadata.namespace, metadata.name)
                bound = bool(place.namespace) and is_lockdown(place, account)
                routes.add(("rbac", kubeconfig_key(account, metadata.namespace) if bound else account.key()))
            case "token":
                routes |= {("token", account.key()), ("access", account_grant_key(account))}
                if len({_token_generation(one, account) for one in states}) > 1:
                    routes |= kubeconfig_routes(account, relations)
            case "kubeconfig":
                routes.add(("kubeconfig", kubeconfig_key(account, metadata.namespace)))
    return routes


def _token_generation(state: KubeObject | None, account: Account) -> tuple[str, str]:
    """Return what tells a current token from another one; nothing for the Secret that it is bound to."""
    if (
        state is None
        or ANNOTATION_DIGEST not in state.metadata.annotations
        or state.metadata.name != token_name(account)
    ):
        return "", ""
    return state.metadata.uid, state.metadata.annotations[ANNOTATION_DIGEST]
