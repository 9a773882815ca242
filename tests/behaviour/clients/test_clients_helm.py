"""helm through the proxy: a release of a small chart of our own, from its installation to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from controlplane import pins

from tests.behaviour.clients.conftest import MakeProgram, Program, pinned

pytestmark = [pytest.mark.xdist_group("cluster")]

Tenancy = Any
TEMPLATE = """apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Release.Name }}-page
data:
  stage: {{ .Values.stage | quote }}
  revision: {{ .Release.Revision | quote }}
"""


@pytest.fixture
async def helm(owner: Tenancy, program: MakeProgram) -> Program:
    return program([pinned(pins.HELM)], await owner.kubeconfig())


@pytest.fixture
def chart(tmp_path: Path) -> str:
    """A chart with one object."""
    folder = tmp_path / "chart"
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text(yaml.safe_dump({"apiVersion": "v2", "name": "page", "version": "1.0.0"}))
    (folder / "values.yaml").write_text(yaml.safe_dump({"stage": "one"}))
    (folder / "templates" / "page.yaml").write_text(TEMPLATE)
    return str(folder)


async def test_a_release_is_installed_upgraded_rolled_back_listed_and_taken_away(
    owner: Tenancy, namespace: str, helm: Program, chart: str
) -> None:
    here = ("--namespace", namespace)

    async def page() -> dict[str, str]:
        found: dict[str, str] = (await owner.must("ConfigMap", namespace, "web-page"))["data"]
        return found

    await helm.run("install", "web", chart, *here, "--wait", "--timeout=60s")
    assert await page() == {"stage": "one", "revision": "1"}

    await helm.run("upgrade", "web", chart, *here, "--set", "stage=two", "--wait", "--timeout=60s")
    assert await page() == {"stage": "two", "revision": "2"}

    await helm.run("rollback", "web", "1", *here, "--wait", "--timeout=60s")
    assert await page() == {"stage": "one", "revision": "1"}

    (listed,) = await helm.json("list", *here, "--output=json")
    assert (listed["name"], listed["revision"], listed["status"]) == ("web", "3", "deployed")
    assert len(await helm.json("history", "web", *here, "--output=json")) == 3

    await helm.run("uninstall", "web", *here, "--wait", "--timeout=60s")
    assert await helm.json("list", *here, "--output=json") == []
    assert await owner.get("ConfigMap", namespace, "web-page") is None


async def test_helm_makes_the_namespace_of_a_release(
    owner: Tenancy, namespace: str, helm: Program, chart: str, until: Any
) -> None:
    # given a namespace that is not there; helm looks for the objects of the chart in it before it makes it
    name = f"{owner.name}-shop"
    install = ("install", "web", chart, "--namespace", name, "--create-namespace", "--timeout=60s")

    # when a release is installed there, the answer to that is 404, so that helm goes on and makes it
    first = await helm.run(*install, expect=None)
    labels = (await owner.must("Namespace", "", name))["metadata"]["labels"]
    assert labels["capsule.clastix.io/tenant"] == owner.name

    # then the release is there as soon as Capsule has given the tenant its rights in it
    async def installed() -> bool:
        return first.code == 0 or (await helm.run(*install, expect=None)).code == 0

    await until(installed)
    assert (await owner.must("ConfigMap", name, "web-page"))["data"]["stage"] == "one"


async def test_helm_installs_nothing_in_a_namespace_of_another_tenant(
    foreign: str, other: Tenancy, helm: Program, chart: str
) -> None:
    refused = await helm.run("install", "web", chart, "--namespace", foreign, "--create-namespace", expect=1)

    assert "forbidden" in refused.err
    assert await other.get("ConfigMap", foreign, "web-page") is None
