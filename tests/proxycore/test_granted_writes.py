"""Writes under the proxy's account whose body takes its time: they hold up no other, and not for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxycore import passing, write_places
from tests.proxycore.test_rules_kinds import ALL, STORAGE, chosen, kinds, owner_of, put

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.proxycore.conftest import Tenant, World

__all__ = ["kinds"]
MERGE = {"Content-Type": "application/merge-patch+json"}
PATCH = b'{"metadata": {"labels": {"touched": "yes"}}}'


@pytest.fixture
async def owner(kinds: World) -> Tenant:
    await put(kinds, STORAGE, "fast", provisioner="x")
    choices = {"StorageClasses": chosen("fast")}
    return await owner_of(kinds, choices=choices, operations={"StorageClasses": ALL})


async def in_pieces(rest: asyncio.Event, *, padding: int = 0) -> AsyncIterator[bytes]:
    yield PATCH[:10] + b" " * padding
    await rest.wait()
    yield PATCH[10:]


async def test_a_write_has_its_place_only_once_its_body_has_come(
    owner: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given no place for a write whose body is not whole
    monkeypatch.setattr(write_places, "COMING", 0)
    rest = asyncio.Event()

    # When the body of one comes slowly
    slow = asyncio.ensure_future(owner.request("PATCH", f"{STORAGE}/fast", data=in_pieces(rest), headers=MERGE))
    quick = await owner.request("PATCH", f"{STORAGE}/fast", data=PATCH, headers=MERGE)
    assert not slow.done()

    # Then others are served meanwhile, and so is it once it is whole
    assert quick.status == 200
    rest.set()
    assert (await slow).status == 200

    # And one that is longer than what is read ahead has none
    large = in_pieces(asyncio.Event(), padding=100_000)
    refused = await owner.request("PATCH", f"{STORAGE}/fast", data=large, headers=MERGE)
    assert refused.status == 503
    assert "whose body has not come" in refused.body["message"]


@pytest.mark.parametrize("padding", [0, 100_000], ids=["short", "longer than is read ahead"])
async def test_the_whole_body_of_a_write_has_a_time(
    owner: Tenant, monkeypatch: pytest.MonkeyPatch, padding: int
) -> None:
    monkeypatch.setattr(passing, "WRITE_BODY_SECONDS", 0.5)

    async def trickle() -> AsyncIterator[bytes]:
        yield PATCH[:10] + b" " * padding
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    refused = await owner.request("PATCH", f"{STORAGE}/fast", data=trickle(), headers=MERGE)

    assert refused.status == 408


async def test_a_client_that_waits_until_its_body_is_wanted_is_told(owner: Tenant) -> None:
    found = await owner.request("PATCH", f"{STORAGE}/fast", data=PATCH, headers=MERGE, expect100=True)

    assert found.status == 200
