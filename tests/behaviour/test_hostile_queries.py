"""What a caller may write into a query costs the proxy little, and is refused as the API server refuses it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from yarl import URL

from eventcore.kube import api_path

if TYPE_CHECKING:
    from tests.kubeapi import Reply

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
NAMESPACES = api_path("", "v1", "namespaces")
DIGITS = "9" * 5000
BLANKS = "%20" * 20_000
SOON = 2.0
"""Seconds in which somebody else is answered meanwhile; a request takes milliseconds."""


def told(answer: Reply) -> tuple[int, str]:
    """Return code and reason of a refusal."""
    assert answer.body["kind"] == "Status"
    return answer.status, answer.body["reason"]


async def test_a_number_that_is_none_is_a_bad_request_as_at_the_api_server(tenancy: Tenancy) -> None:
    await tenancy.make()
    inside = api_path("", "v1", "configmaps", namespace=await tenancy.make_usable("production"))
    token = await tenancy.token()
    async with tenancy.cluster.wire(token) as proxy, tenancy.cluster.wire(token, direct=True) as api:
        for number in (DIGITS, "9" * 24, "abc", "18446744073709551616", "\u0661"):
            # what the proxy reads itself
            for name in ("timeoutSeconds", "resourceVersion", "limit"):
                ours = await proxy.get(NAMESPACES, params={name: number})
                theirs = await api.get(inside, params={name: number})
                assert told(ours) == told(theirs) == (400, "BadRequest"), (name, number[:24])
                assert ours.body["message"][:80] == theirs.body["message"][:80]
                # and what it passes on
                passed = await proxy.get(inside, params={name: number})
                assert passed.body == theirs.body
            for name in ("timeoutSeconds", "resourceVersion"):
                watch = await proxy.get(NAMESPACES, params={"watch": "true", name: number})
                assert told(watch) == (400, "BadRequest"), (name, number[:24])


async def test_selectors_of_20000_blanks_keep_nobody_else_waiting(tenancy: Tenancy, other: Tenancy) -> None:
    # given two tenants
    await tenancy.make()
    await other.make()
    mine = await other.make_usable("production")
    url, trust = tenancy.cluster.way(direct=False)
    headers = {"Authorization": f"Bearer {await tenancy.token()}"}
    targets = [
        f"{NAMESPACES}?labelSelector={selector}"
        for selector in (
            BLANKS,
            f"{BLANKS}!",
            f"a{BLANKS}in",
            "a%20in%20(" + ",%20" * 20_000,
            "a," * 36_000,
            "a%2C" * 36_000,
        )
    ]
    connector = aiohttp.TCPConnector(ssl=trust)
    async with (
        aiohttp.ClientSession(url, connector=connector, headers=headers, max_line_size=2**20) as session,
        tenancy.cluster.wire(await other.token()) as client,
    ):

        async def send(target: str) -> int:
            async with session.get(URL(target, encoded=True)) as answer:
                await answer.read()
                return answer.status

        # when one of them sends selectors that say nothing at length, some at a time
        hostile = asyncio.gather(*(send(target) for target in targets * 6))

        # then the other one is answered as ever
        slowest = 0.0
        while not hostile.done():
            begun = time.monotonic()
            names = {item["metadata"]["name"] for item in (await client.get(NAMESPACES)).body["items"]}
            slowest = max(slowest, time.monotonic() - begun)
            assert names == {mine}
        assert slowest < SOON
        # and the first hears that none of them is a selector, but for the one that chooses everything
        assert set(await hostile) <= {200, 400}
