"""How each program is called. Pure: from a folder and its ports to the words of a command line.

Everything listens on loopback. What is not named here is as a cluster has it by default: admission plugins, priority
and fairness, aggregated discovery, anonymous health checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tether.dev_layout import HOST
from tether.devcluster.tokens import ISSUER

if TYPE_CHECKING:
    from controlplane.binaries import Binaries
    from controlplane.layout import Layout, State

CONTROLLERS = (
    "clusterrole-aggregation-controller",  # without it the roles admin, edit and view are empty
    "garbage-collector-controller",
    "legacy-serviceaccount-token-cleaner-controller",
    "namespace-controller",  # without it a deleted namespace stays
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",  # fills the legacy token Secrets
)
CAPSULE_NAMESPACE = "capsule-system"
CAPSULE_ACCOUNT = "capsule"


def command(name: str, binaries: Binaries, layout: Layout, state: State) -> list[str]:
    """Return the command of one of ``layout.PROCESSES``."""
    return {
        "etcd": _etcd,
        "kube-apiserver": _api_server,
        "kube-controller-manager": _controller_manager,
        "capsule": _capsule,
    }[name](binaries, layout, state)


def environment(name: str, layout: Layout, state: State) -> dict[str, str]:
    """Return the variables that one of them needs beside those of the caller."""
    if name != "capsule":
        return {}
    return {
        "KUBECONFIG": str(layout.capsule_kubeconfig),
        "NAMESPACE": CAPSULE_NAMESPACE,
        "SERVICE_ACCOUNT": CAPSULE_ACCOUNT,
        "WEBHOOK_CERTIFICATE": str(layout.certificate("capsule")),
        "HEALTH_PROBE_ADDRESS": f"{HOST}:{state.ports['capsule-health']}",
    }


def _etcd(binaries: Binaries, layout: Layout, state: State) -> list[str]:
    url = f"https://{HOST}:{state.ports['etcd']}"
    peer = f"https://{HOST}:{state.ports['etcd-peer']}"
    return [
        str(binaries.etcd),
        "--name=default",
        f"--data-dir={layout.etcd}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--cert-file={layout.certificate('etcd')}",
        f"--key-file={layout.key('etcd')}",
        f"--trusted-ca-file={layout.ca}",
        "--client-cert-auth",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--peer-auto-tls",
        "--enable-grpc-gateway=false",  # it would call its own server with a certificate that is for servers only
        "--unsafe-no-fsync",  # a test's data need not survive the machine
        "--log-level=warn",
    ]


def _api_server(binaries: Binaries, layout: Layout, state: State) -> list[str]:
    return [
        str(binaries.kube_apiserver),
        f"--etcd-servers=https://{HOST}:{state.ports['etcd']}",
        f"--etcd-cafile={layout.ca}",
        f"--etcd-certfile={layout.certificate('etcd-client')}",
        f"--etcd-keyfile={layout.key('etcd-client')}",
        f"--bind-address={HOST}",
        f"--advertise-address={HOST}",
        "--endpoint-reconciler-type=none",  # no node could reach loopback, so it is not published
        f"--secure-port={state.ports['kube-apiserver']}",
        f"--tls-cert-file={layout.certificate('kube-apiserver')}",
        f"--tls-private-key-file={layout.key('kube-apiserver')}",
        f"--client-ca-file={layout.ca}",
        f"--requestheader-client-ca-file={layout.ca}",  # kube-controller-manager wants to read one
        "--requestheader-allowed-names=front-proxy-client",  # nobody has such a certificate
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--authorization-mode=RBAC",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={layout.service_account_key}",
        f"--service-account-signing-key-file={layout.service_account_key}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--profiling=false",
    ]


def _controller_manager(binaries: Binaries, layout: Layout, state: State) -> list[str]:
    kubeconfig = layout.controller_manager_kubeconfig
    return [
        str(binaries.kube_controller_manager),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={HOST}",
        f"--secure-port={state.ports['kube-controller-manager']}",
        f"--tls-cert-file={layout.certificate('kube-controller-manager')}",
        f"--tls-private-key-file={layout.key('kube-controller-manager')}",
        f"--root-ca-file={layout.ca}",
        f"--service-account-private-key-file={layout.service_account_key}",
        "--use-service-account-credentials",
        "--leader-elect=false",
        f"--controllers={','.join(CONTROLLERS)}",
    ]


def _capsule(binaries: Binaries, layout: Layout, state: State) -> list[str]:
    return [
        str(binaries.capsule),
        "--configuration-name=default",
        f"--webhook-port={state.ports['capsule']}",
        f"--webhook-cert-path={layout.certificate('capsule').parent}",
        "--metrics-addr=0",
        "--client-connection-qps=200",  # its default holds back a burst of tests, not a cluster
        "--client-connection-burst=400",
        "--zap-log-level=info",
    ]
