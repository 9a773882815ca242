"""Looking at a cluster and a bus for `tether doctor`. It reads and reviews; it writes nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from eventcore.clock import KUBE, now
from eventcore.errors import ForbiddenError
from eventcore.kube import api_path
from eventcore.objects import ANNOTATION_ACCOUNT, CAPSULE_GROUP, Meta, PartialObject
from tether import former_owners
from tether.cluster_lists import (
    LEGACY_ACCOUNT,
    Deployment,
    Secret,
    get_if_there,
    list_all,
    list_if_served,
    read_config,
    secret_path,
)
from tether.cluster_relations import Tenancy, entitled, read_tenancy
from tether.doctor_bus import look_at_bus
from tether.doctor_findings import FLUX
from tether.doctor_readers import look_at_readers
from tether.doctor_rights import look_at_rights
from tether.doctor_snapshot import AccountState, Authority, ConfigState, Leftover, Snapshot, TokenState
from tether.migrate_look import Survey, is_marked, survey_of, token_state
from tether.migrate_plan import bridge_name
from workers.desired import LABEL_FLUX_WATCH, Token, digest
from workers.names import hashed_kubeconfig_name, kubeconfig_name, token_name
from workers.options import options

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from datetime import datetime

    from eventcore.kube import KubeClient
    from eventcore.settings import Settings
    from workers.ownership import Account
    from workers.relations import Relations

T = TypeVar("T")

PART_OF_FLUX: Final = "app.kubernetes.io/part-of"
FLUX_NAMESPACE: Final = "flux-system"


class _Version(msgspec.Struct):
    version: str = ""
    groupVersion: str = ""  # noqa: N815 -- the API's name


class _Group(msgspec.Struct):
    name: str
    versions: list[_Version] = []


class _Groups(msgspec.Struct):
    groups: list[_Group]


class _Resource(msgspec.Struct):
    name: str
    kind: str = ""
    namespaced: bool = False


class _Resources(msgspec.Struct):
    resources: list[_Resource]


async def look(client: KubeClient, settings: Settings, *, namespace: str) -> Snapshot:
    """Return all that the doctor judges; KubeError when the API server does not answer at all.

    ``namespace`` is where Tether's own accounts are. What this person may not read is left out, and named.
    """
    version = await client.version()
    unreadable: dict[str, str] = {}

    async def allowed(what: str, reading: Awaitable[T], otherwise: T) -> T:
        try:
            return await reading
        except ForbiddenError as error:
            unreadable[what] = str(error)
            return otherwise

    tenancy = await allowed("tenants, accounts and namespaces", read_tenancy(client), Tenancy())
    secrets = await allowed("secrets", list_all(client, Secret, secret_path()), [])
    path = api_path("apps", "v1", "deployments")
    deployments = await allowed("deployments", list_all(client, Deployment, path), [])
    reading = survey_of(client, settings, tenancy, secrets, deployments)
    survey = await allowed("what the addon left", reading, Survey())
    served = await _served(client)
    optional = ("worker-users.yaml",) if settings.capsule_users else ()
    absent, rights = await allowed("rights", look_at_rights(client, namespace, optional), ((), ()))
    relations = tenancy.relations(settings.capsule_configuration_name, settings.kubeconfig_namespace_selector)
    judged = [] if "secrets" in unreadable else list(entitled(relations))
    accounts = tuple(_with_wishes(account_state(account, secrets, settings), relations, settings) for account in judged)
    leftovers = await allowed("leftovers of Flux", _leftovers(client, tenancy, served), ())
    bus = await look_at_bus(settings)
    reading_former = former_owners.look(client, relations, bus.former, settings.home_cluster_role)
    former = await allowed("rights at the homes of former owners", reading_former, ())
    return Snapshot(
        time=now(),
        skew=KUBE.skew,
        server=client.server_url,
        version=version,
        served={name: tuple(found) for name, found in served.items()},
        unreadable=unreadable,
        configuration=settings.capsule_configuration_name,
        selector=settings.kubeconfig_namespace_selector,
        flux_account=settings.flux_service_account,
        config_suffix=settings.kubeconfig_suffix,
        config_keys=settings.kubeconfig_data_keys(),
        rotate_at=settings.rotation_age() / settings.token_ttl,
        tenancy=tenancy,
        survey=survey,
        bus=bus,
        absent=absent,
        rights=rights,
        flux=tuple(d for d in deployments if _is_flux(d)),
        authority=await allowed("the proxy's CA", look_at_authority(client, settings), None),
        accounts=accounts,
        leftovers=leftovers,
        readers=await allowed("roles and their bindings", look_at_readers(client, accounts), {}),
        former=former,
    )


async def _served(client: KubeClient) -> dict[str, dict[str, _Resource]]:
    """Return the resources, by plural, of each version of Capsule's and Flux's groups."""
    groups = (await client.get_as(_Groups, "/apis")).groups
    names = [v.groupVersion for g in groups if g.name in {CAPSULE_GROUP, *FLUX} for v in g.versions]

    async def read(name: str) -> dict[str, _Resource]:
        found = await client.get_as(_Resources, f"/apis/{name}")
        return {resource.name: resource for resource in found.resources if "/" not in resource.name}

    return dict(zip(names, await asyncio.gather(*(read(name) for name in names)), strict=True))


def _is_flux(deployment: Deployment) -> bool:
    metadata = deployment.metadata
    return metadata.labels.get(PART_OF_FLUX) == "flux" or metadata.namespace == FLUX_NAMESPACE


async def _leftovers(
    client: KubeClient, tenancy: Tenancy, served: dict[str, dict[str, _Resource]]
) -> tuple[Leftover, ...]:
    """Return the Flux objects with finalizers in namespaces that are being deleted."""
    ending = [namespace.metadata.name for namespace in tenancy.namespaces if namespace.terminating]
    found: list[Leftover] = []
    kinds: set[tuple[str, str]] = set()
    for name, resources in served.items():
        group, _, version = name.partition("/")
        if group not in FLUX:
            continue
        for resource in resources.values():
            if not resource.namespaced or (group, resource.name) in kinds:
                continue  # a second version shows the same objects
            kinds.add((group, resource.name))
            for namespace in ending:
                path = api_path(group, version, resource.name, namespace=namespace)
                found += [
                    Leftover(
                        kind=resource.kind,
                        namespace=namespace,
                        name=one.metadata.name,
                        finalizers=tuple(one.metadata.finalizers),
                    )
                    for one in await list_if_served(client, PartialObject, path)
                    if one.metadata.finalizers
                ]
    return tuple(found)


def _with_wishes(state: AccountState, relations: Relations, settings: Settings) -> AccountState:
    """Add what the account, its tenants and the settings ask for."""
    service_account = relations.accounts[state.account]
    tenants = [relations.tenants[name] for name in sorted(relations.tenants_of_account(state.account))]
    # A Tenant's own URL holds in its namespaces alone.
    wished = [options(service_account, some, settings) for some in (tenants, *([tenant] for tenant in tenants))]
    return msgspec.structs.replace(
        state,
        servers=frozenset(one.proxy_url for one in wished),
        distributed=wished[0].config_map != "instead",
    )


def account_state(account: Account, secrets: list[Secret], settings: Settings) -> AccountState:
    """Return what an account has, from all Secrets."""
    at_home = {s.metadata.name: s for s in secrets if s.metadata.namespace == account.namespace}
    suffix, keys = settings.kubeconfig_suffix, settings.kubeconfig_data_keys()
    names = {kubeconfig_name(account, suffix), hashed_kubeconfig_name(account, suffix)}
    known = {token_name(account), bridge_name(account)}
    return AccountState(
        account=account,
        token=_token(account, at_home),
        configs=tuple(config_state(s, keys) for s in secrets if s.metadata.name in names and _may_be_of(s, account)),
        static=tuple(
            f"{account.namespace}/{name}"
            for name, s in sorted(at_home.items())
            if s.is_legacy_token
            and name not in known
            and not is_marked(s)
            and s.metadata.annotations.get(LEGACY_ACCOUNT) == account.name
        ),
    )


def _may_be_of(secret: Secret, account: Account) -> bool:
    return secret.metadata.annotations.get(ANNOTATION_ACCOUNT, str(account)) == str(account)


def _token(account: Account, at_home: dict[str, Secret]) -> TokenState | None:
    secret = at_home.get(token_name(account))
    if secret is None or token_state(secret, account) != "tether":
        return None
    token = Token.of_annotations(secret.metadata.annotations)
    text = secret.text("token")
    if token is None:
        return None
    binding = at_home.get(token.binding)
    return TokenState(
        generation=token.generation,
        digest=token.digest,
        actual=digest(text) if text else "",
        account_uid=token.account_uid,
        minted=token.minted,
        expires=token.expires,
        binding=token.binding,
        static=token.mode == "static",
        bound=binding is not None and binding.metadata.uid == token.binding_uid,
    )


def config_state(secret: Secret, keys: tuple[str, ...]) -> ConfigState:
    """Return what there is to say of a kubeconfig Secret, without its content."""
    texts = {key: secret.text(key) for key in keys if key in secret.data}
    config = read_config(next(iter(texts.values()), ""))
    certificates = read_certificates(config.ca) if config else None
    return ConfigState(
        namespace=secret.metadata.namespace,
        name=secret.metadata.name,
        ours=is_marked(secret),
        readable=config is not None,
        server=config.server if config else "",
        certificates=frozenset(certificates or ()),
        token=digest(config.token) if config and config.token else "",
        context=config.namespace if config else "",
        keys=frozenset(texts),
        same_in_all_keys=len(set(texts.values())) <= 1,
        watched=secret.metadata.labels.get(LABEL_FLUX_WATCH) == "Enabled",
    )


class _Data(msgspec.Struct):
    data: dict[str, str] | None = None


async def look_at_authority(client: KubeClient, settings: Settings) -> Authority:
    """Read and judge the proxy's CA of the settings; KubeError."""
    kind, name = settings.ca_source()
    path = api_path("", "v1", f"{kind.lower()}s", namespace=settings.proxy_ca_namespace, name=name)
    found = await get_if_there(client, _Data, path)
    if found is None:
        return authority(settings, None)
    data = found.data or {}
    if kind == "ConfigMap":
        return authority(settings, data)
    metadata = Meta(name=name, namespace=settings.proxy_ca_namespace)
    secret = Secret(metadata=metadata, data=data)
    return authority(settings, {key: secret.text(key) for key in data})


def authority(settings: Settings, texts: dict[str, str] | None) -> Authority:
    """Judge the texts of the proxy's CA, None where there is no such object."""
    kind, name = settings.ca_source()
    source = f"{kind}/{settings.proxy_ca_namespace}/{name}"
    if texts is None:
        return Authority(source=source, problem="does not exist, so no kubeconfig can be made")
    key = next((key for key in settings.ca_keys() if key in texts), None)
    if key is None:
        return Authority(source=source, problem=f"has none of the keys {', '.join(settings.ca_keys())}")
    found = read_certificates(texts[key].encode())
    if not found:
        return Authority(source=source, problem=f"key {key} is not a PEM certificate")
    return Authority(source=source, certificates=frozenset(found), expires=min(found.values()))


def read_certificates(pem: bytes) -> dict[str, datetime] | None:
    """Return the fingerprints of the certificates of a bundle, with their ends; None where it is not one."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        return None
    return {one.fingerprint(SHA256()).hex(): one.not_valid_after_utc for one in found}
