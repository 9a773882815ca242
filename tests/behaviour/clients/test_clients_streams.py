"""Upgrades end to end: exec, attach, port-forward, cp and logs through the proxy and kube-apiserver to a node.

The node is ``tests/controlplane/clients/kubelet``: the streaming code of the kubelet itself, with an echo for a
container.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from controlplane import pins

from eventcore.errors import ForbiddenError
from eventcore.kube import KubeClient, api_path
from tests.behaviour.clients.conftest import SECONDS, MakeProgram, Program, object_of, pinned

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.kubectl]

Tenancy = Any
POD = "echo"
PAYLOAD = "".join(f"line {number} of a payload that is longer than one frame\n" for number in range(4000))


class Node:
    """A node whose kubelet runs on this machine."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port

    async def say(self, line: str) -> None:
        """Let its containers log a line, once somebody follows their logs."""
        trust = ssl.create_default_context()
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE  # its certificate is its own, made at its start
        connector = aiohttp.TCPConnector(ssl=trust)
        async with (
            asyncio.timeout(SECONDS),
            aiohttp.ClientSession(connector=connector) as session,
            session.post(f"https://127.0.0.1:{self.port}/say", params={"line": line}) as response,
        ):
            assert response.status == 200


@pytest.fixture
async def node(owner: Tenancy, admin: KubeClient, program: MakeProgram, tmp_path: Path) -> AsyncIterator[Node]:
    """A node of the cluster, as its kubelet would register it."""
    nodes = api_path("", "v1", "nodes")
    async with program([pinned(pins.KUBELET)], tmp_path).running() as kubelet:
        found = Node(f"{owner.name}-node", int(await kubelet.line()))
        await admin.create(nodes, object_of("Node", "", found.name))
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": found.port}},
        }
        await admin.merge_patch(f"{nodes}/{found.name}/status", {"status": status})
        yield found
        await admin.delete(f"{nodes}/{found.name}")


@pytest.fixture
async def pod(namespace: str, node: Node, admin: KubeClient, until: Any) -> str:
    """A pod of the tenant that the administrator put on the node, and that runs."""
    pods = api_path("", "v1", "pods", namespace=namespace)
    container = {"name": "main", "image": "registry.example/echo:1", "imagePullPolicy": "IfNotPresent"}
    spec = {"nodeName": node.name, "containers": [container], "automountServiceAccountToken": False}

    async def made() -> bool:
        try:
            await admin.create(pods, object_of("Pod", namespace, POD, spec=spec))
        except ForbiddenError:  # until the namespace has its account
            return False
        return True

    await until(made)
    running = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    await admin.merge_patch(f"{pods}/{POD}/status", {"status": running})
    return POD


@pytest.fixture
async def here(kubectl: Program, namespace: str, pod: str) -> Any:
    """Run kubectl in the namespace of the pod."""

    def run(verb: str, *arguments: str, **options: Any) -> Any:
        return kubectl.run(verb, "--namespace", namespace, *arguments, **options)

    return run


@pytest.mark.parametrize("websockets", ["true", "false"])
async def test_exec_carries_every_stream_and_the_exit_code(
    owner: Tenancy, namespace: str, pod: str, kubectl_binary: str, program: MakeProgram, websockets: str
) -> None:
    # given kubectl over WebSocket (v5.channel.k8s.io) or over SPDY
    environ = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": websockets}
    kubectl = program([kubectl_binary], await owner.kubeconfig(), **environ)
    execute = ("exec", "--namespace", namespace, pod)

    # when something is sent, then all of it comes back, through an end that only stdin has
    echoed = await kubectl.run(*execute, "--stdin", "--", "cat", stdin=PAYLOAD)
    assert echoed.out == PAYLOAD

    # and the exit code and stderr of a command are kept apart
    failed = await kubectl.run(*execute, "--", "fail", "7", expect=7)
    assert failed.out == ""
    assert "failing as asked" in failed.err


async def test_attach_is_a_conversation(kubectl: Program, namespace: str, pod: str) -> None:
    async with kubectl.running("attach", "--namespace", namespace, pod, "--stdin", "--quiet") as attached:
        for line in ("one", "two"):  # the second is said after the first was heard
            await attached.says(line)
            assert await attached.line() == line


@pytest.mark.parametrize("websockets", ["true", "false"])
async def test_a_forwarded_port_carries_connections_side_by_side(
    owner: Tenancy, namespace: str, pod: str, kubectl_binary: str, program: MakeProgram, websockets: str
) -> None:
    kubectl = program([kubectl_binary], await owner.kubeconfig(), KUBECTL_PORT_FORWARD_WEBSOCKETS=websockets)
    arguments = ("port-forward", "--namespace", namespace, f"pod/{pod}", "--address=127.0.0.1", ":8080")
    async with kubectl.running(*arguments) as forwarding, asyncio.timeout(SECONDS):
        said = await forwarding.line()  # Forwarding from 127.0.0.1:1234 -> 8080
        port = int(said.split(" -> ")[0].rpartition(":")[2])
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for reader, _ in connections:
            assert await reader.readline() == b"port 8080\n"
        for number, (_, writer) in enumerate(connections):
            writer.write(f"{number} {PAYLOAD}".encode())
        for number, (reader, writer) in enumerate(connections):
            wanted = f"{number} {PAYLOAD}".encode()
            assert await reader.readexactly(len(wanted)) == wanted
            writer.close()


async def test_files_are_copied_there_and_back(here: Any, pod: str, tmp_path: Path) -> None:
    (tmp_path / "sent").write_text(PAYLOAD)

    await here("cp", str(tmp_path / "sent"), f"{pod}:/tmp/kept")
    await here("cp", f"{pod}:/tmp/kept", str(tmp_path / "back"))

    assert (tmp_path / "back").read_text() == PAYLOAD


async def test_logs_are_read_and_followed(here: Any, kubectl: Program, namespace: str, node: Node, pod: str) -> None:
    assert (await here("logs", pod)).out == f"log of {pod}\n"

    # a line is there as soon as it was written
    async with kubectl.running("logs", "--namespace", namespace, "--follow", pod) as following:
        assert await following.line() == f"log of {pod}"
        for line in ("first", "second"):
            await node.say(line)
            assert await following.line() == line


async def test_another_tenants_pod_is_out_of_reach(
    other: Tenancy, namespace: str, pod: str, kubectl_binary: str, program: MakeProgram
) -> None:
    await other.make()
    kubectl = program([kubectl_binary], await other.kubeconfig())

    for arguments in (("exec", pod, "--", "cat"), ("attach", pod), ("logs", pod), ("port-forward", pod, ":8080")):
        refused = await kubectl.run("--namespace", namespace, *arguments, expect=1)
        assert "(Forbidden)" in refused.err, arguments
