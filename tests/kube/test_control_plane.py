"""The real control plane itself; collected with ``--cluster real`` only, since it needs the programs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from controlplane import binaries, pins
from controlplane.binaries import Binaries
from controlplane.layout import PROCESSES, ControlPlaneError, Layout, State
from controlplane.processes import ControlPlane

EXAMPLES = Path(__file__).parents[2] / "examples"
ACCOUNT = "system:serviceaccount:oil-system:gitops-reconciler"
AS_ACCOUNT = (
    f"--as={ACCOUNT}",
    "--as-group=system:serviceaccounts",
    "--as-group=system:serviceaccounts:oil-system",
    "--as-group=system:authenticated",
)

Kubectl = Callable[..., str]

pytestmark = pytest.mark.timeout(400)


class RefusedError(Exception):
    """What kubectl said when it failed."""


@pytest.fixture(scope="module")
def programs() -> Binaries:
    return binaries.resolve()


@pytest.fixture(scope="module")
def plane(programs: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    made = ControlPlane(tmp_path_factory.mktemp("plane"), programs)
    try:
        asyncio.run(made.up())
        yield made
    finally:
        asyncio.run(made.down())


@pytest.fixture(scope="module")
def kubectl(plane: ControlPlane, programs: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    cache = tmp_path_factory.mktemp("kubectl")

    def run(*arguments: str) -> str:
        command = [str(programs.kubectl), f"--kubeconfig={plane.admin_kubeconfig}", f"--cache-dir={cache}", *arguments]
        done = subprocess.run(  # noqa: S603 - kubectl, with arguments of these tests
            command, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RefusedError(done.stderr)
        return done.stdout

    return run


@pytest.fixture(scope="module")
def example(kubectl: Kubectl) -> None:
    """The guide's example, as it stands in the repository."""
    kubectl("apply", "--filename", str(EXAMPLES))
    kubectl("wait", "--for=condition=Ready", "--timeout=60s", "tenant/oil")


def read(kubectl: Kubectl, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", "--output=json", *arguments))
    return found


def test_every_program_runs(plane: ControlPlane) -> None:
    assert list(plane.status()) == list(PROCESSES)
    assert None not in plane.status().values()


@pytest.mark.skipif("KUBEBUILDER_ASSETS" in os.environ, reason="another kube-apiserver than the pinned one was given")
def test_discovery_tells_the_version_that_was_built(kubectl: Kubectl) -> None:
    version = json.loads(kubectl("get", "--raw", "/version"))
    assert version["gitVersion"] == pins.version_of(pins.API_SERVER)


def test_the_tenant_of_the_guide_gets_a_status(kubectl: Kubectl, example: None) -> None:
    status = read(kubectl, "tenant", "oil")["status"]
    assert status["state"] == "Active"
    assert [owner["name"] for owner in status["owners"]] == [ACCOUNT]


def test_a_namespace_that_the_owner_creates_belongs_to_the_tenant(kubectl: Kubectl, example: None) -> None:
    kubectl("create", "namespace", "oil-production", *AS_ACCOUNT)
    namespace = read(kubectl, "namespace", "oil-production")["metadata"]
    tenant = read(kubectl, "tenant", "oil")["metadata"]
    assert namespace["labels"]["capsule.clastix.io/tenant"] == "oil"
    assert [(owner["kind"], owner["uid"]) for owner in namespace["ownerReferences"]] == [("Tenant", tenant["uid"])]
    kubectl("wait", "--for=jsonpath={.status.size}=1", "--timeout=60s", "tenant/oil")


def test_a_stranger_creates_no_namespace(kubectl: Kubectl, example: None) -> None:
    with pytest.raises(RefusedError, match='User "stranger" cannot create resource "namespaces"'):
        kubectl("create", "namespace", "oil-stranger", "--as=stranger")


def test_a_capsule_user_without_a_tenant_is_refused_by_the_webhook(kubectl: Kubectl, example: None) -> None:
    other = "--as=system:serviceaccount:oil-system:somebody"
    with pytest.raises(RefusedError, match=r"admission webhook .* denied the request: You do not have any Tenant"):
        kubectl("create", "namespace", "oil-other", other, *AS_ACCOUNT[1:])


def test_the_older_version_of_tenants_is_served_by_conversion(kubectl: Kubectl, example: None) -> None:
    tenant = read(kubectl, "tenants.v1beta1.capsule.clastix.io", "oil")
    assert tenant["apiVersion"] == "capsule.clastix.io/v1beta1"
    assert [owner["name"] for owner in tenant["spec"]["owners"]] == [ACCOUNT]


def test_up_on_a_running_plane_changes_nothing(plane: ControlPlane) -> None:
    before, kubeconfig = plane.status(), plane.admin_kubeconfig.read_bytes()
    asyncio.run(plane.up())
    assert plane.status() == before
    assert plane.admin_kubeconfig.read_bytes() == kubeconfig


@pytest.mark.parametrize("names", [("etcd",), ("kube-apiserver",), ("kube-controller-manager", "capsule")])
def test_what_died_comes_back_with_its_data(
    names: tuple[str, ...], plane: ControlPlane, kubectl: Kubectl, example: None
) -> None:
    # given a tenant, and programs that were killed
    tenant = read(kubectl, "tenant", "oil")["metadata"]["uid"]
    before = plane.status()
    for name in names:
        pid = before[name]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    # when the plane is brought up again
    asyncio.run(plane.up())
    # then these were started, the others were not, and the tenant is the same
    after = plane.status()
    assert None not in after.values()
    assert {name for name in PROCESSES if after[name] != before[name]} == set(names)
    assert read(kubectl, "tenant", "oil")["metadata"]["uid"] == tenant


def test_a_configuration_that_wants_certificates_of_its_own_survives_a_restart(
    plane: ControlPlane, kubectl: Kubectl, example: None
) -> None:
    wanted = json.dumps({"spec": {"enableTLSReconciler": True}})
    kubectl("patch", "capsuleconfiguration", "default", "--type=merge", f"--patch={wanted}")
    pid = plane.status()["capsule"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    asyncio.run(plane.up())
    kubectl("create", "namespace", "oil-after", *AS_ACCOUNT)
    assert "oil" in read(kubectl, "namespace", "oil-after")["metadata"]["labels"].values()


def test_a_program_that_cannot_start_is_named_with_the_end_of_its_log(programs: Binaries, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make()
    state = State()
    layout.choose(state)
    layout.save(state)
    message = r"(?s)^etcd ended before it was ready; .*address already in use"
    with socket.create_server(("127.0.0.1", state.ports["etcd"])), pytest.raises(ControlPlaneError, match=message):
        asyncio.run(ControlPlane(tmp_path, programs).up())


def test_down_can_be_said_twice_and_leaves_nothing_running(programs: Binaries, tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, programs)
    try:
        asyncio.run(plane.up())
    finally:
        asyncio.run(plane.down())
    asyncio.run(plane.down())
    assert set(plane.status().values()) == {None}
