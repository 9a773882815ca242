"""What the control plane is made of and in which versions. Pure: the truth stands in the go.mod files beside this one.

A tool is one program, built from one pinned Go module. Kubernetes publishes no main version in its modules, so the
version is stamped at link time, as its own release does: otherwise ``/version`` and discovery would not tell the truth.
"""

from __future__ import annotations

import hashlib
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
CAPSULE_VARIABLE = "TETHER_CAPSULE"
CAPSULE_FOLDERS = {"0.14": "capsule", "0.13": "capsule-0.13"}  # the newest first; the oldest that we support last
CLIENTS = "clients"
FOLDERS = ("etcd", "kubernetes", *CAPSULE_FOLDERS.values(), "flux", CLIENTS)
_DIGEST_LENGTH = 12
_LINK_FLAGS = ("-s", "-w")  # neither symbols nor debug information: half the size, and nobody debugs these

_KUBERNETES_STAMPS = tuple(
    f"{package}.{value}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for value in (
        "gitVersion={version}",
        "gitMajor={major}",
        "gitMinor={minor}",
        "gitCommit=",  # a module does not carry its commit
        "gitTreeState=archive",
    )
)


class PinError(Exception):
    """A pin that cannot be read, or a Capsule that is not in the matrix; the text says which and what to do."""


class Replacement(msgspec.Struct, frozen=True):
    """Text of a source file, found exactly once, and what stands there in our build."""

    path: str
    old: str
    new: str


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One program: ``package`` of ``module``, pinned by ``folder``/go.mod.

    ``stamps`` are link-time values with ``{version}``, ``{major}`` and ``{minor}`` filled in. ``patches`` are applied
    to a copy of the module. ``chart`` and ``crds`` are folders of the module that are kept beside the binary.
    """

    name: str
    folder: str
    module: str
    package: str
    stamps: tuple[str, ...] = ()
    patches: tuple[Replacement, ...] = ()
    chart: str = ""
    crds: str = ""


ETCD = Tool(name="etcd", folder="etcd", module="go.etcd.io/etcd/server/v3", package="go.etcd.io/etcd/server/v3")


def _kubernetes(name: str) -> Tool:
    return Tool(
        name=name,
        folder="kubernetes",
        module="k8s.io/kubernetes",
        package=f"k8s.io/kubernetes/cmd/{name}",
        stamps=_KUBERNETES_STAMPS,
    )


API_SERVER = _kubernetes("kube-apiserver")
CONTROLLER_MANAGER = _kubernetes("kube-controller-manager")
KUBECTL = _kubernetes("kubectl")

HELM = Tool(
    name="helm",
    folder="capsule",
    module="helm.sh/helm/v3",
    package="helm.sh/helm/v3/cmd/helm",
    stamps=("helm.sh/helm/v3/internal/version.version={version}",),
)


def _capsule(folder: str) -> Tool:
    return Tool(
        name="capsule",
        folder=folder,
        module="github.com/projectcapsule/capsule",
        package="github.com/projectcapsule/capsule/cmd/controller",
        stamps=("github.com/projectcapsule/capsule/internal/version.GitTag={version}",),
        # Its health port and one certificate path are fixed, and it listens on every interface: as in a pod of its own.
        # A test listens on loopback, and not alone.
        patches=(
            Replacement("cmd/controller/main.go", '":10080"', 'os.Getenv("HEALTH_PROBE_ADDRESS")'),
            Replacement("cmd/controller/main.go", "Port:    webhookPort,", 'Host: "127.0.0.1", Port: webhookPort,'),
            Replacement(
                "api/v1beta1/tenant_webhook.go",
                '"/tmp/k8s-webhook-server/serving-certs/tls.crt"',
                'os.Getenv("WEBHOOK_CERTIFICATE")',
            ),
        ),
        chart="charts/capsule",
    )


def _flux(name: str) -> Tool:
    module = f"github.com/fluxcd/{name}"
    return Tool(name=name, folder="flux", module=module, package=module, crds="config/crd/bases")


FLUX = (_flux("source-controller"), _flux("kustomize-controller"), _flux("helm-controller"))
"""Flux's controllers: built for the tests that need them. Every address of theirs is a flag, so nothing is patched."""


def _ours(name: str) -> Tool:
    return Tool(name=name, folder=CLIENTS, module="k8s.io/client-go", package=f"./{name}")


INFORMER = _ours("informer")
"""Watches as a controller does; its version is that of client-go."""
KUBELET = _ours("kubelet")
"""The part of a kubelet that clients reach: exec, attach, port-forward and logs, with an echo for a container."""


def tools(environ: Mapping[str, str]) -> tuple[Tool, ...]:
    """Return the control plane's tools; TETHER_CAPSULE chooses Capsule's line. PinError for one that is not there."""
    newest = next(iter(CAPSULE_FOLDERS))
    line = environ.get(CAPSULE_VARIABLE, "") or newest
    if line not in CAPSULE_FOLDERS:
        raise PinError(f"{CAPSULE_VARIABLE}={line} is not one of {', '.join(CAPSULE_FOLDERS)}; unset it for {newest}")
    return (ETCD, API_SERVER, CONTROLLER_MANAGER, KUBECTL, HELM, _capsule(CAPSULE_FOLDERS[line]))


def pinned_version(go_mod: str, module: str) -> str:
    """Return the version that the text of a go.mod requires of ``module``, like v1.2.3; PinError if it does not."""
    found = re.search(rf"^(?:require\s+|\s+){re.escape(module)} (v\S+)(?!.*=>)", go_mod, re.MULTILINE)
    if found is None:
        raise PinError(f"no version of {module} stands in the go.mod")
    return found[1]


def needed_go(go_mod: str) -> str:
    """Return the version of Go that the text of a go.mod asks for, like 1.26.4; PinError if it names none."""
    found = re.search(r"^go (\d+(?:\.\d+)*)\s*$", go_mod, re.MULTILINE)
    if found is None:
        raise PinError("no go directive stands in the go.mod")
    return found[1]


def version_of(tool: Tool) -> str:
    """Return the pinned version of a tool, like v1.2.3."""
    return pinned_version((HERE / tool.folder / "go.mod").read_text(), tool.module)


def link_flags(tool: Tool, version: str) -> str:
    """Return the value of ``-ldflags``: the tool says of itself the version that it is."""
    major, minor = version.removeprefix("v").split(".")[:2]
    stamps = [stamp.format(version=version, major=major, minor=minor) for stamp in tool.stamps]
    return " ".join([*_LINK_FLAGS, *(f"-X {stamp}" for stamp in stamps)])


def host_platform() -> tuple[str, str]:
    """Return (GOOS, GOARCH) of this machine."""
    machine = platform.machine().lower()
    return platform.system().lower(), {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def cache_key(tool: Tool) -> str:
    """Return the name of the cache folder of this very build: another pin, patch or link flag is another key."""
    folder = HERE / tool.folder
    go_mod = (folder / "go.mod").read_bytes()
    version = pinned_version(go_mod.decode(), tool.module)
    recipe = msgspec.json.encode(
        [tool.package, link_flags(tool, version), tool.patches, tool.chart, *filter(None, [tool.crds])]
    )
    sources = [path.read_bytes() for path in sorted(folder.rglob("*.go"))]  # of the programs that are our own
    digest = hashlib.sha256(b"\0".join([go_mod, (folder / "go.sum").read_bytes(), recipe, *sources])).hexdigest()
    return "-".join([tool.name, version, *host_platform(), digest[:_DIGEST_LENGTH]])
