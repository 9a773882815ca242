"""Requests as a case: what an attacker asks the proxy, and which codes it must get for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from tests.attack.cases import Attack, Ground, Who
from tests.attack.judging import HOLD_SECONDS, of_answer
from tests.kubeapi import Reply

if TYPE_CHECKING:
    from tests.attack.stage import Stage
    from tests.kubeapi import Client

REFUSED: Final = frozenset({400, 401, 403, 404, 405, 413, 414, 415, 422, 431})
"""What a request may be refused with; anything else is a right, or something that could not be handled."""
EMPTY: Final = REFUSED | {200}
"""For lists that may be answered, with nothing of others in them."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request, as it is: ``path`` is percent-encoded already. ``times``: how many at once."""

    path: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: Any = None
    expected: Collection[int] = REFUSED
    times: int = 1


def asking(who: Who, make: Callable[[Stage], Ask | list[Ask]]) -> Attack:
    """Return the attack that asks the proxy, and judges each answer."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        client = await ground.stage.door(who)
        made = make(ground.stage)
        asks = made if isinstance(made, list) else [made]
        await asyncio.gather(*(judge(ground, client, one) for one in asks for _ in range(one.times)))
        yield

    return attack


async def judge(ground: Ground, client: Client, ask: Ask) -> Reply | None:
    """Ask, and note what speaks against Tether; None where no answer came."""
    what = f"{ask.method} {ask.path[:120]}"
    began = time.monotonic()
    try:
        answer = await send(client, ask)
    except (aiohttp.ClientError, TimeoutError) as error:
        ground.found.stopped.append(f"{what}: no answer: {type(error).__name__}")
        return None
    ground.found.add(of_answer(what, answer, ask.expected, ground.stage.secrets))
    if (seconds := time.monotonic() - began) > HOLD_SECONDS:
        ground.found.slow.append(f"{what}: answered after {seconds:.1f} s")
    return answer


async def send(client: Client, ask: Ask) -> Reply:
    """Send a request exactly as it is written."""
    headers = CIMultiDict(client.headers)
    headers.extend(ask.headers)
    data = None
    if ask.body is not None:
        data = ask.body if isinstance(ask.body, bytes) else msgspec.json.encode(ask.body)
        kind = "application/merge-patch+json" if ask.method == "PATCH" else "application/json"
        headers.setdefault("Content-Type", kind)
    url = URL(client.url + ask.path, encoded=True)
    async with client.session.request(ask.method, url, headers=headers, data=data) as response:
        raw = await response.read()
        text = raw.decode(errors="replace")
        try:
            body = msgspec.json.decode(raw)
        except msgspec.DecodeError:
            body = text
        return Reply(response.status, body, dict(response.headers))


def acting(user: str, *groups: str, **more: str) -> tuple[tuple[str, str], ...]:
    """Return the headers of impersonation; keywords name further ones, with ``_`` for ``-``."""
    found = [("Impersonate-User", user), *(("Impersonate-Group", group) for group in groups)]
    return (*found, *((f"Impersonate-{name.replace('_', '-')}", value) for name, value in more.items()))


Table = Mapping[str, Callable[["Stage"], Ask]]
