"""Indexes over the objects on OBJECTS: who owns which tenant, which namespace is whose, which objects are ours.

Pure: :meth:`Relations.apply` takes one change and brings every index up to date, so that what was related before and
what is related after can be compared. The router and the workers each keep one beside their reader.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, cast

from eventcore.keys import ObjectKey
from eventcore.objects import (
    ANNOTATION_PROXY_CA,
    CapsuleConfiguration,
    CapsuleConfigurationSpec,
    GlobalProxySettings,
    Namespace,
    ProxySetting,
    ServiceAccount,
    Tenant,
    TenantOwner,
)
from eventcore.selectors import parse_selector
from workers.choices import operations
from workers.own_index import OwnIndex
from workers.own_objects import OWN_KINDS, OwnObject
from workers.ownership import (
    GROUP_ALL_ACCOUNTS,
    GROUP_AUTHENTICATED,
    Account,
    Owner,
    OwnerState,
    chosen_namespaces,
    identities,
    is_enabled,
    is_global,
    is_live,
    is_promoted,
    matched_owners,
    namespace_claims,
    namespace_tenant,
    owner_set,
    promotion_allowed,
    selector_matches,
    stale_until,
    status_is_current,
)
from workers.proxy_settings import ProxySettingsIndex
from workers.reflection import Bindings
from workers.tables import member, put
from workers.user_entries import remembered

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from eventcore.objects import KubeObject, RoleBinding
    from eventcore.views import Change, ObjectRecord
    from workers.desired import Target


class Relations:
    """Everything that is known, indexed. Reading returns shared sets: copy before a change."""

    def __init__(self, configuration: str = "default", flux_account: str = "", selector: str = "") -> None:
        self._configuration = configuration
        self._flux_account = flux_account
        self._selector = parse_selector(selector)
        self.accounts: dict[Account, ServiceAccount] = {}
        self.tenants: dict[str, Tenant] = {}
        self.operations: dict[str, dict[Owner, dict[str, tuple[str, ...]]]] = {}  # by tenant
        self.tenant_owners: dict[str, TenantOwner] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.configuration: CapsuleConfiguration | None = None
        self.settings = ProxySettingsIndex()
        self.bindings = Bindings()
        self._owners: dict[str, OwnerState] = {}
        self._removed: dict[str, frozenset[Owner]] = {}  # from the spec, while the status still names them
        self._tenants_of: defaultdict[Owner, set[str]] = defaultdict(set)
        self._claims: defaultdict[str, set[str]] = defaultdict(set)
        self._tenant_of: dict[str, str] = {}
        self._namespaces_of: defaultdict[str, set[str]] = defaultdict(set)
        self._enabled: defaultdict[str, set[Account]] = defaultdict(set)
        self._promoted: defaultdict[str, set[Account]] = defaultdict(set)
        self._own = OwnIndex()
        self._users: frozenset[Account] = frozenset()
        self._ca_wanted: set[str] = set()

    # What is asked.

    def is_interesting(self, account: Account) -> bool:
        """Tell whether there is anything to do for an account: it is enabled, or objects were made for it."""
        return account in self._enabled.get(account.namespace, ()) or self._own.has(account) or account in self._users

    def interesting(self) -> set[Account]:
        """Return every enabled account and every account that has objects of ours, or an entry in Capsule's users."""
        return set().union(*self._enabled.values(), self._own.accounts(), self._users)

    def interesting_in(self, namespace: str) -> set[Account]:
        """Return the interesting accounts whose home is this namespace."""
        users = {account for account in self._users if account.namespace == namespace}
        return self._enabled.get(namespace, set()) | self._own.at_home_in(namespace) | users

    def owners(self, tenant: str) -> OwnerState:
        """Return the owners of a live tenant; of any other name, none."""
        return self._owners.get(tenant, OwnerState())

    def tenants_of(self, owner: Owner) -> set[str]:
        """Return the live tenants that one identity owns."""
        return self._tenants_of.get(owner, set())

    def tenants_of_account(self, account: Account) -> set[str]:
        """Return the live tenants that an account owns under any of its identities."""
        return set().union(*(self._tenants_of.get(owner, ()) for owner in identities(account)))

    def owned_at(self, account: Account, now: datetime, grace: float) -> tuple[set[str], datetime | None]:
        """Return the tenants that an account owns now, and when the first of them stops counting if nothing changes.

        An owner that only a stale status names counts for ``grace`` seconds.
        """
        mine = identities(account)
        names: set[str] = set()
        until: datetime | None = None
        for name in self.tenants_of_account(account):
            state = self._owners[name]
            if any(owner in state.certain for owner in mine):
                names.add(name)
            elif (end := stale_until(state, now, grace)) is not None:
                names.add(name)
                until = min(until, end) if until else end
        return names, until

    def accounts_of(self, owner: Owner) -> set[Account]:
        """Return the interesting accounts that act under an identity."""
        if owner.kind == "Group":
            if owner.name in {GROUP_ALL_ACCOUNTS, GROUP_AUTHENTICATED}:
                return self.interesting()
            home = owner.name.removeprefix(GROUP_ALL_ACCOUNTS + ":")
            return self.interesting_in(home) if home != owner.name else set()
        account = Account.of_username(owner.name)
        return {account} if account and self.is_interesting(account) else set()

    def accounts_of_tenant(self, tenant: str) -> set[Account]:
        """Return the interesting accounts that own a tenant."""
        return set().union(*(self.accounts_of(owner) for owner in self.owners(tenant).all))

    def tenant_of(self, namespace: str) -> str:
        """Return the tenant that a namespace provably belongs to, or ""."""
        return self._tenant_of.get(namespace, "")

    def namespaces_of(self, tenant: str) -> set[str]:
        """Return the namespaces that provably belong to a tenant."""
        return self._namespaces_of.get(tenant, set())

    def foreign_home(self, account: Account, tenants: Collection[str]) -> str:
        """Return the tenant that an account's home provably belongs to, "" for none and for one of ``tenants``.

        Whoever made such a namespace acts for every account in it, so the account is not what its owner entry meant.
        """
        tenant = self.tenant_of(account.namespace)
        return "" if tenant in tenants else tenant

    def claimed(self, tenant: str) -> set[str]:
        """Return the namespaces that mention a tenant, proven or not."""
        return self._claims.get(tenant, set())

    def objects_of(self, account: Account, component: str = "") -> list[OwnObject]:
        """Return our objects for an account, of one component when it is given."""
        return self._own.of(account, component)

    def made_for(self, target: Target, uid: str) -> Account | None:
        """Return the account that an object was made for when it was first seen, whatever marks are on it now."""
        return self._own.made_for(ObjectKey(target.kind, target.namespace, target.name), uid)

    def held(self, target: Target, uid: str) -> int:
        """Return the generation of the token in an object when its namespace left the account's tenants, or 0."""
        return self._own.held(ObjectKey(target.kind, target.namespace, target.name), uid)

    def is_anothers(self, target: Target, account: Account) -> bool:
        """Tell whether what was last seen here was made for another account."""
        return self._own.is_anothers(ObjectKey(target.kind, target.namespace, target.name), account)

    def forget(self, target: Target) -> bool:
        """Forget an object that is not shown; tell whether it was known."""
        return self._own.forget(ObjectKey(target.kind, target.namespace, target.name))

    def lost_of(self, account: Account, component: str) -> list[ObjectKey]:
        """Return what was made for an account, does not say so any more, and may still stand where it stood."""
        found = self._own.lost(account, component)
        return [key for key in found if not key.namespace or key.namespace in self.namespaces]

    def losers(self) -> set[Account]:
        """Return the accounts of :meth:`lost_of`."""
        return self._own.losers()

    def in_tenant(self, account: Account) -> bool:
        """Tell whether an account's home says that it is a tenant's, proven or not: there it gets no rights of ours."""
        home = self.namespaces.get(account.namespace)
        return home is not None and bool(namespace_claims(home))

    def remembered_tenants(self, account: Account) -> list[str]:
        """Return the tenants that an account may own, by what nobody but an administrator, Capsule and Tether writes.

        Beside those that the view shows, the ones that its cluster-scoped objects were made for.
        """
        return sorted(self.tenants_of_account(account) | self._own.cluster_tenants(account))

    def settings_of(self, subject: Owner) -> list[tuple[str, ProxySetting]]:
        """Return (tenant, setting) of every ProxySetting that names a subject and stands in a tenant's namespace."""
        found = ((self.tenant_of(setting.metadata.namespace), setting) for _, setting in self.settings.of(subject))
        return [(tenant, one) for tenant, one in found if tenant and isinstance(one, ProxySetting)]

    def global_settings_of(self, subject: Owner) -> list[GlobalProxySettings]:
        """Return every GlobalProxySettings that names a subject."""
        return [one for _, one in self.settings.of(subject) if isinstance(one, GlobalProxySettings)]

    def promoted_in(self, namespace: str) -> set[Account]:
        """Return the accounts of a namespace that carry the promotion label."""
        return self._promoted.get(namespace, set())

    def copies_in(self, namespace: str) -> set[Account]:
        """Return the accounts that have a kubeconfig of ours in a namespace."""
        return self._own.copies_in(namespace)

    def ca_namespaces(self) -> set[str]:
        """Return the namespaces that ask for a copy of the proxy's CA, or have one of ours."""
        return self._ca_wanted | self._own.ca_copies()

    def targets(self, account: Account, tenants: set[str]) -> set[str]:
        """Return the namespaces where the kubeconfig of an account belongs that owns these tenants."""
        service_account = self.accounts.get(account)
        if service_account is None or not is_enabled(service_account) or not tenants:
            return set()
        found = set().union(*(self.namespaces_of(tenant) for tenant in tenants))
        return {name for name in found if self.is_distributed(account, name)} | {account.namespace}

    def lockdown_targets(self, account: Account, tenants: set[str]) -> set[str]:
        """Return the namespaces where Flux's default account is to be bound for an account that owns these tenants.

        It gets the role that the account has at home, so not where that is :meth:`in_tenant`.
        """
        if not self._flux_account:
            return set()
        return {name for name in self.targets(account, tenants) if self.tenant_of(name) in tenants}

    def lockdown_in(self, namespace: str) -> set[Account]:
        """Return the accounts for which Flux's default account is bound in a namespace."""
        return self._own.lockdown_in(namespace)

    def is_distributed(self, account: Account, namespace: str) -> bool:
        """Tell whether the kubeconfig of an account goes to a namespace, if that is one of its tenants'.

        Of a namespace that is not known the labels are not known either, and nothing shows that it was not chosen.
        """
        service_account = self.accounts.get(account)
        if service_account is None or not is_global(service_account):
            return False
        chosen = chosen_namespaces(service_account)
        found = self.namespaces.get(namespace)
        return chosen is not None and (
            found is None
            or (
                selector_matches(self._selector, found.metadata.labels)
                and selector_matches(chosen, found.metadata.labels)
            )
        )

    # What changes.

    def apply(self, change: Change[ObjectRecord]) -> None:
        """Take one change of OBJECTS."""
        old, new = live(change.old), live(change.new)
        record = change.new or change.old
        if record is None:
            return
        key = record.key
        match key.kind:
            case "ServiceAccount":
                self._account(Account(key.namespace, key.name), cast("ServiceAccount | None", new))
            case "Namespace":
                self._namespace(key.name, cast("Namespace | None", new))
            case "Tenant":
                self._tenant(key.name, cast("Tenant | None", old), cast("Tenant | None", new), record.time)
            case "TenantOwner":
                put(self.tenant_owners, key.name, cast("TenantOwner | None", new))
                self._index_all_owners()
            case "CapsuleConfiguration" if key.name == self._configuration:
                self.configuration = cast("CapsuleConfiguration | None", new)
                self._users = frozenset(remembered(new.metadata.annotations) if new else ())
                self._index_all_owners()
            case "ProxySetting" | "GlobalProxySettings":
                self.settings.apply(key, new)
            case "AnyRoleBinding":
                self.bindings.put(key, cast("RoleBinding | None", new))
            case kind if kind in OWN_KINDS:
                gone = record.metadata if change.new is not None and new is None else None
                self._own.apply(key, old.metadata if old else None, new.metadata if new else None, gone)

    def _account(self, account: Account, new: ServiceAccount | None) -> None:
        put(self.accounts, account, new)
        member(self._enabled, account.namespace, account, present=new is not None and is_enabled(new))
        was = account in self._promoted.get(account.namespace, ())
        promoted = new is not None and is_promoted(new)
        member(self._promoted, account.namespace, account, present=promoted)
        if was != promoted:
            self._index_owners_of(self.tenant_of(account.namespace))

    def _namespace(self, name: str, new: Namespace | None) -> None:
        old = self.namespaces.get(name)
        for tenant in namespace_claims(old) if old else ():
            member(self._claims, tenant, name, present=False)
        for tenant in namespace_claims(new) if new else ():
            member(self._claims, tenant, name, present=True)
        put(self.namespaces, name, new)
        wants = new is not None and ANNOTATION_PROXY_CA in new.metadata.annotations
        (self._ca_wanted.add if wants else self._ca_wanted.discard)(name)
        self._prove(name)

    def _prove(self, name: str) -> None:
        namespace = self.namespaces.get(name)
        tenant = namespace_tenant(namespace, self.tenants) if namespace else None
        before, after = self.tenant_of(name), tenant.metadata.name if tenant else ""
        if before == after:
            return
        if before:
            self._own.leave(name, [one for one in self.copies_in(name) if before in self.tenants_of_account(one)])
        member(self._namespaces_of, before, name, present=False)
        put(self._tenant_of, name, after or None)
        if after:
            member(self._namespaces_of, after, name, present=True)
        if self._promoted.get(name):
            self._index_owners_of(before)
            self._index_owners_of(after)

    def _tenant(self, name: str, old: Tenant | None, new: Tenant | None, time: datetime) -> None:
        put(self.tenants, name, new)
        put(self.operations, name, operations(new) if new else None)
        if old and new:
            gone = owner_set(old.spec.owners) - owner_set(new.spec.owners)
            self._removed[name] = (self._removed.get(name, frozenset()) | gone) - owner_set(new.spec.owners)
        if new is None or (status_is_current(new) and new.status.observed_generation):
            self._removed.pop(name, None)
        for namespace in set(self.claimed(name)):
            self._prove(namespace)
        self._index_owners(name, new, time)

    def _index_all_owners(self) -> None:
        for name, tenant in self.tenants.items():
            self._index_owners(name, tenant)

    def _index_owners_of(self, name: str) -> None:
        if name:
            self._index_owners(name, self.tenants.get(name))

    def _index_owners(self, name: str, tenant: Tenant | None, time: datetime | None = None) -> None:
        before = self._owners.get(name, OwnerState())
        after = self.judge(tenant, before.since or time) if tenant else OwnerState()
        for owner in before.all - after.all:
            member(self._tenants_of, owner, name, present=False)
        for owner in after.all - before.all:
            member(self._tenants_of, owner, name, present=True)
        put(self._owners, name, after if after != OwnerState() else None)

    def judge(self, tenant: Tenant, since: datetime | None = None) -> OwnerState:
        """Return the owners of a Tenant as it was just read, beside all else that is known here."""
        if not is_live(tenant):
            return OwnerState()
        certain = owner_set(tenant.spec.owners) | matched_owners(tenant, self.tenant_owners.values())
        if promotion_allowed(tenant, self.configuration):
            homes = self.namespaces_of(tenant.metadata.name)
            promoted = (account for home in homes for account in self._promoted.get(home, ()))
            certain |= {Owner("ServiceAccount", account.username) for account in promoted}
        # The status lags behind: what the spec has just lost is gone, whatever the status still says.
        reported = owner_set(tenant.status.owners or ()) - self._removed.get(tenant.metadata.name, frozenset())
        reported = frozenset(o for o in reported if o in certain or not self._lost_promotion(o, tenant))
        if status_is_current(tenant):
            return OwnerState(certain | reported)
        stale = reported - certain
        return OwnerState(certain, stale, since if stale else None)

    def _lost_promotion(self, owner: Owner, tenant: Tenant) -> bool:
        """Tell whether an owner can only have come by a promotion that is over; Capsule may say so much later."""
        account = Account.of_username(owner.name)
        if account is None or self.tenant_of(account.namespace) != tenant.metadata.name:
            return False
        spec = self.configuration.spec if self.configuration else CapsuleConfigurationSpec()
        if any((one.kind, one.name) == (owner.kind, owner.name) for one in spec.administrators):
            return False
        allowed = spec.allow_service_account_promotion and tenant.spec.permissions.allow_owner_promotion is not False
        return not allowed or account not in self._promoted.get(account.namespace, ())


def live(record: ObjectRecord | None) -> KubeObject | None:
    """Return the object of a record, None for nothing and for a tombstone."""
    return None if record is None or record.deleted else record.obj
