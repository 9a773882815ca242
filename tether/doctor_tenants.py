"""What is right and what is wrong with each account, its Tenants, its token and its kubeconfigs. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from eventcore.objects import ANNOTATION_ENABLED
from tether.cluster_relations import entitled, is_capsule_user, refused
from tether.doctor_readers import reader_findings
from tether.doctor_snapshot import Finding
from workers.names import kubeconfig_name, token_name
from workers.ownership import findings as owner_findings
from workers.ownership import identities, is_enabled, namespace_claims

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from eventcore.objects import Tenant
    from tether.doctor_snapshot import AccountState, ConfigState, Severity, Snapshot
    from tether.migrate_plan import Found
    from workers.ownership import Account
    from workers.relations import Relations

_LATE = timedelta(minutes=2)
"""A rotation that is overdue by less is on its way."""


def tenant_findings(snapshot: Snapshot) -> Iterator[Finding]:
    """Return the findings about tenants, then those about each account in order."""
    relations = snapshot.tenancy.relations(snapshot.configuration, snapshot.selector)
    yield from _tenants(snapshot, relations)
    yield from _namespaces(snapshot, relations)
    owners = entitled(relations)
    found = {one.account: one for one in snapshot.survey.found}
    states = {state.account: state for state in snapshot.accounts}
    yield from _refused(relations)
    yield from _without_tenant(relations, {*owners, *(one.account for one in snapshot.former)})
    for account, tenants in owners.items():
        yield from _capsule_user(relations, account)
        yield from _home(relations, account, found.get(account))
        yield from _grants(account, found.get(account))
        for tenant in tenants:
            yield from _bindings(relations.tenants[tenant], account)
        if (state := states.get(account)) is not None:
            yield from _token(snapshot, state, found.get(account))
            yield from _configs(snapshot, relations, state, set(tenants))
    yield from _servers(snapshot)
    yield from reader_findings(snapshot, relations)


def _finding(severity: Severity, check: str, about: object, message: str, remedy: str = "") -> Finding:
    return Finding(severity=severity, check=check, object=str(about), message=message, remedy=remedy)


def _tenants(snapshot: Snapshot, relations: Relations) -> Iterator[Finding]:
    for tenant in snapshot.tenancy.tenants:
        name = tenant.metadata.name
        for text in owner_findings(tenant, relations.owners(name).all):
            what, _, how = text.rpartition(": ")
            yield _finding("warning", "tenants", f"Tenant/{name}", what, how)


def _namespaces(snapshot: Snapshot, relations: Relations) -> Iterator[Finding]:
    homes = {account.namespace for account in entitled(relations)}
    for namespace in snapshot.tenancy.namespaces:
        name, claims = namespace.metadata.name, namespace_claims(namespace)
        if claims and not relations.tenant_of(name) and name not in homes and not namespace.terminating:
            text = f"mentions Tenant {', '.join(sorted(claims))} but is not provably its: label and owner reference of "
            text += "a live Tenant must agree. No kubeconfig is put there"
            remedy = "let an administrator of Capsule set both, or make the namespace anew as an owner"
            yield _finding("warning", "tenants", f"Namespace/{name}", text, remedy)


def _refused(relations: Relations) -> Iterator[Finding]:
    for account, tenant in refused(relations).items():
        text = f"is the home of {account} and a member of Tenant {tenant}, which that account does not own, so it gets "
        text += "nothing: whoever owns the namespace could act for it"
        remedy = "make the account in a namespace outside of tenants and name that one in spec.owners, or take the "
        remedy += "namespace out of the Tenant"
        yield _finding("error", "home", f"Namespace/{account.namespace}", text, remedy)


def _without_tenant(relations: Relations, told: Collection[Account]) -> Iterator[Finding]:
    elsewhere = refused(relations)
    for account, found in sorted(relations.accounts.items()):
        if is_enabled(found) and account not in told and account not in elsewhere:
            text = f"carries {ANNOTATION_ENABLED} but owns no Tenant, so it gets nothing"
            remedy = f"add {account.username} to spec.owners of its Tenant, or take the annotation off"
            yield _finding("warning", "accounts", account, text, remedy)


def _capsule_user(relations: Relations, account: Account) -> Iterator[Finding]:
    if is_capsule_user(relations, account):
        yield _finding("ok", "capsule-users", account, "is a user of Capsule")
    elif relations.tenant_of(account.namespace):
        text = "is a user of Capsule only because its home lies in a tenant"
        yield _finding("note", "capsule-users", account, text, _add_user(account))
    else:
        text = "is no user of Capsule: it cannot make namespaces, and Capsule does not hold its requests to its tenant"
        yield _finding("error", "capsule-users", account, text, _add_user(account))


def _add_user(account: Account) -> str:
    return (
        f"add {{kind: Group, name: system:serviceaccounts:{account.namespace}}} to spec.users of the "
        "CapsuleConfiguration (before Capsule 0.12 the name to spec.userGroups), or let the workers do it "
        "(--capsule-users)"
    )


def _home(relations: Relations, account: Account, found: Found | None) -> Iterator[Finding]:
    about = f"Namespace/{account.namespace}"
    namespace = relations.namespaces.get(account.namespace)
    if namespace is not None and namespace.terminating:
        yield _finding("warning", "home", about, f"is being deleted, and with it all that {account} has")
        return
    if found is None or not found.member_of:
        return
    text = (
        f"is the home of {account} and a member of Tenant {found.member_of}: it counts in its quota, and goes with it"
    )
    yield _finding("warning", "home", about, text, f"run `tether migrate {account}` as an administrator of Capsule")


def _grants(account: Account, found: Found | None) -> Iterator[Finding]:
    if found is None:
        return
    for wrong in found.wrong_rights:
        what, _, how = wrong.partition(" ")
        remedy = (
            "look at the log of `tether work rbac`; what somebody else made Tether leaves: delete it, or correct it"
        )
        yield _finding("error", "grants", what, f"{how}, and {account} needs it", remedy)
    if not found.wrong_rights:
        yield _finding("ok", "grants", account, "has its rights at home, and may impersonate itself")


def _bindings(tenant: Tenant, account: Account) -> Iterator[Finding]:
    about = f"Tenant/{tenant.metadata.name}"
    mine = {(owner.kind, owner.name) for owner in identities(account)}
    bound = [
        binding.cluster_role_name
        for binding in tenant.spec.additional_role_bindings
        for subject in binding.subjects
        if (subject.kind, subject.name) in mine
        or (subject.kind, subject.name, subject.namespace) == ("ServiceAccount", account.name, account.namespace)
    ]
    bound += [role for owner in tenant.spec.owners if (owner.kind, owner.name) in mine for role in owner.cluster_roles]
    if "cluster-admin" in bound:
        yield _finding("ok", "bindings", about, f"gives {account} cluster-admin in its namespaces")
        return
    text = f"gives {account} no cluster-admin in its namespaces: the role admin has no rights on Flux objects"
    remedy = "add cluster-admin, or a role of yours that covers them, for the account to spec.additionalRoleBindings"
    severity: Severity = "note" if set(bound) - {"admin", "capsule-namespace-deleter"} else "warning"
    yield _finding(severity, "bindings", about, text, remedy)


def _token(snapshot: Snapshot, state: AccountState, found: Found | None) -> Iterator[Finding]:
    account, token = state.account, state.token
    about = f"Secret/{account.namespace}/{token_name(account)}"
    for other in state.static:
        text = f"holds a token of {account} that never expires"
        yield _finding("warning", "tokens", f"Secret/{other}", text, "delete it when nothing uses it any more")
    if found is not None and found.token == "static":  # noqa: S105 -- a state, not a token
        return  # told with the addon
    if token is None:
        foreign = found is not None and found.token == "foreign"  # noqa: S105 -- the same
        text = "was not made by Tether, which needs its name" if foreign else "is missing"
        remedy = "delete or rename it" if foreign else "look at the log of `tether work token`, and `tether status`"
        yield _finding("error", "tokens", about, text, remedy)
        return
    uid = next(
        (a.metadata.uid for a in snapshot.tenancy.accounts if _is(a.metadata.namespace, a.metadata.name, account)), ""
    )
    again = "run `tether replay --worker token`"
    due = token.minted + (token.expires - token.minted) * snapshot.rotate_at
    if token.actual != token.digest:
        yield _finding("error", "tokens", about, "was edited by hand: the token in it is not Tether's", again)
    elif token.account_uid != uid:
        yield _finding("error", "tokens", about, "is of an account of the same name that is gone", again)
    elif not token.bound:
        text = f"is revoked: Secret {account.namespace}/{token.binding}, which it is bound to, is gone"
        yield _finding("error", "tokens", about, text, again)
    elif token.expires <= snapshot.time:
        text = f"expired at {token.expires:%Y-%m-%d %H:%M:%S %Z}"
        yield _finding("error", "tokens", about, text, "look at the log of `tether work token`, and `tether status`")
    elif not token.static and due + _LATE < snapshot.time:
        text = f"should have been replaced at {due:%Y-%m-%d %H:%M:%S %Z}, and expires at {token.expires:%H:%M:%S}"
        yield _finding("warning", "tokens", about, text, "look at the log of `tether work token`")
    else:
        end = "static, so without end" if token.static else f"good until {token.expires:%Y-%m-%d %H:%M:%S %Z}"
        text = f"generation {token.generation}, {end}"
        yield _finding("ok", "tokens", about, text)


def _is(namespace: str, name: str, account: Account) -> bool:
    return (namespace, name) == (account.namespace, account.name)


def _configs(snapshot: Snapshot, relations: Relations, state: AccountState, tenants: set[str]) -> Iterator[Finding]:
    account = state.account
    targets = relations.targets(account, tenants) if state.distributed else set()
    good = 0
    for target in sorted(targets):
        namespace = relations.namespaces.get(target)
        if namespace is None or namespace.terminating:
            continue
        here = [config for config in state.configs if config.namespace == target]
        ours = next((config for config in here if config.ours), None)
        if ours is None:
            about = f"Secret/{target}/{kubeconfig_name(account, snapshot.config_suffix)}"
            text = "was not made by Tether, so it is left as it is" if here else "is missing"
            remedy = f"run `tether migrate {account}`, or delete it" if here else "look at `tether status`"
            yield _finding("error", "kubeconfigs", about, text, remedy)
            continue
        wrong = list(_config(snapshot, state, ours))
        yield from wrong
        good += not wrong
    for config in state.configs:
        if config.ours and config.namespace not in targets:
            text = f"is a kubeconfig of {account} where it does not belong"
            about = f"Secret/{config.namespace}/{config.name}"
            yield _finding("error", "kubeconfigs", about, text, "run `tether replay --worker kubeconfig`")
    if good:
        yield _finding("ok", "kubeconfigs", account, f"{good} of {len(targets)} are as they should be")


def _config(snapshot: Snapshot, state: AccountState, config: ConfigState) -> Iterator[Finding]:
    about = f"Secret/{config.namespace}/{config.name}"
    again = "run `tether replay --worker kubeconfig`"
    if not config.readable:
        yield _finding("error", "kubeconfigs", about, "is no kubeconfig", again)
        return
    if state.token is not None and config.token != state.token.digest:
        yield _finding("error", "kubeconfigs", about, "holds another token than the current one", again)
    authority = snapshot.authority
    if authority is not None and not authority.problem and not config.certificates >= authority.certificates:
        text = f"does not trust the proxy's CA of {authority.source}"
        yield _finding("error", "kubeconfigs", about, text, again)
    if config.context != config.namespace:
        text = f"its context says namespace {config.context or 'default'}"
        yield _finding("warning", "kubeconfigs", about, text, again)
    if not set(snapshot.config_keys) <= config.keys or not config.same_in_all_keys:
        text = f"its keys {', '.join(snapshot.config_keys)} do not all hold the same"
        yield _finding("warning", "kubeconfigs", about, text, again)
    if not config.watched:
        text = "lacks the label by which Flux reacts to a new token at once"
        yield _finding("warning", "kubeconfigs", about, text, again)


def _servers(snapshot: Snapshot) -> Iterator[Finding]:
    found: dict[tuple[str, str], list[str]] = {}
    for state in snapshot.accounts:
        for config in state.configs:
            if config.ours and config.readable and config.server not in state.servers:
                pair = (config.server, ", ".join(sorted(state.servers)))
                found.setdefault(pair, []).append(str(state.account))
    for (server, wanted), accounts in sorted(found.items()):
        text = f"kubeconfigs of {len(set(accounts))} accounts name {server}, and by the settings of this command "
        text += f"they should name {wanted}"
        yield _finding("note", "kubeconfigs", "server", text, "give all commands the same --proxy-url")
