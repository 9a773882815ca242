"""Installs Capsule as its chart does: CRDs, rights, configuration with the webhooks, all rendered from its own chart.

The controller runs as a process on this machine instead of in a pod, so the webhooks point at loopback with the
authority of this control plane, and what only a pod needs (Deployment, Service, hook jobs) is left out.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from controlplane.commands import CAPSULE_ACCOUNT, CAPSULE_NAMESPACE
from controlplane.layout import ControlPlaneError
from tether.dev_layout import HOST, write_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from controlplane.binaries import Binaries
    from controlplane.layout import Layout, State

Document = dict[str, Any]
CRD = "CustomResourceDefinition"
_INSTALLED = frozenset(
    {
        CRD,
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "CapsuleConfiguration",
    }
)
_TOKEN_LIFE = "8760h"


async def install(binaries: Binaries, layout: Layout, state: State) -> None:
    """Render and apply the chart, and write the kubeconfig of the controller's account; fine when it is there already.

    ControlPlaneError with what helm or kubectl said when one of them refuses.
    """
    documents = await render(binaries, url=f"https://{HOST}:{state.ports['capsule']}", ca=layout.ca.read_bytes())
    definitions = [document for document in documents if document["kind"] == CRD]
    others = [document for document in documents if document["kind"] != CRD]
    namespace: Document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": CAPSULE_NAMESPACE}}
    kubectl = Kubectl(binaries, layout)
    await kubectl.apply([namespace, *definitions])
    names = [f"crd/{document['metadata']['name']}" for document in definitions]
    await kubectl.run("wait", "--for=condition=Established", "--timeout=60s", *names)
    await kubectl.apply(others)
    account = ("--namespace", CAPSULE_NAMESPACE, CAPSULE_ACCOUNT)
    token = await kubectl.run("create", "token", f"--duration={_TOKEN_LIFE}", *account)
    write_private(layout.capsule_kubeconfig, layout.kubeconfig(state, {"token": token.strip()}))


async def render(binaries: Binaries, *, url: str, ca: bytes) -> list[Document]:
    """Return the objects of the chart that a controller outside of the cluster needs, with webhooks at ``url``."""
    with tempfile.TemporaryDirectory() as scratch:
        chart = Path(scratch) / "chart"
        await asyncio.to_thread(_copy_chart, binaries, chart)
        values = Path(scratch) / "values.yaml"
        values.write_text(yaml.safe_dump(chart_values(url, ca)))
        rendered = await run(
            [str(binaries.helm), "template", "capsule", str(chart)],
            [f"--namespace={CAPSULE_NAMESPACE}", f"--values={values}"],
        )
    documents = [document for document in yaml.safe_load_all(rendered) if document]
    return [document for document in documents if document["kind"] in _INSTALLED and not _is_hook(document)]


def chart_values(url: str, ca: bytes) -> Document:
    """Return the values of the chart for webhooks at ``url``, trusted by ``ca`` (PEM)."""
    return {
        "crds": {"inline": True},
        "proxy": {"enabled": False},
        "tls": {"enableController": False, "create": False},  # the certificates are ours
        "certManager": {"generateCertificates": False},
        "webhooks": {"service": {"url": url, "caBundle": base64.b64encode(ca).decode()}},
        "global": {"jobs": {"postInstall": {"enabled": False}, "preDelete": {"enabled": False}}},
    }


class Kubectl:
    """kubectl as cluster-admin of one control plane."""

    def __init__(self, binaries: Binaries, layout: Layout) -> None:
        cache = layout.folder / "kubectl-cache"
        self._command = [str(binaries.kubectl), f"--kubeconfig={layout.admin_kubeconfig}", f"--cache-dir={cache}"]

    async def run(self, *arguments: str, text: str = "") -> str:
        """Return what it prints; ControlPlaneError with what it says when it fails."""
        return await run(self._command, arguments, text=text)

    async def apply(self, documents: Iterable[Document]) -> None:
        text = yaml.safe_dump_all(documents)
        flags = ("--server-side", "--force-conflicts", "--field-manager=controlplane")
        await self.run("apply", *flags, "--filename=-", text=text)


async def run(command: Sequence[str], arguments: Sequence[str], *, text: str = "") -> str:
    """Return the stdout of a program; ControlPlaneError with the end of its stderr when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate(text.encode())
    if process.returncode != 0:
        said = " ".join(err.decode(errors="replace").split())[-1000:]
        raise ControlPlaneError(f"{Path(command[0]).name} {arguments[0]} failed: {said}")
    return out.decode()


def _copy_chart(binaries: Binaries, target: Path) -> None:
    """Copy the chart without the charts that it depends on, which helm would look for even when they are off."""
    shutil.copytree(binaries.chart, target)
    path = target / "Chart.yaml"
    chart = yaml.safe_load(path.read_text())
    chart.pop("dependencies", None)
    version = binaries.capsule_version.removeprefix("v")  # a release writes it here; the module holds 0.0.0
    path.write_text(yaml.safe_dump(chart | {"version": version, "appVersion": version}))


def _is_hook(document: Document) -> bool:
    return "helm.sh/hook" in (document["metadata"].get("annotations") or {})
