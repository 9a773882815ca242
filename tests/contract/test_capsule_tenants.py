"""Capsule's controllers: the status of a Tenant, the rights of its owners, who may create namespaces, its end."""

from __future__ import annotations

import pytest

from tests.contract.tenants import CONFIGURATION, NAMESPACES, RBAC, TENANTS, Tenancy, condition, may
from tests.kubeapi import Object

pytestmark = pytest.mark.xdist_group("contract")

PROVISIONER, DELETER = "capsule-namespace-provisioner", "capsule-namespace-deleter"


async def test_a_tenant_is_ready_and_tells_its_owners(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()

    async def ready() -> Object | None:
        tenant = await tenancy.tenant()
        return tenant if condition(tenant.get("status", {}), "Ready") == "True" else None

    # when
    tenant = await tenancy.until(ready)
    # then
    status = tenant["status"]
    assert (status["state"], status["size"]) == ("Active", 0)
    assert condition(status, "Cordoned") == "False"
    owner = {"kind": "ServiceAccount", "name": tenancy.user, "clusterRoles": ["admin", DELETER]}
    assert status["owners"] == [owner]
    assert status["observedGeneration"] == tenant["metadata"]["generation"]
    assert tenant["metadata"]["labels"]["kubernetes.io/metadata.name"] == tenancy.name


async def test_the_status_follows_the_namespaces(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    one, two = f"{tenancy.name}-a", f"{tenancy.name}-b"
    # when
    made = {name: await tenancy.make_namespace(name) for name in (two, one)}
    full = await tenancy.status(size=2)
    await tenancy.admin.delete(f"{NAMESPACES}/{one}")
    left = await tenancy.status(size=1)
    # then
    assert full["namespaces"] == [one, two]
    uids = {space["name"]: space["uid"] for space in full["spaces"]}
    assert uids == {name: obj["metadata"]["uid"] for name, obj in made.items()}
    assert left["namespaces"] == [two]


async def test_owners_hold_their_roles_in_each_namespace(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    name = f"{tenancy.name}-a"
    await tenancy.make_namespace(name)

    async def bound() -> dict[str, list[str]] | None:
        bindings = await tenancy.bindings(name)
        return bindings if len(bindings) == 2 else None

    # when
    bindings = await tenancy.until(bound)
    # then
    assert bindings == {"admin": ["gitops"], DELETER: ["gitops"]}
    await tenancy.until(lambda: may(tenancy.owner, "create", "secrets", namespace=name))
    assert not await may(tenancy.owner, "create", "secrets", namespace=tenancy.home)


async def test_a_binding_of_capsule_is_marked_and_belongs_to_the_tenant(tenancy: Tenancy) -> None:
    # given
    tenant = await tenancy.make()
    await tenancy.make_namespace(f"{tenancy.name}-a")
    path = f"{RBAC}/namespaces/{tenancy.name}-a/rolebindings"

    async def made() -> list[Object] | None:
        items: list[Object] = (await tenancy.admin.get(path)).body["items"]
        return items if len(items) == 2 else None

    # when
    for binding in await tenancy.until(made):
        # then
        metadata = binding["metadata"]
        assert metadata["name"].startswith("capsule:managed:")
        assert metadata["labels"]["projectcapsule.dev/tenant"] == tenancy.name
        assert metadata["labels"]["projectcapsule.dev/managed-by"] == "controller"
        assert metadata["ownerReferences"][0]["uid"] == tenant["metadata"]["uid"]
        assert metadata["ownerReferences"][0]["controller"] is True
        # and nobody else may write it
        refused = await tenancy.admin.patch(f"{path}/{metadata['name']}", {"subjects": []})
        assert refused.status == 403, refused


async def test_additional_role_bindings_are_made_and_pruned(tenancy: Tenancy) -> None:
    # given
    jane = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"{tenancy.name}-jane"}
    await tenancy.make(additionalRoleBindings=[{"clusterRoleName": "view", "subjects": [jane]}])
    name = f"{tenancy.name}-a"
    await tenancy.make_namespace(name)
    client = tenancy.admin.acting(jane["name"], "system:authenticated")
    # when
    await tenancy.until(lambda: may(client, "list", "configmaps", namespace=name))
    given = await tenancy.bindings(name)
    await tenancy.admin.patch(f"{TENANTS}/{tenancy.name}", {"spec": {"additionalRoleBindings": []}})

    async def pruned() -> bool:
        return not await may(client, "list", "configmaps", namespace=name)

    # then
    assert given["view"] == [jane["name"]]
    await tenancy.until(pruned)
    assert "view" not in await tenancy.bindings(name)


async def test_an_owner_that_is_removed_loses_its_rights_and_its_place(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    name = f"{tenancy.name}-a"
    await tenancy.make_namespace(name)
    await tenancy.until(lambda: may(tenancy.owner, "create", "secrets", namespace=name))
    other = {"kind": "User", "name": f"{tenancy.name}-dana"}
    # when
    await tenancy.admin.patch(f"{TENANTS}/{tenancy.name}", {"spec": {"owners": [other]}})

    async def lost() -> bool:
        return not await may(tenancy.owner, "create", "secrets", namespace=name)

    # then
    await tenancy.until(lost)

    async def replaced() -> bool:
        return [owner["name"] for owner in (await tenancy.tenant())["status"]["owners"]] == [other["name"]]

    await tenancy.until(replaced)


async def test_a_binding_that_is_deleted_comes_back(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    name = f"{tenancy.name}-a"
    await tenancy.make_namespace(name)

    async def whole() -> bool:
        return set(await tenancy.bindings(name)) == {"admin", DELETER}

    await tenancy.until(whole)
    # when
    path = f"{RBAC}/namespaces/{name}/rolebindings"
    for binding in await tenancy.admin.names(path):
        controller = tenancy.admin.acting(
            "system:serviceaccount:capsule-system:capsule", "system:masters", "system:authenticated"
        )
        assert (await controller.delete(f"{path}/{binding}")).status == 200
    # then
    await tenancy.until(whole)


async def test_every_capsule_user_may_create_namespaces_and_nobody_else(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    # when
    role = (await tenancy.admin.get(f"{RBAC}/clusterroles/{PROVISIONER}")).body
    binding = (await tenancy.admin.get(f"{RBAC}/clusterrolebindings/{PROVISIONER}")).body
    # then
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"create", "patch"}
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {"namespaces"}
    assert tenancy.users_group in {subject["name"] for subject in binding["subjects"]}
    assert await may(tenancy.stranger, "create", "namespaces")
    assert not await may(tenancy.outsider, "create", "namespaces")
    assert not await may(tenancy.stranger, "list", "namespaces")


async def test_the_configuration_tells_users_and_tenants(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()

    async def told() -> bool:
        status = (await tenancy.admin.get(CONFIGURATION)).body.get("status", {})
        users = [(user["kind"], user["name"]) for user in status.get("users", [])]
        return ("Group", tenancy.users_group) in users

    # then
    await tenancy.until(told)


async def test_a_cordon_shows_in_the_status_and_goes(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    await tenancy.make_namespace(f"{tenancy.name}-a")
    path = f"{NAMESPACES}/{tenancy.name}-a"
    # when
    await tenancy.admin.patch(f"{TENANTS}/{tenancy.name}", {"spec": {"cordoned": True}})
    cordoned = await tenancy.status(state="Cordoned")
    await tenancy.admin.patch(f"{TENANTS}/{tenancy.name}", {"spec": {"cordoned": False}})
    active = await tenancy.status(state="Active")

    async def free() -> bool:
        labels = (await tenancy.admin.get(path)).body["metadata"]["labels"]
        return "projectcapsule.dev/cordoned" not in labels

    # then
    assert (condition(cordoned, "Cordoned"), condition(active, "Cordoned")) == ("True", "False")
    await tenancy.until(free)


async def test_a_tenant_that_is_deleted_takes_its_namespaces_along(tenancy: Tenancy) -> None:
    # given
    await tenancy.make()
    name = f"{tenancy.name}-a"
    await tenancy.make_namespace(name)
    await tenancy.status(size=1)
    # when
    deleted = await tenancy.admin.delete(f"{TENANTS}/{tenancy.name}")

    async def gone() -> bool:
        paths = (f"{TENANTS}/{tenancy.name}", f"{NAMESPACES}/{name}")
        return {(await tenancy.admin.get(path)).status for path in paths} == {404}

    # then
    assert deleted.status == 200
    await tenancy.until(gone)
    assert (await tenancy.admin.get(f"{NAMESPACES}/{tenancy.home}")).status == 200


async def test_a_protected_tenant_is_not_deleted(tenancy: Tenancy) -> None:
    # given
    await tenancy.make(preventDeletion=True)
    # when
    refused = await tenancy.admin.delete(f"{TENANTS}/{tenancy.name}")
    # then
    assert refused.status == 403
    assert "protected" in refused.body["message"]


@pytest.mark.parametrize("wrong", [{"onwers": []}, {"owners": [{"kind": "User", "nmae": "dana", "name": "dana"}]}])
async def test_a_field_that_a_tenant_does_not_have_is_refused_or_told(tenancy: Tenancy, wrong: Object) -> None:
    # given
    body = {
        "apiVersion": "capsule.clastix.io/v1beta2",
        "kind": "Tenant",
        "metadata": {"name": tenancy.name},
        "spec": wrong,
    }
    # when
    refused = await tenancy.admin.post(TENANTS, body, params={"fieldValidation": "Strict", "dryRun": "All"})
    warned = await tenancy.admin.post(TENANTS, body, params={"fieldValidation": "Warn", "dryRun": "All"})
    # then
    assert (refused.status, refused.body["reason"]) == (400, "BadRequest")
    assert "unknown field" in refused.body["message"]
    assert warned.status == 201
    assert "unknown field" in warned.headers["Warning"]


async def test_an_owner_is_a_user_a_group_or_an_account(tenancy: Tenancy) -> None:
    # given
    body = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "metadata": {"name": tenancy.name}}
    # when
    refused = await tenancy.admin.post(TENANTS, body | {"spec": {"owners": [{"kind": "Robot", "name": "a"}]}})
    # then
    assert (refused.status, refused.body["reason"]) == (422, "Invalid")
    cause = refused.body["details"]["causes"][0]
    assert (cause["reason"], cause["field"]) == ("FieldValueNotSupported", "spec.owners[0].kind")


async def test_a_tenant_without_owners_is_ready(tenancy: Tenancy) -> None:
    # given
    body = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "metadata": {"name": tenancy.name}}
    await tenancy.must(tenancy.admin.post(TENANTS, body | {"spec": {}}))

    async def ready() -> bool:
        return condition((await tenancy.tenant()).get("status", {}), "Ready") == "True"

    # then
    await tenancy.until(ready)
    assert not (await tenancy.tenant())["status"].get("owners")
