"""Reads under the proxy's own account: the caller's Namespaces, which pass without a task, and what is read whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from eventcore import kube_auth
from eventcore.bus import Bus
from eventcore.errors import KubeUnreachableError, TooManyRequestsError
from eventcore.grants import Grant, SubjectGrant, TenantGrant, encode_grant
from eventcore.kube_auth import KubeAuth
from proxycore import passing
from proxycore.passage import Passage
from proxycore.upstream import Upstream
from tests.proxycore.test_forwarding import PROXY_TOKEN, Between, Seen, run_between, send

if TYPE_CHECKING:
    from pathlib import Path

    from tether.devcluster.pki import ClusterPki

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter

LIST = "/api/v1/namespaces"
ONE = f"{LIST}/oil-production"
NARROWED = f"{LIST}?labelSelector=kubernetes.io%2Fmetadata.name%3Doil-production"
NEW_TOKEN = "the-next-token"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Holds the target of each request that passed without a task."""
    found: list[str] = []

    class Noted(Passage):
        def ask(self) -> bool:
            if sent := super().ask():
                found.append(self._asked.info.target)
            return sent

    monkeypatch.setattr(passing, "Passage", Noted)
    return found


@asynccontextmanager
async def warm(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], user: dict[str, str] | None = None
) -> AsyncIterator[Between]:
    """Run a proxy that knows its caller and has a connection to the API server, one of its own and one for callers."""
    async with run_between(tmp_path, pki, serving, user) as between:
        for target in ("/api", LIST):
            async with between.request("GET", target) as found:
                assert found.status == 200
        between.upstream.seen.clear()
        yield between


async def write(between: Between, grant: Grant) -> None:
    """Write a grant as the access worker does, and wait until the proxy has it."""
    bus = await Bus.connect(between.settings, "proxy")
    try:
        found = await bus.kv_get(grant.key())
        await bus.kv_put(grant.key(), encode_grant(grant), revision=found.revision if found else 0)
    finally:
        await bus.close()
    await between.service.access.barrier(15)


async def test_a_list_and_a_get_of_namespaces_pass_without_a_task(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], at_once: list[str]
) -> None:
    async with warm(tmp_path, pki, serving) as between:
        for target in (LIST, ONE, LIST):
            async with between.request("GET", target, headers={"Accept": "x/y"}) as found:
                assert (found.status, await found.read()) == (200, b'{"kind": "Anything"}')

        assert at_once == [LIST, ONE, LIST]
        assert [seen.line.split()[1] for seen in between.upstream.seen] == [NARROWED, ONE, NARROWED]
        for seen in between.upstream.seen:
            assert seen.values("Authorization") == [f"Bearer {PROXY_TOKEN}"]
            assert seen.values("Accept") == ["x/y"]
            assert not [name for name, _ in seen.headers if name.lower().startswith("impersonate")]


@pytest.mark.parametrize(
    ("grant", "selector"),
    [
        (TenantGrant(name="oil", uid="u", namespaces=("oil-test",)), b"metadata.name%3Doil-test "),
        (SubjectGrant(subject_kind="User", name="dana", tenants=()), b"%21kubernetes.io%2Fmetadata.name "),
    ],
    ids=["another namespace", "none at all"],
)
async def test_a_list_that_was_narrowed_by_withdrawn_grants_is_asked_for_anew(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], at_once: list[str], grant: Grant, selector: bytes
) -> None:
    async with warm(tmp_path, pki, serving) as between:
        # given an API server that answers the first list only once the grants have changed
        async def late(seen: Seen, _: Reader, writer: Writer) -> None:
            if len(between.upstream.seen) == 1:
                await write(between, grant)
            await send(writer, seen.line.encode())

        between.upstream.answer = late

        # when
        async with between.request("GET", LIST) as found, asyncio.timeout(20):
            answer = await found.read()

        # then the client hears of the namespaces of now alone
        assert at_once == [LIST]
        assert len(between.upstream.seen) == 2
        assert selector in answer
        assert b"oil-production" not in answer


async def test_another_tenants_change_meanwhile_costs_no_second_list(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], at_once: list[str]
) -> None:
    async with warm(tmp_path, pki, serving) as between:

        async def late(_: Seen, __: Reader, writer: Writer) -> None:
            await write(between, TenantGrant(name="gas", uid="v", namespaces=("gas-test",)))
            await send(writer, b"a list")

        between.upstream.answer = late
        async with between.request("GET", LIST) as found, asyncio.timeout(20):
            assert await found.read() == b"a list"

        assert at_once == [LIST]
        assert len(between.upstream.seen) == 1


async def test_refused_credentials_are_read_again_and_the_client_notices_nothing(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], at_once: list[str]
) -> None:
    token = tmp_path / "token"
    token.write_text(PROXY_TOKEN)
    async with warm(tmp_path, pki, serving, user={"tokenFile": str(token)}) as between:
        # given a token that the API server takes no more, and a new one that is written already
        token.write_text(NEW_TOKEN)

        async def strict(seen: Seen, _: Reader, writer: Writer) -> None:
            good = seen.values("Authorization") == [f"Bearer {NEW_TOKEN}"]
            await send(writer, b"{}", line="200 OK" if good else "401 Unauthorized")

        between.upstream.answer = strict
        for _ in range(2):
            async with between.request("GET", ONE) as found:
                assert found.status == 200

        # then the first was refused and sent again, and the second carried the new one at once
        assert at_once == [ONE, ONE]
        tokens = [seen.values("Authorization")[0].removeprefix("Bearer ") for seen in between.upstream.seen]
        assert tokens == [PROXY_TOKEN, PROXY_TOKEN, NEW_TOKEN, NEW_TOKEN]


async def test_credentials_that_are_due_are_read_again_before_anything_is_sent(
    tmp_path: Path,
    pki: ClusterPki,
    serving: tuple[str, str],
    at_once: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = tmp_path / "token"
    token.write_text(PROXY_TOKEN)
    async with warm(tmp_path, pki, serving, user={"tokenFile": str(token)}) as between:
        token.write_text(NEW_TOKEN)
        monkeypatch.setattr(kube_auth, "REFRESH_SECONDS", 0.0)
        for target in (LIST, ONE):
            async with between.request("GET", target) as found:
                assert found.status == 200

        assert at_once == []
        assert [seen.values("Authorization") for seen in between.upstream.seen] == [[f"Bearer {NEW_TOKEN}"]] * 2


@asynccontextmanager
async def reading(between: Between, seconds: float) -> AsyncIterator[Upstream]:
    upstream = Upstream(await KubeAuth.load(between.settings), read_seconds=seconds)
    try:
        yield upstream
    finally:
        upstream.close()


async def test_what_the_api_server_refuses_is_its_own_error(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]
) -> None:
    async def busy(_: Seen, __: Reader, writer: Writer) -> None:
        await send(writer, b'{"kind": "Status", "message": "busy"}', "Retry-After: 7", line="429 Too Many Requests")

    async with run_between(tmp_path, pki, serving) as between, reading(between, 20) as upstream:
        between.upstream.answer = busy

        with pytest.raises(TooManyRequestsError, match="busy") as caught:
            await upstream.read("/api/v1/nodes", "application/json")

    assert caught.value.retry_after == 7


async def test_an_answer_that_does_not_come_to_its_end_is_given_up(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]
) -> None:
    given_up = asyncio.Event()

    async def halts(_: Seen, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{")
        await reader.read()
        given_up.set()

    async with run_between(tmp_path, pki, serving) as between, reading(between, 0.1) as upstream:
        between.upstream.answer = halts

        with pytest.raises(KubeUnreachableError, match="not whole after"):
            await upstream.read("/api/v1/nodes", "application/json")

        async with asyncio.timeout(20):
            await given_up.wait()
