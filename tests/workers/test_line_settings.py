"""What a Tenant and a ProxySetting allow, from the cluster to the grants, on the whole line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from eventcore.grants import Choice, SelectorTerm, SubjectGrant, TenantGrant
from eventcore.kube import api_path

if TYPE_CHECKING:
    from tests.workers.conftest import Line

CRD = Path(__file__).parents[2] / "deploy" / "crds" / "proxysettings.yaml"
HOME = "oil-system"
USER = f"system:serviceaccount:{HOME}:gitops-reconciler"


async def test_what_a_tenant_and_a_proxy_setting_allow_reaches_the_grants_and_leaves_them(line: Line) -> None:
    async with line.everything():
        await line.settle()
        await line.until(lambda: line.grant("subject", "ServiceAccount", USER), "the owner's grant")

        # when the administrator allows classes and nodes
        owner = {
            "kind": "ServiceAccount",
            "name": USER,
            "proxySettings": [{"kind": "Nodes", "operations": ["List", "Update"]}],
        }
        spec = {"owners": [owner], "nodeSelector": {"pool": "oil"}, "storageClasses": {"allowed": ["fast"]}}
        await line.patch("Tenant", "", "oil", {"spec": spec})

        async def allowed() -> bool:
            subject = await line.grant("subject", "ServiceAccount", USER)
            tenant = await line.grant("tenant", "oil")
            term = SelectorTerm(key="pool", operator="In", values=("oil",))
            return (
                isinstance(subject, SubjectGrant)
                and subject.operations == {"oil": {"Nodes": ("List", "Update")}}
                and isinstance(tenant, TenantGrant)
                and tenant.choices == {"Nodes": Choice(selectors=((term,),)), "StorageClasses": Choice(names=("fast",))}
            )

        await line.until(allowed, "the grants say what the Tenant allows")

        # and dana may see the tenant's nodes by a ProxySetting
        settings = api_path("capsule.clastix.io", "v1beta1", "proxysettings", namespace="oil-production")
        may = [{"kind": "Nodes", "operations": ["List"]}]
        subjects = [{"kind": "User", "name": "dana", "proxySettings": may}]
        await line.client.create(
            settings,
            {
                "apiVersion": "capsule.clastix.io/v1beta1",
                "kind": "ProxySetting",
                "metadata": {"name": "viewers"},
                "spec": {"subjects": subjects},
            },
        )

        async def dana() -> SubjectGrant | None:
            found = await line.grant("subject", "User", "dana")
            return found if isinstance(found, SubjectGrant) else None

        await line.until(dana, "dana's grant")
        assert await dana() == SubjectGrant(
            subject_kind="User", name="dana", tenants=("oil",), operations={"oil": {"Nodes": ("List",)}}
        )

        # then it goes with the ProxySetting
        await line.client.delete(f"{settings}/viewers")

        async def gone() -> bool:
            return await dana() is None

        await line.until(gone, "dana's grant is gone")


def test_the_definition_that_ships_names_what_is_read() -> None:
    found: dict[str, Any] = yaml.safe_load(CRD.read_text())
    (version,) = found["spec"]["versions"]
    subject = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["subjects"]["items"]
    setting = subject["properties"]["proxySettings"]["items"]["properties"]

    assert found["metadata"]["name"] == "proxysettings.capsule.clastix.io"
    assert (version["name"], found["spec"]["scope"]) == ("v1beta1", "Namespaced")
    assert setting["operations"]["items"]["enum"] == ["List", "Update", "Delete"]


async def test_the_definition_that_ships_is_one_that_an_api_server_takes(line: Line) -> None:
    definition = yaml.safe_load(CRD.read_text())
    path = api_path("apiextensions.k8s.io", "v1", "customresourcedefinitions", name=definition["metadata"]["name"])

    await line.client.apply(path, definition, manager="person", force=True)
