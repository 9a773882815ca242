"""`tether doctor` on a running cluster: silent about what is right, precise about what somebody broke."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from eventcore.errors import AlreadyExistsError, ConflictError, NotFoundError, TooManyRequestsError
from eventcore.kube import KubeClient, api_path

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"
DEPLOYMENTS = api_path("apps", "v1", "deployments", namespace="flux-system")
DEFINITIONS = api_path("apiextensions.k8s.io", "v1", "customresourcedefinitions")


async def run(cluster: Any, *arguments: str, kubeconfig: str = "admin.kubeconfig") -> tuple[int, list[Object], str]:
    """Run the doctor; return its exit code, its findings and all that it printed."""
    config = str(cluster.folder / kubeconfig)
    done = await asyncio.to_thread(cluster.tether, "doctor", "--json", "--kubeconfig", config, *arguments)
    assert done.returncode in {0, 3, 4}, done.stderr
    findings: list[Object] = msgspec.json.decode(done.stdout)["findings"]
    worst = {"ok": 0, "note": 0, "warning": 3, "error": 4}
    assert done.returncode == max(worst[finding["severity"]] for finding in findings)
    return done.returncode, findings, done.stdout + done.stderr


def about(findings: list[Object], *texts: str, severity: tuple[str, ...] = ("warning", "error")) -> list[Object]:
    """Return the findings of these severities that name all these texts."""
    return [
        finding
        for finding in findings
        if finding["severity"] in severity
        and all(text in f"{finding['object']} {finding['message']} {finding['remedy']}" for text in texts)
    ]


async def settled(tenancy: Tenancy, *namespaces: str) -> None:
    for namespace in (tenancy.home, *namespaces):
        await tenancy.must("Secret", namespace, f"{ACCOUNT}-kubeconfig")


@pytest.mark.slow
async def test_an_account_that_owned_a_tenant_and_is_still_there_is_named_with_what_it_left_at_home(
    tenancy: Tenancy,
) -> None:
    # Given an account that made rights for another one at its home while it could
    await tenancy.make()
    await settled(tenancy)
    await tenancy.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "door", "namespace": tenancy.home},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": tenancy.home}],
        }
    )

    # When its Tenant is deleted
    await tenancy.admin.delete(api_path("capsule.clastix.io", "v1beta2", "tenants", name=tenancy.name))
    await tenancy.gone("RoleBinding", tenancy.home, ACCOUNT)
    await tenancy.gone("Secret", tenancy.home, f"{ACCOUNT}-token")

    # Then it is named with what to do, and its home with what gives all rights there
    _, findings, _ = await run(tenancy.cluster)
    former = [one for one in about(findings, tenancy.home) if one["check"] == "former-owners"]
    assert [(one["severity"], one["object"]) for one in former] == [
        ("warning", f"{tenancy.home}/{ACCOUNT}"),
        ("error", f"Namespace/{tenancy.home}"),
    ]
    assert "kubectl delete serviceaccount" in former[0]["remedy"]
    assert "RoleBinding door" in former[1]["message"]
    assert not [one for one in about(findings, tenancy.home) if one["check"] == "accounts"], "one remedy, not two"

    # And when it is gone, no more is said
    await tenancy.admin.delete(api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT))
    _, findings, _ = await run(tenancy.cluster)
    assert [one for one in about(findings, tenancy.home) if one["check"] == "former-owners"] == []


async def test_a_tenant_that_is_right_is_told_to_be_right_and_no_secret_is_printed(tenancy: Tenancy) -> None:
    await tenancy.make()
    (name,) = await tenancy.make_namespaces("production")
    await settled(tenancy, name)
    _, findings, printed = await run(tenancy.cluster)
    assert about(findings, tenancy.name) == []
    right = {finding["check"] for finding in about(findings, tenancy.name, severity=("ok",))}
    assert right >= {"capsule-users", "bindings", "grants", "tokens", "kubeconfigs"}
    token = await tenancy.token()
    assert token not in printed
    assert token.rsplit(".", 1)[1] not in printed


async def test_who_else_can_read_a_copy_in_a_namespace_of_the_tenant_is_named(tenancy: Tenancy) -> None:
    # Given a tenant with two namespaces, and a developer with `edit` in one of them
    await tenancy.make()
    production, development = await tenancy.make_namespaces("production", "development")
    await settled(tenancy, production, development)
    _, findings, _ = await run(tenancy.cluster)
    assert about(findings, tenancy.name, "can read Secrets") == []
    developer = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": f"{tenancy.name}-alice"}
    await tenancy.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "developers", "namespace": development},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
            "subjects": [developer],
        }
    )
    # Then the doctor names both, once, and says why it matters
    _, findings, _ = await run(tenancy.cluster)
    (found,) = about(findings, tenancy.name, "can read Secrets", severity=("warning",))
    assert found["object"] == f"Namespace/{development}"
    assert f"User {developer['name']}" in found["message"]


async def test_the_parts_that_all_share_are_right(tenancy: Tenancy) -> None:
    _, findings, _ = await run(tenancy.cluster)
    for check in ("cluster", "kinds", "configuration", "bus", "watchers", "workers", "rights", "authority"):
        told = [finding for finding in findings if finding["check"] == check]
        assert told, check
        assert {finding["severity"] for finding in told} <= {"ok", "note"}, told


async def test_an_owner_that_is_no_user_of_capsule_is_named(tenancy: Tenancy) -> None:
    # Given a tenant of the guide, without its group in the CapsuleConfiguration
    await tenancy.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenancy.home}})
    await tenancy.apply(tenancy.tenant(tenancy.user))
    await tenancy.apply(tenancy.account(**{"capsule.addon.fluxcd/enabled": "true"}))
    code, findings, _ = await run(tenancy.cluster)
    assert code == 4
    (found,) = about(findings, f"{tenancy.home}/{ACCOUNT}", "no user of Capsule")
    assert f"system:serviceaccounts:{tenancy.home}" in found["remedy"]


async def test_a_tenant_without_the_binding_for_flux_objects_is_named(tenancy: Tenancy) -> None:
    await tenancy.make_home()
    tenant = tenancy.tenant(tenancy.user)
    del tenant["spec"]["additionalRoleBindings"]
    await tenancy.apply(tenant)
    await tenancy.apply(tenancy.account(**{"capsule.addon.fluxcd/enabled": "true"}))
    _, findings, _ = await run(tenancy.cluster)
    (found,) = about(findings, f"Tenant/{tenancy.name}")
    assert "spec.additionalRoleBindings" in found["remedy"]


async def test_a_kubeconfig_of_somebody_else_in_the_way_is_named(tenancy: Tenancy) -> None:
    await tenancy.make_home()
    metadata = {"name": f"{ACCOUNT}-kubeconfig", "namespace": tenancy.home}
    await tenancy.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"kubeconfig": "YQ=="}})
    await tenancy.apply(tenancy.tenant(tenancy.user))
    await tenancy.apply(tenancy.account(**{"capsule.addon.fluxcd/enabled": "true"}))
    await tenancy.token()
    _, findings, _ = await run(tenancy.cluster)
    (found,) = about(findings, f"Secret/{tenancy.home}/{ACCOUNT}-kubeconfig")
    assert "not made by Tether" in found["message"]


async def test_a_role_binding_of_somebody_else_in_the_way_is_named(tenancy: Tenancy) -> None:
    await tenancy.make_home()
    await tenancy.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": ACCOUNT, "namespace": tenancy.home},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": tenancy.home}],
        }
    )
    await tenancy.apply(tenancy.tenant(tenancy.user))
    await tenancy.apply(tenancy.account(**{"capsule.addon.fluxcd/enabled": "true"}))
    await tenancy.must("ClusterRoleBinding", "", tenancy.impersonator)
    await settled(tenancy)
    _, findings, _ = await run(tenancy.cluster)
    (found,) = about(findings, f"RoleBinding/{tenancy.home}/{ACCOUNT}")
    assert "says other than it should" in found["message"]


async def test_an_edited_kubeconfig_is_right_for_the_doctor_only_when_it_is_mended(
    tenancy: Tenancy, until: Any
) -> None:
    # Given a kubeconfig into which somebody writes nonsense
    await tenancy.make()
    await settled(tenancy)
    path = api_path("", "v1", "secrets", namespace=tenancy.home, name=f"{ACCOUNT}-kubeconfig")
    before = msgspec.json.decode(await tenancy.admin.get(path), type=Object)
    await tenancy.admin.merge_patch(path, {"data": {"kubeconfig": "YQ==", "value": "YQ=="}})

    # When the doctor says that it is right
    async def right() -> bool:
        _, findings, _ = await run(tenancy.cluster)
        return not about(findings, tenancy.name)

    await until(right)

    # Then it is as it was
    after = msgspec.json.decode(await tenancy.admin.get(path), type=Object)
    assert after["data"] == before["data"]


async def test_each_controller_of_flux_without_lockdown_is_named_with_the_flag_that_lacks(tenancy: Tenancy) -> None:
    async with flux(tenancy.admin, "kustomize-controller", "--no-cross-namespace-refs=true"):
        code, findings, _ = await run(tenancy.cluster)
        assert code == 4
        lacking = {finding["remedy"].split()[1] for finding in about(findings, "flux-system/kustomize-controller")}
        assert lacking == {"--no-remote-bases=true", "--default-service-account=gitops-reconciler"}
    flags = ("--no-cross-namespace-refs=true", "--no-remote-bases=true", f"--default-service-account={ACCOUNT}")
    async with flux(tenancy.admin, "kustomize-controller", *flags):
        _, findings, _ = await run(tenancy.cluster)
        assert about(findings, "flux-system/kustomize-controller") == []
        assert about(findings, "flux-system/kustomize-controller", severity=("ok",))


@asynccontextmanager
async def flux(admin: KubeClient, name: str, *flags: str) -> AsyncIterator[None]:
    """A Deployment as Flux' own manifests make it; no pod runs."""
    labels = {"app": name}
    container = {"name": "manager", "image": f"flux/{name}", "args": ["--log-level=info", *flags]}
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "flux"}},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }
    with contextlib.suppress(AlreadyExistsError):
        await admin.create(api_path("", "v1", "namespaces"), {"metadata": {"name": "flux-system"}})
    await admin.create(DEPLOYMENTS, body)
    try:
        yield
    finally:
        await admin.delete(f"{DEPLOYMENTS}/{name}")


async def test_the_finalizer_that_holds_up_a_namespace_is_named(tenancy: Tenancy, until: Any) -> None:
    # Given a namespace that is being deleted, and a Kustomization in it which Flux does not let go
    namespace = f"{tenancy.name}-left"
    path = api_path("kustomize.toolkit.fluxcd.io", "v1", "kustomizations", namespace=namespace)
    async with kustomizations(tenancy.admin, until):
        await tenancy.admin.create(api_path("", "v1", "namespaces"), {"metadata": {"name": namespace}})
        body = {
            "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
            "kind": "Kustomization",
            "metadata": {"name": "apps", "namespace": namespace, "finalizers": ["finalizers.fluxcd.io"]},
        }
        await tenancy.admin.create(path, body)
        await tenancy.admin.delete(api_path("", "v1", "namespaces", name=namespace))

        # Then the doctor names it
        async def named() -> list[Object]:
            _, findings, _ = await run(tenancy.cluster)
            return about(findings, f"Kustomization/{namespace}/apps", "finalizers.fluxcd.io")

        assert await until(named)

        # And what it advises ends the namespace
        await tenancy.admin.merge_patch(f"{path}/apps", {"metadata": {"finalizers": None}})
        await tenancy.gone("Namespace", "", namespace)
        assert await named() == []


@asynccontextmanager
async def kustomizations(admin: KubeClient, until: Any) -> AsyncIterator[None]:
    """Serve Flux' kind for a while, without Flux."""
    name = "kustomizations.kustomize.toolkit.fluxcd.io"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": "kustomize.toolkit.fluxcd.io",
            "scope": "Namespaced",
            "names": {
                "plural": "kustomizations",
                "singular": "kustomization",
                "kind": "Kustomization",
                "listKind": "KustomizationList",
            },
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }
    # Another test may define it too, and removes it when it likes.
    created = True
    try:
        await admin.create(DEFINITIONS, body)
    except (AlreadyExistsError, ConflictError):
        created = False

    async def served() -> bool:
        try:
            await admin.get(api_path("kustomize.toolkit.fluxcd.io", "v1", "kustomizations"))
        except (NotFoundError, TooManyRequestsError):  # the API server says so while it makes room for a new kind
            return False
        return True

    await until(served)
    try:
        yield
    finally:
        if created:
            await admin.delete(f"{DEFINITIONS}/{name}")


async def test_an_account_of_ours_that_is_missing_is_named(tenancy: Tenancy) -> None:
    code, findings, _ = await run(tenancy.cluster, "--namespace", f"none-{secrets.token_hex(2)}")
    assert code == 4
    assert {finding["check"] for finding in about(findings, "does not exist", "deploy/rbac")} == {"rights"}


async def test_a_role_may_ask_about_itself(tenancy: Tenancy) -> None:
    _, findings, _ = await run(tenancy.cluster, kubeconfig="roles/watcher.kubeconfig")
    told = [finding for finding in findings if finding["check"] == "rights"]
    assert [(finding["object"], finding["severity"]) for finding in told] == [("capsule-system/tether-watcher", "ok")]


async def test_what_a_person_may_not_read_is_said_and_not_judged(tenancy: Tenancy) -> None:
    # Given the account of the proxy, which may not read Secrets
    await tenancy.make()
    await settled(tenancy)
    _, findings, _ = await run(tenancy.cluster, kubeconfig="roles/proxy.kubeconfig")
    assert about(findings, "secrets", "cannot be read")
    assert [finding for finding in findings if finding["check"] in {"tokens", "kubeconfigs", "authority"}] == []


async def test_people_get_lines_and_a_sum(tenancy: Tenancy) -> None:
    config = str(tenancy.cluster.folder / "admin.kubeconfig")
    done = await asyncio.to_thread(tenancy.cluster.tether, "doctor", "--kubeconfig", config)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok       https://")
    assert " ok" in lines[-1]
    quiet = await asyncio.to_thread(tenancy.cluster.tether, "doctor", "--problems", "--kubeconfig", config)
    assert quiet.returncode == done.returncode
    assert not [line for line in quiet.stdout.splitlines() if line.startswith("ok ")]
