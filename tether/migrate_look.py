"""Looking for what capsule-addon-fluxcd left in a cluster. Tokens become digests here and go no further."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from eventcore.kube import api_path
from eventcore.objects import ANNOTATION_ACCOUNT, CAPSULE_GROUP, LABEL_COMPONENT, LABEL_TENANT, LAST_APPLIED
from tether.cluster_lists import (
    LABEL_MANAGED_BY,
    LEGACY_ACCOUNT,
    Deployment,
    GlobalResource,
    Secret,
    capsule_path,
    get_if_there,
    list_all,
    list_if_served,
    read_config,
    secret_path,
)
from tether.cluster_relations import entitled, is_capsule_user, read_tenancy
from tether.migrate_plan import Found, Holder, Resource, bridge_name
from workers.desired import Target, Token, digest, home_role_binding, impersonator
from workers.existing import Existing, same_content
from workers.names import hashed_kubeconfig_name, kubeconfig_name, settled_cluster_role_name, token_name
from workers.options import options
from workers.ownership import Owner, is_promoted, owner_set

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.kube import KubeClient
    from eventcore.objects import Namespace
    from eventcore.settings import Settings
    from tether.cluster_relations import Tenancy
    from workers.ownership import Account
    from workers.relations import Relations

AT_ONCE = 16
"""Accounts that are looked at at the same time."""
_FROM_GIT = ("kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name", LABEL_MANAGED_BY)


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """All that there is to migrate."""

    found: tuple[Found, ...] = ()
    orphans: tuple[str, ...] = ()  # GlobalTenantResources of the addon whose account has no right to anything
    addons: tuple[tuple[str, str], ...] = ()  # (namespace, name) of Deployments of the addon that run


async def survey(client: KubeClient, settings: Settings, only: Iterable[Account] = ()) -> Survey:
    """Read the cluster; with ``only``, judge these accounts alone. KubeError."""
    tenancy = await read_tenancy(client)
    secrets = await list_all(client, Secret, secret_path())
    deployments = await list_all(client, Deployment, api_path("apps", "v1", "deployments"))
    return await survey_of(client, settings, tenancy, secrets, deployments, only=only)


async def survey_of(
    client: KubeClient,
    settings: Settings,
    tenancy: Tenancy,
    secrets: list[Secret],
    deployments: list[Deployment],
    *,
    only: Iterable[Account] = (),
) -> Survey:
    """Judge what was read already, and read the few objects of each account beside it."""
    relations = tenancy.relations(settings.capsule_configuration_name, settings.kubeconfig_namespace_selector)
    resources = await list_if_served(client, GlobalResource, capsule_path("globaltenantresources"))
    owners = entitled(relations)
    wanted = set(only)
    limit = asyncio.Semaphore(AT_ONCE)

    async def judge(account: Account) -> Found:
        async with limit:
            return await _account(client, settings, relations, account, secrets, resources)

    found = await asyncio.gather(*(judge(account) for account in owners if not wanted or account in wanted))
    known = {name for account in owners for name in _resource_names(account, resources)}
    return Survey(
        found=tuple(found),
        orphans=tuple(sorted(r.metadata.name for r in resources if r.of_addon and r.metadata.name not in known)),
        addons=tuple(
            (d.metadata.namespace, d.metadata.name) for d in deployments if d.is_addon and d.spec.replicas > 0
        ),
    )


async def _account(
    client: KubeClient,
    settings: Settings,
    relations: Relations,
    account: Account,
    secrets: list[Secret],
    resources: list[GlobalResource],
) -> Found:
    tenants = tuple(sorted(relations.tenants_of_account(account)))
    wished = options(relations.accounts[account], [relations.tenants[tenant] for tenant in tenants], settings)
    targets = relations.targets(account, set(tenants)) if wished.config_map != "instead" else set()
    proven = {account.namespace}.union(*(relations.namespaces_of(tenant) for tenant in tenants))
    by_name = {(s.metadata.namespace, s.metadata.name): s for s in secrets}
    token = by_name.get((account.namespace, token_name(account)))
    state = token_state(token, account)
    text = token.text("token") if token else ""
    bridge = by_name.get((account.namespace, bridge_name(account)))
    second = bridge.text("token") if bridge else ""
    holders = [found for s in secrets if (found := _holder(s, account, s.metadata.namespace in proven))]
    static = text if state == "static" else ""
    current = digest(text) if state == "tether" and text else ""
    rights, wrong = await _rights(client, settings, relations, account, tenants[0])
    own = {(h.namespace, h.name) for h in holders if h.proven} | {(account.namespace, token_name(account))}
    names = _resource_names(account, resources)
    return Found(
        account=account,
        tenants=tenants,
        resources=tuple(
            Resource(name=r.metadata.name, prunes=r.spec.pruning_on_delete is not False)
            for r in resources
            if r.metadata.name in names
        ),
        member_of=_member_of(relations, account, tenants),
        capsule_user=is_capsule_user(relations, account),
        static=digest(static) if static else "",
        token=state,
        current=current,
        bridge=("ready" if second else "empty") if bridge else "absent",
        bridge_held=_holding(secrets, second, {(account.namespace, bridge_name(account))}),
        rights=rights,
        wrong_rights=wrong,
        holders=tuple(holders),
        elsewhere=_holding(secrets, static, own),
        missing=tuple(
            sorted(
                name
                for name in targets
                if (namespace := relations.namespaces.get(name)) is not None
                and not namespace.terminating
                and not any(h.ours and h.namespace == name and h.token and h.token == current for h in holders)
            )
        ),
    )


def token_state(token: Secret | None, account: Account) -> Literal["absent", "static", "tether", "foreign"]:
    """Tell whose Secret the account's token Secret is."""
    if token is None:
        return "absent"
    marked = is_marked(token)
    if marked and Token.of_annotations(token.metadata.annotations) is not None:
        return "tether"
    if token.is_legacy_token and token.metadata.annotations.get(LEGACY_ACCOUNT) == account.name:
        return "static"
    return "tether" if marked else "foreign"


def is_marked(secret: Secret) -> bool:
    """Tell whether Tether made it, or was given it."""
    return LABEL_COMPONENT in secret.metadata.labels or ANNOTATION_ACCOUNT in secret.metadata.annotations


def config_token(secret: Secret) -> str:
    """Return the token of the kubeconfig in a Secret, "" without one."""
    config = read_config(secret.text("kubeconfig") or secret.text("value"))
    return config.token if config else ""


def _holder(secret: Secret, account: Account, proven: bool) -> Holder | None:
    """Return a kubeconfig Secret as one of this account's, None if it is not."""
    metadata = secret.metadata
    if metadata.name not in {kubeconfig_name(account), hashed_kubeconfig_name(account)}:
        return None
    marked = is_marked(secret)
    if marked and metadata.annotations.get(ANNOTATION_ACCOUNT, str(account)) != str(account):
        return None
    token = config_token(secret)
    if not marked and metadata.namespace != account.namespace and token_subject(token) != account.username:
        return None  # a kubeconfig of the same name for somebody else
    return Holder(
        namespace=metadata.namespace,
        name=metadata.name,
        token=digest(token) if token else "",
        ours=marked,
        proven=proven,
        immutable=secret.immutable,
    )


def token_subject(token: str) -> str:
    """Return the user name that a token claims, unverified; "" where it claims none."""
    try:
        payload = token.split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=dict[str, Any])
    except (IndexError, binascii.Error, UnicodeEncodeError, ValueError, msgspec.DecodeError):
        return ""
    return str(claims.get("sub", ""))


def _holding(secrets: list[Secret], token: str, aside: set[tuple[str, str]]) -> tuple[Target, ...]:
    """Return the Secrets that hold a token anywhere in their values, some aside."""
    if not token:
        return ()
    return tuple(
        Target("Secret", s.metadata.namespace, s.metadata.name)
        for s in secrets
        if (s.metadata.namespace, s.metadata.name) not in aside and any(token in s.text(key) for key in s.data)
    )


def _resource_names(account: Account, resources: list[GlobalResource]) -> set[str]:
    """Return the addon's GlobalTenantResources that replicate the account's kubeconfig."""
    source = (account.namespace, kubeconfig_name(account))
    return {r.metadata.name for r in resources if r.of_addon and source in r.secrets()}


def _member_of(relations: Relations, account: Account, tenants: Iterable[str]) -> str:
    """Return the Tenant that a home belongs to and should not.

    An account that was promoted, or owns by a group, may well live in a namespace of its tenant; the addon knew only
    owners that the Tenant names.
    """
    owner = Owner("ServiceAccount", account.username)
    named = any(owner in owner_set(relations.tenants[tenant].spec.owners) for tenant in tenants)
    if not named or is_promoted(relations.accounts[account]):
        return ""
    return _tenant_mentioned(relations.namespaces.get(account.namespace))


def _tenant_mentioned(namespace: Namespace | None) -> str:
    if namespace is None:
        return ""
    for reference in namespace.metadata.owner_references:
        if reference.kind == "Tenant" and reference.api_version.partition("/")[0] == CAPSULE_GROUP:
            return reference.name
    return namespace.metadata.labels.get(LABEL_TENANT, "")


async def _rights(
    client: KubeClient, settings: Settings, relations: Relations, account: Account, tenant: str
) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Return the RBAC objects that say what Tether would and that nobody manages, and what is wrong with the others."""
    at_home = home_role_binding(account, tenant, settings.home_cluster_role)
    in_tenant = relations.in_tenant(account)
    # One that is to be taken out of the tenant gets its role at home afterwards.
    manifests = [at_home] if not in_tenant or _member_of(relations, account, [tenant]) else []
    if settings.impersonator_roles:
        name = settled_cluster_role_name(account, relations.is_interesting)
        manifests += impersonator(account, tenant, name)
    unmarked: list[Target] = []
    wrong: list[str] = []
    for manifest in manifests:
        body = await get_if_there(client, dict[str, Any], manifest.target.path)
        if body is None and in_tenant and manifest is at_home:
            continue
        if body is None:
            wrong.append(f"{manifest.target} is missing")
            continue
        existing = Existing(body)
        managed = LAST_APPLIED in existing.annotations or any(label in existing.labels for label in _FROM_GIT)
        if not same_content(existing.body, manifest.content):
            wrong.append(f"{manifest.target} says other than it should")
        elif not existing.marked and not managed:
            unmarked.append(manifest.target)
    return tuple(unmarked), tuple(wrong)
