"""The doctor's judgement: each thing that can be wrong is found, named and can be mended; what is right is said so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.objects import (
    AdditionalRoleBinding,
    CapsuleConfiguration,
    CapsuleConfigurationSpec,
    Meta,
    Namespace,
    NamespaceStatus,
    OwnerReference,
    ServiceAccount,
    Subject,
    Tenant,
    TenantOwner,
    TenantSpec,
    TenantSpecOwner,
)
from tether.cluster_lists import Container, Deployment, DeploymentSpec, PodSpec, PodTemplate
from tether.cluster_relations import Tenancy
from tether.doctor_findings import EXIT_CODES, FLUX, LOCKDOWN, findings, flag, worst
from tether.doctor_snapshot import (
    SEVERITIES,
    AccountState,
    Authority,
    Bus,
    ConfigState,
    Finding,
    Leftover,
    Right,
    Snapshot,
    TokenState,
)
from tether.migrate_look import Survey
from tether.migrate_plan import Found, Resource
from tether.set_aside import SetAside
from workers.desired import Target
from workers.ownership import Account

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ACCOUNT = Account("oil-system", "gitops-reconciler")
KINDS = ("ServiceAccount", "Namespace", "Tenant", "Secret")
URL = "https://proxy.example:9001"
change = msgspec.structs.replace


def namespace(name: str, tenant: str = "", uid: str = "1", **metadata: Any) -> Namespace:
    owners = [OwnerReference(api_version="capsule.clastix.io/v1beta2", kind="Tenant", name=tenant, uid=uid)]
    labels = {"capsule.clastix.io/tenant": tenant} if tenant else {}
    return Namespace(
        metadata=Meta(name=name, labels=labels, owner_references=owners if tenant else [], **metadata),
    )


def tenancy(**changes: Any) -> Tenancy:
    annotations = {"capsule.addon.fluxcd/enabled": "true"}
    admin = Subject(kind="ServiceAccount", name=ACCOUNT.name, namespace=ACCOUNT.namespace)
    spec = TenantSpec(
        owners=[TenantSpecOwner(kind="ServiceAccount", name=ACCOUNT.username, cluster_roles=["admin"])],
        additional_role_bindings=[AdditionalRoleBinding(cluster_role_name="cluster-admin", subjects=[admin])],
    )
    users = CapsuleConfigurationSpec(user_groups=["system:serviceaccounts:oil-system"])
    base = Tenancy(
        accounts=(
            ServiceAccount(
                metadata=Meta(name=ACCOUNT.name, namespace=ACCOUNT.namespace, uid="7", annotations=annotations)
            ),
        ),
        namespaces=(namespace("oil-system"), namespace("oil-production", "oil")),
        tenants=(Tenant(metadata=Meta(name="oil", uid="1"), spec=spec),),
        configurations=(CapsuleConfiguration(metadata=Meta(name="default"), spec=users),),
    )
    return change(base, **changes)


def config(name: str = "oil-system", **changes: Any) -> ConfigState:
    base = ConfigState(
        namespace=name,
        name="gitops-reconciler-kubeconfig",
        server=URL,
        certificates=frozenset({"ca"}),
        token="t",
        context=name,
        keys=frozenset({"kubeconfig", "value"}),
    )
    return change(base, **changes)


def token(**changes: Any) -> TokenState:
    base = TokenState(
        generation=3,
        digest="t",
        actual="t",
        account_uid="7",
        minted=NOW - timedelta(hours=1),
        expires=NOW + timedelta(hours=23),
        binding="gitops-reconciler-token-3",
        bound=True,
    )
    return change(base, **changes)


def state(**changes: Any) -> AccountState:
    base = AccountState(
        account=ACCOUNT, token=token(), configs=(config(), config("oil-production")), servers=frozenset({URL})
    )
    return change(base, **changes)


def controller(name: str, *args: str) -> Deployment:
    template = PodTemplate(spec=PodSpec(containers=[Container(name="manager", args=list(args))]))
    return Deployment(metadata=Meta(name=name, namespace="flux-system"), spec=DeploymentSpec(template=template))


def healthy(**changes: Any) -> Snapshot:
    """A cluster on which nothing is wrong."""
    flags = {"--default-service-account": "--default-service-account=gitops-reconciler"}
    base = Snapshot(
        time=NOW,
        server="https://api.example:6443",
        version="v1.35.0",
        served={
            "capsule.clastix.io/v1beta2": ("tenants", "tenantowners", "capsuleconfigurations"),
            **{f"{group}/{version}": (plural,) for group, (version, plural) in FLUX.items()},
        },
        tenancy=tenancy(),
        survey=Survey(found=(Found(account=ACCOUNT, tenants=("oil",), token="tether", current="t"),)),
        bus=Bus(url="nats://nats.example:4222", ages=dict.fromkeys(KINDS, 1.0)),
        rights=(Right(account="capsule-system/tether-watcher", right="list namespaces", allowed=True),),
        flux=tuple(controller(name, *(flags.get(f, f"{f}=true") for f in wanted)) for name, wanted in LOCKDOWN.items()),
        authority=Authority(
            source="Secret/capsule-system/capsule-proxy",
            certificates=frozenset({"ca"}),
            expires=NOW + timedelta(days=90),
        ),
        accounts=(state(),),
    )
    return change(base, **changes)


def problems(snapshot: Snapshot) -> list[Finding]:
    return [finding for finding in findings(snapshot) if finding.severity != "ok"]


def test_a_healthy_cluster_has_no_problem() -> None:
    assert problems(healthy()) == []
    assert worst(findings(healthy())) == "ok"


def test_a_healthy_cluster_is_told_line_by_line() -> None:
    checks = {finding.check for finding in findings(healthy())}
    assert checks >= {
        "cluster",
        "kinds",
        "configuration",
        "bus",
        "clocks",
        "watchers",
        "workers",
        "rights",
        "lockdown",
        "authority",
        "capsule-users",
        "bindings",
        "grants",
        "tokens",
        "kubeconfigs",
        "addon",
    }


def bus(**changes: Any) -> Snapshot:
    return healthy(bus=change(healthy().bus or Bus(url=""), **changes))


def found(**changes: Any) -> Snapshot:
    return healthy(survey=Survey(found=(change(healthy().survey.found[0], **changes),)))


def account(**changes: Any) -> Snapshot:
    return healthy(accounts=(state(**changes),))


def without_owner() -> Tenancy:
    return tenancy(tenants=(Tenant(metadata=Meta(name="oil", uid="1")),))


def ended(**changes: Any) -> Namespace:
    return change(namespace("oil-system"), status=NamespaceStatus(phase="Terminating"), **changes)


OIL = tenancy().tenants[0]

CASES: dict[str, tuple[Snapshot, str, str, str]] = {
    "no Capsule": (healthy(served={}), "error", "kinds", "install Capsule"),
    "no tenantowners": (
        healthy(served=healthy().served | {"capsule.clastix.io/v1beta2": ("tenants", "capsuleconfigurations")}),
        "note",
        "kinds",
        "spec.owners alone",
    ),
    "an old Flux": (
        healthy(served=healthy().served | {"helm.toolkit.fluxcd.io/v2": (), "helm.toolkit.fluxcd.io/v2beta1": ("x",)}),
        "warning",
        "kinds",
        "upgrade Flux",
    ),
    "no Flux": (
        healthy(served={"capsule.clastix.io/v1beta2": healthy().served["capsule.clastix.io/v1beta2"]}, flux=()),
        "note",
        "kinds",
        "install Flux",
    ),
    "another configuration": (
        healthy(configuration="other"),
        "error",
        "configuration",
        "there is default",
    ),
    "something unreadable": (healthy(unreadable={"secrets": "forbidden"}), "warning", "cluster", "cluster-admin"),
    "no NATS": (bus(error="no NATS server answers"), "error", "bus", "start NATS"),
    "a missing stream": (bus(differences=("stream WORK is missing",)), "error", "bus", "topology apply"),
    "a stream that differs": (
        bus(differences=("stream WORK: max_age is 1, should be 2",)),
        "warning",
        "bus",
        "topology apply",
    ),
    "no watcher ever": (bus(ages={}), "error", "watchers", "tether watch"),
    "watchers that stopped": (bus(ages=dict.fromkeys(KINDS, 999.0)), "error", "watchers", "999 s"),
    "no worker": (bus(idle=("token",)), "error", "workers", "tether work token"),
    "a clock that is behind": (healthy(skew=-61.0), "warning", "clocks", "61 s behind that of the API server"),
    "a clock of NATS that is ahead": (bus(skew=9.0), "warning", "clocks", "9 s ahead of that of the API server"),
    "messages that are too small": (bus(max_payload=1_048_576), "error", "bus", "max_payload to 4 MiB"),
    "an object that the bus does not take": (
        bus(set_aside=(SetAside(object="Tenant/oil", why="oversized", since=NOW),)),
        "error",
        "set-aside",
        "raise max_payload",
    ),
    "a name that the bus does not take": (
        bus(set_aside=(SetAside(object="RoleBinding/dev/aaa... (5000 characters)", why="name", since=NOW),)),
        "error",
        "set-aside",
        "grants nothing",
    ),
    "dead letters": (bus(dead_letters=2), "warning", "workers", "tether status"),
    "an audit that is nearly full": (bus(audit_fill=0.81), "warning", "bus", "--audit-max-bytes"),
    "an account of ours missing": (
        healthy(absent=("ServiceAccount/capsule-system/tether-worker",)),
        "error",
        "rights",
        "deploy/rbac",
    ),
    "a right that lacks": (
        healthy(rights=(Right(account="a/b", right="bind clusterroles", allowed=False),)),
        "error",
        "rights",
        "may not bind clusterroles",
    ),
    "a controller without lockdown": (
        healthy(flux=(controller("kustomize-controller", "--no-cross-namespace-refs=true", "--no-remote-bases"),)),
        "error",
        "lockdown",
        "--default-service-account=gitops-reconciler",
    ),
    "a lockdown switched off": (
        healthy(flux=(controller("notification-controller", "--no-cross-namespace-refs=false"),)),
        "error",
        "lockdown",
        "--no-cross-namespace-refs=true",
    ),
    "another default account": (
        healthy(
            flux=(controller("helm-controller", "--no-cross-namespace-refs", "--default-service-account=flux"),),
        ),
        "note",
        "lockdown",
        "flux by default",
    ),
    "no CA": (
        healthy(authority=Authority(source="Secret/a/b", problem="does not exist")),
        "error",
        "authority",
        "--proxy-ca-*",
    ),
    "a CA that ends soon": (
        healthy(authority=change(healthy().authority or Authority(source=""), expires=NOW + timedelta(days=3))),
        "warning",
        "authority",
        "renew",
    ),
    "a CA that ended": (
        healthy(authority=change(healthy().authority or Authority(source=""), expires=NOW - timedelta(days=3))),
        "error",
        "authority",
        "expired",
    ),
    "an account without a tenant": (
        healthy(tenancy=without_owner(), accounts=(), survey=Survey()),
        "warning",
        "accounts",
        "spec.owners",
    ),
    "no user of Capsule": (
        healthy(tenancy=tenancy(configurations=(CapsuleConfiguration(metadata=Meta(name="default")),))),
        "error",
        "capsule-users",
        "system:serviceaccounts:oil-system",
    ),
    "a user only by its home": (
        healthy(
            tenancy=tenancy(
                configurations=(CapsuleConfiguration(metadata=Meta(name="default")),),
                namespaces=(namespace("oil-system", "oil"), namespace("oil-production", "oil")),
            )
        ),
        "note",
        "capsule-users",
        "only because its home",
    ),
    "a home in the tenant": (found(member_of="oil"), "warning", "home", "tether migrate oil-system/gitops-reconciler"),
    "a home that ends": (
        healthy(tenancy=tenancy(namespaces=(ended(), namespace("oil-production", "oil")))),
        "warning",
        "home",
        "being deleted",
    ),
    "a role binding that lacks": (
        found(wrong_rights=("RoleBinding/oil-system/gitops-reconciler is missing",)),
        "error",
        "grants",
        "tether work rbac",
    ),
    "no binding for Flux objects": (
        healthy(
            tenancy=tenancy(tenants=(change(OIL, spec=change(OIL.spec, additional_role_bindings=[])),)),
        ),
        "warning",
        "bindings",
        "spec.additionalRoleBindings",
    ),
    "a namespace with a forged label": (
        healthy(tenancy=tenancy(namespaces=(*tenancy().namespaces, namespace("stolen", "oil", uid="9")))),
        "warning",
        "tenants",
        "not provably",
    ),
    "no token": (account(token=None), "error", "tokens", "tether work token"),
    "a foreign token Secret": (
        change(account(token=None), survey=found(token="foreign").survey),
        "error",
        "tokens",
        "delete or rename",
    ),
    "an edited token": (account(token=token(actual="x")), "error", "tokens", "edited by hand"),
    "a token of the account before": (account(token=token(account_uid="6")), "error", "tokens", "of the same name"),
    "a revoked token": (account(token=token(bound=False)), "error", "tokens", "is revoked"),
    "an expired token": (account(token=token(expires=NOW)), "error", "tokens", "expired at"),
    "a late rotation": (
        account(token=token(minted=NOW - timedelta(hours=23), expires=NOW + timedelta(hours=1))),
        "warning",
        "tokens",
        "should have been replaced",
    ),
    "another static token": (account(static=("oil-system/x",)), "warning", "tokens", "never expires"),
    "a missing kubeconfig": (account(configs=(config(),)), "error", "kubeconfigs", "oil-production"),
    "a key that is asked for": (
        healthy(config_keys=("kubeconfig", "value", "config")),
        "warning",
        "kubeconfigs",
        "config do not all",
    ),
    "a foreign kubeconfig": (
        account(configs=(config(ours=False), config("oil-production"))),
        "error",
        "kubeconfigs",
        "not made by Tether",
    ),
    "a stray kubeconfig": (
        account(configs=(config(), config("oil-production"), config("elsewhere"))),
        "error",
        "kubeconfigs",
        "does not belong",
    ),
    "an unreadable kubeconfig": (
        account(configs=(config(readable=False), config("oil-production"))),
        "error",
        "kubeconfigs",
        "is no kubeconfig",
    ),
    "an old token in a kubeconfig": (
        account(configs=(config(token="before"), config("oil-production"))),
        "error",
        "kubeconfigs",
        "another token",
    ),
    "an old CA in a kubeconfig": (
        account(configs=(config(certificates=frozenset({"old"})), config("oil-production"))),
        "error",
        "kubeconfigs",
        "does not trust",
    ),
    "a wrong context": (
        account(configs=(config(context="default"), config("oil-production"))),
        "warning",
        "kubeconfigs",
        "namespace default",
    ),
    "one key alone": (
        account(configs=(config(keys=frozenset({"kubeconfig"})), config("oil-production"))),
        "warning",
        "kubeconfigs",
        "value",
    ),
    "no Flux label": (
        account(configs=(config(watched=False), config("oil-production"))),
        "warning",
        "kubeconfigs",
        "label",
    ),
    "another server": (
        account(configs=(config(server="https://old"), config("oil-production"))),
        "note",
        "kubeconfigs",
        "--proxy-url",
    ),
    "a home of another tenant": (
        healthy(
            tenancy=tenancy(
                namespaces=(namespace("oil-system", "gas"),),
                tenants=(
                    *tenancy().tenants,
                    Tenant(
                        metadata=Meta(name="gas", uid="1"),
                        spec=TenantSpec(owners=[TenantSpecOwner(kind="User", name="dana")]),
                    ),
                ),
            )
        ),
        "error",
        "home",
        "member of Tenant gas, which that account does not own",
    ),
    "an addon that runs": (
        healthy(survey=Survey(addons=(("capsule-system", "capsule-addon-fluxcd"),))),
        "error",
        "addon",
        "tether migrate",
    ),
    "a replicated token": (found(resources=(Resource(name="r", prunes=True),)), "error", "addon", "in clear"),
    "an orphan of the addon": (healthy(survey=Survey(orphans=("r",))), "error", "addon", "kubectl delete"),
    "the addon's token": (
        change(account(token=None), survey=found(token="static").survey),
        "error",
        "addon",
        "never expires",
    ),
    "a migration half done": (found(bridge="ready"), "warning", "addon", "not finished"),
    "rights without marks": (
        found(rights=(Target("RoleBinding", "oil-system", "gitops-reconciler"),)),
        "note",
        "addon",
        "from Git that is right",
    ),
    "a finalizer of Flux": (
        healthy(
            leftovers=(Leftover(kind="Kustomization", namespace="a", name="b", finalizers=("finalizers.fluxcd.io",)),)
        ),
        "warning",
        "finalizers",
        "finalizers.fluxcd.io",
    ),
}


CONSEQUENCES = {"another configuration": ("capsule-users",), "an account without a tenant": ("tenants",)}
"""Other checks that find something too."""


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_found_alone_and_says_how_to_mend_it(case: str) -> None:
    snapshot, severity, check, text = CASES[case]
    told = problems(snapshot)
    mine = [f for f in told if f.check == check and f.severity == severity]
    assert mine, told
    assert any(text in f"{f.object} {f.message} {f.remedy}" for f in mine), mine
    assert {f.check for f in told} == {check, *CONSEQUENCES.get(case, ())}, told
    assert worst(told) == severity


def test_every_warning_and_error_says_how_to_mend_it() -> None:
    for snapshot, *_ in CASES.values():
        for finding in findings(snapshot):
            assert finding.remedy or finding.severity in {"ok", "note"} or finding.check == "home", finding


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (("--default-service-account=flux",), "flux"),
        (("--default-service-account", "flux"), "flux"),
        (("--default-service-account", "--log-level=info"), ""),
        (("--log-level=info",), None),
        (("--default-service-account-not=flux",), None),
    ],
)
def test_a_flag_is_read_as_go_reads_it(args: tuple[str, ...], value: str | None) -> None:
    assert flag(controller("helm-controller", *args), "--default-service-account") == value


def test_a_static_token_is_neither_late_nor_about_to_end() -> None:
    static = token(static=True, minted=NOW - timedelta(days=9000), expires=datetime(9999, 12, 31, tzinfo=UTC))
    assert problems(account(token=static)) == []


def test_where_a_config_map_stands_instead_no_kubeconfig_is_missing() -> None:
    assert problems(account(configs=(), distributed=False)) == []


def test_a_tenant_owner_object_entitles_as_spec_owners_does() -> None:
    bound = change(OIL, spec=change(OIL.spec, owners=[]))
    labels = {"projectcapsule.dev/tenant": "oil"}
    spec = {"kind": "ServiceAccount", "name": ACCOUNT.username}
    owner = msgspec.convert({"metadata": {"name": "o", "labels": labels}, "spec": spec}, TenantOwner)
    assert problems(healthy(tenancy=tenancy(tenants=(bound,), tenant_owners=(owner,)))) == []


@given(st.lists(st.sampled_from(SEVERITIES)))
def test_the_exit_code_is_that_of_the_worst(severities: list[Any]) -> None:
    told = [Finding(severity=one, check="c", object="o", message="m") for one in severities]
    expected = max((EXIT_CODES[one] for one in severities), default=0)
    assert EXIT_CODES[worst(told)] == expected
