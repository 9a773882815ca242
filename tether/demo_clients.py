"""How the demo acts as a tenant: with kubectl where there is one, through the API otherwise. Both do the same."""

from __future__ import annotations

import asyncio
import re
import shutil
from typing import TYPE_CHECKING, Protocol

import msgspec

from eventcore.errors import KubeError, TetherError
from eventcore.kube import KubeClient, api_path
from eventcore.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACES = api_path("", "v1", "namespaces")
_CODES = {"Unauthorized": 401, "Forbidden": 403, "NotFound": 404, "AlreadyExists": 409, "Conflict": 409}
_KUBECTL_SECONDS = "15s"


class RefusedError(TetherError):
    """The server answered, and refused; ``code`` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class NoAnswerError(TetherError):
    """No answer came; the request may or may not have been done."""


class Client(Protocol):
    """What a tenant does in the demo. Each raises RefusedError or NoAnswerError."""

    async def create_namespace(self, name: str) -> None: ...

    async def list_namespaces(self) -> list[str]: ...

    async def get_namespace(self, name: str) -> None: ...

    async def list_secrets(self, namespace: str) -> list[str]: ...

    async def whoami(self) -> str: ...


class KubectlClient:
    """kubectl with one kubeconfig."""

    def __init__(self, kubectl: str, kubeconfig: Path) -> None:
        self._command = (kubectl, "--kubeconfig", str(kubeconfig), "--request-timeout", _KUBECTL_SECONDS)

    async def create_namespace(self, name: str) -> None:
        await self._run("create", "namespace", name)

    async def list_namespaces(self) -> list[str]:
        return _names(await self._run("get", "namespaces", "-o", "name"))

    async def get_namespace(self, name: str) -> None:
        await self._run("get", "namespace", name)

    async def list_secrets(self, namespace: str) -> list[str]:
        return _names(await self._run("-n", namespace, "get", "secrets", "-o", "name"))

    async def whoami(self) -> str:
        return (await self._run("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")).strip()

    async def _run(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return output.decode()
        text = " ".join(errors.decode(errors="replace").split())
        refused = re.search(r"Error from server \((\w+)\): (.*)", text)
        if refused:
            raise RefusedError(_CODES.get(refused[1], 500), refused[2])
        if "You must be logged in" in text or "Unauthorized" in text:
            raise RefusedError(_CODES["Unauthorized"], text)
        raise NoAnswerError(f"kubectl {arguments[0]}: {text}")


class _Metadata(msgspec.Struct):
    name: str


class _Item(msgspec.Struct):
    metadata: _Metadata


class _Items(msgspec.Struct):
    items: list[_Item]


class _UserInfo(msgspec.Struct):
    username: str


class _ReviewStatus(msgspec.Struct, rename="camel"):
    user_info: _UserInfo


class _Review(msgspec.Struct):
    status: _ReviewStatus


class ApiClient:
    """The API itself with one kubeconfig: a connection for each request, as kubectl has it."""

    def __init__(self, kubeconfig: Path) -> None:
        self._settings = Settings(kubeconfig=str(kubeconfig))

    async def create_namespace(self, name: str) -> None:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await self._request("POST", NAMESPACES, msgspec.json.encode(body))

    async def list_namespaces(self) -> list[str]:
        return await self._list(NAMESPACES)

    async def get_namespace(self, name: str) -> None:
        await self._request("GET", api_path("", "v1", "namespaces", name=name))

    async def list_secrets(self, namespace: str) -> list[str]:
        return await self._list(api_path("", "v1", "secrets", namespace=namespace))

    async def whoami(self) -> str:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        path = api_path("authentication.k8s.io", "v1", "selfsubjectreviews")
        answer = await self._request("POST", path, msgspec.json.encode(body))
        return msgspec.json.decode(answer, type=_Review).status.user_info.username

    async def _list(self, path: str) -> list[str]:
        answer = msgspec.json.decode(await self._request("GET", path), type=_Items)
        return [item.metadata.name for item in answer.items]

    async def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        client = await KubeClient.connect(self._settings)
        try:
            return await client.request(method, path, body=body)
        except KubeError as error:
            if error.status:
                raise RefusedError(error.status, str(error)) from error
            raise NoAnswerError(str(error)) from error
        finally:
            await client.close()


def client(kubeconfig: Path) -> Client:
    """Return a tenant's client: kubectl if it is on the PATH."""
    kubectl = shutil.which("kubectl")
    return KubectlClient(kubectl, kubeconfig) if kubectl else ApiClient(kubeconfig)


def client_name() -> str:
    """Return which of the two it is, for people."""
    return "kubectl" if shutil.which("kubectl") else "the API"


def _names(output: str) -> list[str]:
    return [line.rpartition("/")[2] for line in output.split()]
