"""Ways to speak with a Kubernetes API in a test: plain HTTPS with every header in view, watches, and kubectl itself."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import msgspec
import pytest
from multidict import CIMultiDict

if TYPE_CHECKING:
    from pathlib import Path

Object = dict[str, Any]
_ANSWER_SECONDS = 20.0


class Reply(msgspec.Struct, frozen=True):
    """One HTTP answer, its body decoded if it is JSON."""

    status: int
    body: Any
    headers: dict[str, str]


class Client:
    """Speaks HTTPS with one API; ``request`` takes what aiohttp takes. ``headers`` go with every request."""

    def __init__(
        self, url: str, session: aiohttp.ClientSession, headers: CIMultiDict[str] | Mapping[str, str] | None = None
    ) -> None:
        self.url = url
        self.session = session
        self.headers = CIMultiDict(headers or {})

    def acting(self, user: str, *groups: str, **headers: str) -> Self:
        """Return a client that impersonates; keyword ``Extra_a`` is the header ``Impersonate-Extra-a``."""
        more = CIMultiDict({"Impersonate-User": user})
        for group in groups:
            more.add("Impersonate-Group", group)
        for name, value in headers.items():
            more.add(f"Impersonate-{name.replace('_', '-')}", value)
        more.extend(self.headers)
        return type(self)(self.url, self.session, more)

    async def request(self, method: str, path: str, **options: Any) -> Reply:
        headers = CIMultiDict(self.headers)
        headers.extend(options.pop("headers", {}))
        async with self.session.request(method, self.url + path, headers=headers, **options) as response:
            raw = await response.read()
            is_json = response.content_type == "application/json"
            body = msgspec.json.decode(raw) if is_json and raw else raw.decode(errors="replace")
            return Reply(response.status, body, dict(response.headers))

    async def get(self, path: str, **options: Any) -> Reply:
        return await self.request("GET", path, **options)

    async def post(self, path: str, body: Any, **options: Any) -> Reply:
        return await self.request("POST", path, json=body, **options)

    async def put(self, path: str, body: Any, **options: Any) -> Reply:
        return await self.request("PUT", path, json=body, **options)

    async def delete(self, path: str, **options: Any) -> Reply:
        return await self.request("DELETE", path, **options)

    async def patch(self, path: str, body: Any, kind: str = "merge-patch+json", **params: str) -> Reply:
        headers = {"Content-Type": f"application/{kind}"}
        data = msgspec.json.encode(body)
        return await self.request("PATCH", path, data=data, headers=headers, params=params)

    async def apply(self, path: str, body: Any, manager: str, **params: str) -> Reply:
        return await self.patch(path, body, "apply-patch+yaml", fieldManager=manager, **params)

    async def names(self, path: str, **params: str) -> list[str]:
        """Return the names that a list holds."""
        listed = await self.get(path, params=params)
        assert listed.status == 200, listed
        return [item["metadata"]["name"] for item in listed.body["items"]]

    @asynccontextmanager
    async def watch(self, path: str, accept: str = "application/json", **params: str) -> AsyncIterator[Events]:
        """Yield the events of a watch that was granted."""
        headers = CIMultiDict(self.headers)
        headers["Accept"] = accept
        query = {"watch": "true"} | params
        async with self.session.get(self.url + path, params=query, headers=headers) as response:
            assert response.status == 200, await response.text()
            try:
                yield Events(response)
            finally:
                if response.connection and response.connection.transport:
                    response.connection.transport.abort()  # a farewell of TLS would outlive the test


class Events:
    """Reads the lines of a watch."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self, *, bookmarks: bool = False) -> Object:
        """Return the next event, passing bookmarks over unless they are asked for."""
        async with asyncio.timeout(_ANSWER_SECONDS):
            while True:
                line = await self.response.content.readline()
                assert line, "the watch ended"
                event: Object = msgspec.json.decode(line)
                if bookmarks or event["type"] != "BOOKMARK":
                    return event

    async def brief(self) -> tuple[str, str]:
        """Return type and name of the next event."""
        event = await self.next()
        return event["type"], event["object"]["metadata"]["name"]

    async def ended(self) -> bool:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return not await self.response.content.read()


class Ran(msgspec.Struct, frozen=True):
    """What a finished kubectl left."""

    code: int
    out: str
    err: str


Kubectl = Callable[..., Coroutine[Any, Any, Ran]]


def find_kubectl() -> str:
    """Return where kubectl is; without it the test is skipped with a line that says so."""
    binary = shutil.which("kubectl")
    if binary is None:
        pytest.skip("kubectl is not on the PATH: this test drives kubectl itself")
    return binary


async def run_kubectl(kubeconfig: Path, home: Path, *arguments: str, stdin: str = "", expect: int | None = 0) -> Ran:
    """Run kubectl to its end, with ``home`` for what it caches; another exit code than ``expect`` fails."""
    process = await asyncio.create_subprocess_exec(
        find_kubectl(),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(kubeconfig)},
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate(stdin.encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    ran = Ran(process.returncode or 0, out.decode(), err.decode())
    if expect is not None:
        assert ran.code == expect, f"kubectl {' '.join(arguments)}: {ran}"
    return ran
