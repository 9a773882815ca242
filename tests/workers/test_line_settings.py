"""What a Tenant and a ProxySetting allow, from the cluster to the grants, on the whole line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from eventcore.grants import Choice, SelectorTerm, SubjectGrant, TenantGrant
from eventcore.kube import api_path

if TYPE_CHECKING:
    from tests.workers.conftest import Line

CRDS = Path(__file__).parents[2] / "deploy" / "crds"
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

        # but no more than the owner may, whatever it says: its status tells what counts not, and an Event
        may = [{"kind": "Nodes", "operations": ["List", "Delete"]}, {"kind": "StorageClasses", "operations": ["List"]}]
        subjects = [{"kind": "User", "name": "dana", "proxySettings": may}]
        await line.client.merge_patch(f"{settings}/viewers", {"spec": {"subjects": subjects}})

        async def told() -> bool:
            events = msgspec.json.decode(
                await line.client.get(api_path("", "v1", "events", namespace="oil-production"))
            )["items"]
            said = [one["message"] for one in events if one["reason"] == "NotPermitted"]
            return (
                await ready(line, f"{settings}/viewers") == (2, "False", "NotPermitted")
                and len(said) == 1
                and "proxySettings[0]: Delete of Nodes does not count" in said[0]
                and "proxySettings[1]: List of StorageClasses does not count" in said[0]
            )

        await line.until(told, "what does not count is told")
        assert (await dana() or SubjectGrant(subject_kind="", name="")).operations == {"oil": {"Nodes": ("List",)}}

        # then it goes with the ProxySetting
        await line.client.delete(f"{settings}/viewers")

        async def gone() -> bool:
            return await dana() is None

        await line.until(gone, "dana's grant is gone")


async def ready(line: Line, path: str) -> tuple[int, str, str]:
    """Return (observedGeneration, status, reason) of a setting, once it has a status."""
    found: dict[str, Any] = msgspec.json.decode(await line.client.get(path))
    status = found.get("status") or {}
    condition: dict[str, str] = next((one for one in status.get("conditions", ()) if one["type"] == "Ready"), {})
    return status.get("observedGeneration", 0), condition.get("status", ""), condition.get("reason", "")


async def test_settings_have_a_status_that_follows_their_generation_and_rules_reach_the_grants(line: Line) -> None:
    settings = api_path("capsule.clastix.io", "v1beta1", "proxysettings", namespace="oil-production")
    everywhere = api_path("capsule.clastix.io", "v1beta1", "globalproxysettings")
    chosen = {"apiGroups": [""], "resources": ["nodes"], "selector": {"matchLabels": {"share": "yes"}}}
    subject = {"kind": "ServiceAccount", "name": USER}
    async with line.everything(proxy_cluster_scoped=True):
        await line.settle()

        async def rules_become(*tenants: str) -> None:
            async def are() -> bool:
                found = await line.grant("subject", "ServiceAccount", USER)
                return isinstance(found, SubjectGrant) and tuple(rule.tenant for rule in found.rules) == tenants

            await line.until(are, f"the rules are those of {tenants}")

        async def becomes(path: str, wanted: tuple[int, str, str]) -> None:
            async def has() -> bool:
                return await ready(line, path) == wanted

            await line.until(has, f"{path} is {wanted}")

        # when a GlobalProxySettings is made, and changed
        body = {"apiVersion": "capsule.clastix.io/v1beta1", "kind": "GlobalProxySettings", "metadata": {"name": "g"}}
        spec = {"rules": [{"subjects": [subject], "clusterResources": [chosen]}]}
        await line.client.create(everywhere, body | {"spec": spec})
        await becomes(f"{everywhere}/g", (1, "True", "Succeeded"))
        await rules_become("")
        nothing = chosen | {"selector": {}}
        await line.client.merge_patch(
            f"{everywhere}/g", {"spec": {"rules": [{"subjects": [subject], "clusterResources": [nothing]}]}}
        )
        await becomes(f"{everywhere}/g", (2, "False", "SelectorEmpty"))

        # and a ProxySetting names objects, as the tenant could itself: it counts when the Tenant says so
        body = {"apiVersion": "capsule.clastix.io/v1beta1", "kind": "ProxySetting", "metadata": {"name": "s"}}
        subjects = [subject | {"clusterResources": [chosen]}]
        await line.client.create(settings, body | {"spec": {"subjects": subjects}})
        await becomes(f"{settings}/s", (1, "False", "NotPermitted"))
        await rules_become()
        permitted = {"metadata": {"annotations": {"capsule-tether.io/cluster-resources": "true"}}}
        await line.patch("Tenant", "", "oil", permitted)
        await becomes(f"{settings}/s", (1, "True", "Succeeded"))
        await rules_become("oil")
        await line.client.merge_patch(f"{settings}/s", {"spec": {"subjects": [subject]}})
        await becomes(f"{settings}/s", (2, "True", "Succeeded"))


def definition(plural: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    assert found["metadata"]["name"] == f"{plural}.capsule.clastix.io"
    return found


def test_the_definitions_that_ship_name_what_is_read() -> None:
    specs = {plural: definition(plural)["spec"] for plural in ("proxysettings", "globalproxysettings")}
    (one,), (every,) = (specs[plural]["versions"] for plural in specs)
    assert [spec["scope"] for spec in specs.values()] == ["Namespaced", "Cluster"]
    assert one["name"] == every["name"] == "v1beta1"
    assert one["subresources"] == every["subresources"] == {"status": {}}

    schemas = [version["schema"]["openAPIV3Schema"]["properties"] for version in (one, every)]
    subject = schemas[0]["spec"]["properties"]["subjects"]["items"]["properties"]
    rule = schemas[1]["spec"]["properties"]["rules"]["items"]["properties"]
    operations = subject["proxySettings"]["items"]["properties"]["operations"]["items"]["enum"]
    assert operations == ["List", "Update", "Delete"]
    resources = [found["clusterResources"]["items"] for found in (subject, rule)]
    assert resources[0] == resources[1]
    assert resources[0]["properties"]["operations"]["items"]["enum"] == ["List", "Get"]
    assert resources[0]["required"] == ["apiGroups", "resources", "selector"]
    assert schemas[0]["status"] == schemas[1]["status"]


async def test_the_definitions_that_ship_are_what_an_api_server_takes(line: Line) -> None:
    for plural in ("proxysettings", "globalproxysettings"):
        path = api_path("apiextensions.k8s.io", "v1", "customresourcedefinitions", name=f"{plural}.capsule.clastix.io")

        await line.client.apply(path, definition(plural), manager="person", force=True)
