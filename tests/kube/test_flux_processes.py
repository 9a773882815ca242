"""How Flux's controllers are called, and how one waits for what they do; no controller runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from controlplane import flux
from controlplane.awaiting import condition, is_true

from tether.dev_layout import HOST

CONTROLLERS = list(flux.LOCKDOWN)
PORTS = {
    "artifacts": 1,
    **{f"{name}-{server}": 2 for name in CONTROLLERS for server in ("metrics", "health")},
}


def words(name: str) -> list[str]:
    return flux.command(name, Path("/programs") / name, PORTS, Path("/artifacts"))


@pytest.mark.parametrize("name", [flux.KUSTOMIZE, flux.HELM])
def test_what_reconciles_runs_under_the_lockdown_of_the_guide(name: str) -> None:
    assert {"--no-cross-namespace-refs=true", "--default-service-account=gitops-reconciler"} <= set(words(name))


def test_kustomize_controller_reads_no_remote_bases() -> None:
    assert "--no-remote-bases=true" in words(flux.KUSTOMIZE)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_address_is_on_loopback(name: str) -> None:
    addresses = [word for word in words(name) if "-addr=" in word and not word.endswith("=")]
    assert len(addresses) == (4 if name == flux.SOURCE else 2)
    assert all(f"={HOST}:" in address for address in addresses)


def test_each_account_has_fluxs_own_rights_and_only_what_reconciles_is_cluster_admin() -> None:
    bindings = {obj["roleRef"]["name"]: obj for obj in flux.rights() if obj["kind"] == "ClusterRoleBinding"}
    assert [subject["name"] for subject in bindings["cluster-admin"]["subjects"]] == [flux.KUSTOMIZE, flux.HELM]
    assert {subject["namespace"] for subject in bindings["cluster-admin"]["subjects"]} == {flux.NAMESPACE}
    assert set(bindings) == {"cluster-admin", "crd-controller-flux-system"}


def having(status: str, **observed: int) -> dict[str, Any]:
    ready = {"type": "Ready", "status": status, **observed}
    return {"metadata": {"generation": 2}, "status": {"conditions": [{"type": "Other", "status": "False"}, ready]}}


def test_a_condition_of_an_older_generation_says_nothing() -> None:
    assert is_true("Ready")(having("True", observedGeneration=2))
    assert is_true("Ready")(having("True"))
    assert not is_true("Ready")(having("False", observedGeneration=2))
    assert condition(having("True", observedGeneration=1), "Ready") == {}
    assert condition(None, "Ready") == condition({"metadata": {}}, "Ready") == {}
