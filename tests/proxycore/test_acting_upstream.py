"""Who acts as somebody else, byte for byte upstream: by whose token, and with headers that ask for exactly that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.proxycore.test_forwarding import CALLER, PROXY_TOKEN, Between, Seen, body, run_between, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tether.devcluster.pki import ClusterPki

ASKED = [
    ("impersonate-user", "erin"),
    ("Impersonate-Group", "ops"),
    ("IMPERSONATE-GROUP", "system:authenticated"),
    ("Impersonate-Group", "dropped"),
    ("Impersonate-Uid", "u-1"),
    ("Impersonate-Extra-Username", "erin"),
    ("Impersonate-Extra-%41", "x"),
    ("Impersonate-Extra-example.com%2Fkey", "y"),
    ("Impersonate-Extra-example.com%2fkey", "z"),
    ("Connection", "Impersonate-Uid, Impersonate-Extra-Username"),
]
SENT = [
    ("Impersonate-User", "erin"),
    ("Impersonate-Group", "ops"),
    ("Impersonate-Group", "system:authenticated"),
    ("Impersonate-Uid", "u-1"),
    ("Impersonate-Extra-username", "erin"),
    ("Impersonate-Extra-%41", "x"),
    ("Impersonate-Extra-example.com%2Fkey", "y"),
    ("Impersonate-Extra-example.com%2Fkey", "z"),
]


@pytest.fixture
async def between(tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]) -> AsyncIterator[Between]:
    async with run_between(tmp_path, pki, serving, ignored_impersonation_group="^dropped$") as found:
        yield found


def acting(seen: Seen) -> list[tuple[str, str]]:
    return [(name, value) for name, value in seen.headers if name.lower().startswith("impersonate-")]


@pytest.mark.parametrize(("method", "data"), [("GET", None), ("POST", b'{"a": 1}'), ("DELETE", None)])
async def test_the_callers_own_token_goes_on_with_what_it_asked_for_and_nothing_is_reviewed(
    between: Between, method: str, data: bytes | None
) -> None:
    target, sent = "/api/v1/namespaces/a/configmaps/b", data or b""
    head = [f"{method} {target} HTTP/1.1", "Host: x", f"Authorization: Bearer {CALLER}", f"Content-Length: {len(sent)}"]
    head += [f"{name}: {value}" for name, value in ASKED]
    reader, writer = await between.connect()
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + sent)
    async with asyncio.timeout(15):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.close()

    (seen,) = between.upstream.seen
    assert seen.line == f"{method} {target} HTTP/1.1"
    assert seen.values("Authorization") == [f"Bearer {CALLER}"]
    assert acting(seen) == SENT
    assert seen.body == sent


async def test_the_api_servers_refusal_passes_as_it_is(between: Between) -> None:
    refusal = msgspec.json.encode({"kind": "Status", "code": 403, "message": 'users "erin" is forbidden'})

    async def refuse(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body(seen, reader)
        await send(writer, refusal, line="403 Forbidden")

    between.upstream.answer = refuse
    async with between.request("GET", "/api/v1/pods", headers={"Impersonate-User": "erin"}) as found:
        assert (found.status, await found.read()) == (403, refusal)


@pytest.mark.parametrize("protocol", ["SPDY/3.1", "websocket"])
async def test_an_upgrade_carries_them_too(between: Between, protocol: str) -> None:
    async def switch(_: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode())
        writer.write(await reader.readexactly(4))
        await writer.drain()

    between.upstream.answer = switch
    reader, writer = await between.connect()
    writer.write(
        f"GET /api/v1/namespaces/a/pods/p/exec?command=ls HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CALLER}\r\n"
        f"Impersonate-User: erin\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode()
    )
    async with asyncio.timeout(15):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
    writer.close()

    (seen,) = between.upstream.seen
    assert (seen.values("Authorization"), acting(seen)) == ([f"Bearer {CALLER}"], [("Impersonate-User", "erin")])


@pytest.mark.parametrize(
    ("rights", "token", "sent"),
    [
        (
            {"serviceaccounts": "flux"},
            CALLER,
            [("Impersonate-User", "system:serviceaccount:oil:flux"), ("Impersonate-Group", "system:authenticated")],
        ),
        (
            {"users": "system:serviceaccount:oil:flux"},
            PROXY_TOKEN,
            [("Impersonate-User", "system:serviceaccount:oil:flux"), ("Impersonate-Group", "system:authenticated")],
        ),
        ({}, "", []),
    ],
    ids=["as the API server asks", "as the guide grants", "without a right"],
)
async def test_an_account_in_the_group_of_everybody_alone_is_that_upstream_by_either_right(
    between: Between, rights: dict[str, str], token: str, sent: list[tuple[str, str]]
) -> None:
    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not seen.line.split()[1].endswith("subjectaccessreviews"):
            await send(writer, b"{}")
            return
        spec = msgspec.json.decode(await body(seen, reader))["spec"]
        assert spec["user"] == "dana"
        asked = spec["resourceAttributes"]
        allowed = {**rights, "groups": "system:authenticated"}.get(asked["resource"]) == asked["name"]
        await send(writer, msgspec.json.encode({"status": {"allowed": allowed}}))

    between.upstream.answer = answer
    headers = {"Impersonate-User": "system:serviceaccount:oil:flux", "Impersonate-Group": "system:authenticated"}
    async with between.request("GET", "/api/v1/pods", headers=headers) as found:
        assert found.status == (200 if rights else 403)

    seen = [one for one in between.upstream.seen if not one.line.split()[1].endswith("subjectaccessreviews")]
    assert [one.values("Authorization") for one in seen] == ([[f"Bearer {token}"]] if rights else [])
    assert [header for one in seen for header in acting(one)] == sent
